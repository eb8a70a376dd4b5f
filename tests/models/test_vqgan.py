"""LlamaGen's tokenizer: the encoder and lookup against transformers' Chameleon VQVAE (the same layers under other names), the decoder
and the training quantizer by their properties, everything by the golden case. No library has LlamaGen's own model.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.layers import Compute
from proxy_jax.models.vqgan import VARIANTS, Codebook, VQConfig, VQModel
from proxy_jax.weights import vqgan
from proxy_jax.weights.golden import Case, diffusion
from proxy_jax.weights.table import differences, export, load, save
from proxy_jax.weights.tensors import open_tensors

CONFIG = VQConfig(ch_mult=(1, 2), ch=32, z_channels=16, codebook_size=24, codebook_embed_dim=4, num_res_blocks=1)


def random_model(config, seed):
    """A model with every value random; drawing them in numpy spares the compilation of the initialisers."""
    rng = np.random.default_rng(seed)
    model = nnx.eval_shape(lambda: VQModel(config, rngs=nnx.Rngs(0)))
    values = {}
    for name, shape in parameters.arrays(model).items():
        values[name] = jnp.asarray(rng.normal(size=shape.shape) / np.sqrt(np.prod(shape.shape[:-1])), jnp.float32)
        if name.endswith(".scale"):
            values[name] += 1.0
    return parameters.with_arrays(model, values)


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, 0)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1, maxval=1)


encode = jax.jit(VQModel.encode)
decode = jax.jit(VQModel.decode)


def test_shapes_and_range(model, images):
    indices = encode(model, images)
    assert (indices.shape, indices.dtype) == ((2, 4, 6), jnp.int32)
    assert 0 <= indices.min() and indices.max() < CONFIG.codebook_size and len(np.unique(indices)) > 1
    pixels = decode(model, indices)
    assert (pixels.shape, pixels.dtype) == (images.shape, jnp.float32)


def official_name(name):
    """LlamaGen's name of a Chameleon encoder tensor."""
    name = re.sub(r"encoder\.down\.(\d+)\.block\.(\d+)", r"encoder.conv_blocks.\1.res.\2", name)
    name = re.sub(r"encoder\.down\.(\d+)", r"encoder.conv_blocks.\1", name)
    for i, part in enumerate(("block_1", "attn_1", "block_2")):
        name = name.replace(f"encoder.mid.{part}", f"encoder.mid.{i}")
    return name


def test_encoder_and_lookup_equal_transformers(images):
    torch = pytest.importorskip("torch", reason="transformers' PyTorch model is the oracle")
    chameleon = pytest.importorskip("transformers.models.chameleon.modeling_chameleon", reason="transformers' PyTorch model is the oracle")
    torch.manual_seed(0)
    oracle = chameleon.ChameleonVQVAE(
        chameleon.ChameleonVQVAEConfig(
            embed_dim=CONFIG.codebook_embed_dim,
            num_embeddings=CONFIG.codebook_size,
            latent_channels=CONFIG.z_channels,
            resolution=images.shape[1],
            base_channels=CONFIG.ch,
            channel_multiplier=list(CONFIG.ch_mult),
            num_res_blocks=CONFIG.num_res_blocks,
            attn_resolutions=[images.shape[1] // CONFIG.downsample],
        )
    )
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.ndim == 1) * 0.2)
        oracle.quantize.embedding.weight.normal_(std=2.0)
        outputs = oracle.encode(torch.from_numpy(np.moveaxis(np.asarray(images), -1, 1).copy()))
        expected = np.moveaxis(oracle.quant_conv(outputs.last_hidden_state).numpy(), 1, -1)
    config = dataclasses.replace(CONFIG, codebook_l2_norm=False)
    table = vqgan.table(config)
    theirs = {official_name(name): tensor.numpy() for name, tensor in oracle.state_dict().items()}
    both = export(random_model(config, 0), table) | theirs  # the decoder, which they lack, is ours
    ours = load(lambda: VQModel(config, rngs=nnx.Rngs(0)), table, Arrays(both))
    latents = jax.jit(VQModel.latents)(ours, images)
    print(f"latents: max error {np.abs(latents - expected).max():.1e}")
    np.testing.assert_allclose(latents, expected, atol=5e-5)
    indices, codes = ours.quantize(latents)
    np.testing.assert_array_equal(indices.ravel(), outputs.image_tokens)
    assert len(np.unique(indices)) > 3
    np.testing.assert_allclose(codes, np.moveaxis(outputs.quantized_last_hidden_state.numpy(), 1, -1), atol=1e-5)


class Arrays:
    """Tensors in memory, as the loader wants them."""

    def __init__(self, arrays):
        self.arrays = arrays

    def shapes(self):
        return {name: array.shape for name, array in self.arrays.items()}

    def read(self, name, index):
        return self.arrays[name][index]


@pytest.mark.parametrize("l2_norm", [True, False])
def test_nearest_is_the_brute_force_minimum(l2_norm):
    codebook = Codebook(40, 3, l2_norm=l2_norm, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 3)) * rng.uniform(0.1, 3, (40, 1))  # of unequal length, so that l2_norm matters
    codebook = parameters.with_arrays(codebook, {"embedding": jnp.asarray(vectors, jnp.float32)})
    latents = rng.normal(size=(5, 6, 3))

    def placed(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True) if l2_norm else x

    distances = np.square(placed(latents)[..., None, :] - placed(vectors)).sum(-1)
    expected = distances.argmin(-1)
    gaps = np.sort(distances, -1)
    assert (gaps[..., 1] - gaps[..., 0]).min() > 1e-4 and len(np.unique(expected)) > 8
    found = codebook.nearest(jnp.asarray(latents, jnp.float32))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(codebook.lookup(found), placed(vectors)[expected], atol=1e-6)


def test_codes_are_their_own_nearest(model):
    grid = jnp.arange(CONFIG.codebook_size).reshape(1, 4, 6)
    indices, codes = model.quantize(model.lookup(grid) * 7.0)  # l2_norm: length does not matter
    np.testing.assert_array_equal(indices, grid)
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1.0, atol=1e-6)


def test_distances_do_not_depend_on_the_compute_dtype(model):
    """Latents in bfloat16 are compared in float32 with codes that bfloat16 cannot tell apart."""
    close = jnp.array([[1.0, 0, 0, 0], [1.0, 1e-3, 0, 0]])
    assert jnp.array_equal(*close.astype(jnp.bfloat16)[:, :1])
    codebook = parameters.with_arrays(Codebook(2, 4, l2_norm=False, rngs=nnx.Rngs(0)), {"embedding": close})
    latents = jnp.array([[1.0, 9e-4, 0, 0], [1.0, 1e-4, 0, 0]], jnp.bfloat16)
    np.testing.assert_array_equal(codebook.nearest(latents), [1, 0])


def test_straight_through_and_losses():
    codebook = Codebook(24, 4, l2_norm=False, rngs=nnx.Rngs(0))
    codebook = parameters.with_arrays(codebook, {"embedding": jax.random.normal(jax.random.key(2), (24, 4))})
    latents = jax.random.normal(jax.random.key(3), (2, 3, 5, 4))
    weights = jax.random.normal(jax.random.key(4), latents.shape)
    graph, state = nnx.split(codebook)

    def value(part):
        def of(latents, state):
            return getattr(nnx.merge(graph, state).quantize(latents, 0.5), part)

        return of

    codes = np.asarray(codebook.lookup(codebook.nearest(latents)))
    np.testing.assert_allclose(value("codes")(latents, state), codes, atol=1e-6)
    # The reconstruction's gradient passes to the latents as it is, and none of it to the codebook.
    through = jax.grad(lambda *x: (value("codes")(*x) * weights).sum(), argnums=(0, 1))(latents, state)
    np.testing.assert_allclose(through[0], weights, atol=1e-6)
    assert all(not leaf.any() for leaf in jax.tree.leaves(through[1]))
    # Each loss moves one side only: 2 (z - e) / size, halved by the commitment weight.
    gap = np.asarray(latents) - codes
    np.testing.assert_allclose(value("codebook_loss")(latents, state), np.square(gap).mean(), rtol=1e-5)
    np.testing.assert_allclose(value("commitment_loss")(latents, state), 0.5 * np.square(gap).mean(), rtol=1e-5)
    to_latents, to_codes = jax.grad(value("commitment_loss"), argnums=(0, 1))(latents, state)
    np.testing.assert_allclose(to_latents, gap / gap.size, atol=1e-6)
    assert all(not leaf.any() for leaf in jax.tree.leaves(to_codes))
    to_latents, to_codes = jax.grad(value("codebook_loss"), argnums=(0, 1))(latents, state)
    assert not to_latents.any()
    expected = np.zeros((24, 4))
    np.add.at(expected, np.asarray(codebook.nearest(latents)), -2 * gap / gap.size)
    np.testing.assert_allclose(jax.tree.leaves(to_codes)[0], expected, atol=1e-6)


def test_training_moves_a_zero_latent_without_nan():
    codebook = Codebook(24, 4, l2_norm=True, rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda latents: codebook.quantize(latents).commitment_loss)(jnp.zeros((1, 1, 1, 4)))
    assert jnp.isfinite(gradient).all()


def test_every_parameter_before_the_decoder_learns(model, images):
    """The training loss reaches the codebook and, through the straight-through codes, the whole encoder."""

    @jax.jit
    def gradients(model):
        def loss(values):
            changed = parameters.with_arrays(model, values)
            quantized = changed.codebook.quantize(changed.latents(images))
            return quantized.codes.sum() + quantized.codebook_loss

        return jax.grad(loss)(parameters.arrays(model))

    values = gradients(model)
    still = {name for name, gradient in values.items() if not jnp.abs(gradient).max() > 0}
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in still), still
    assert len(values) - len(still) > 40


def test_export_and_load(model, images, tmp_path):
    save(model, vqgan.table(CONFIG), tmp_path / "vq.safetensors")
    tensors = open_tensors(tmp_path / "vq.safetensors")
    assert tensors.shapes()["quant_conv.weight"] == (4, 16, 1, 1)
    assert tensors.shapes()["encoder.conv_blocks.1.attn.0.q.weight"] == (64, 64, 1, 1)
    assert tensors.shapes()["decoder.conv_blocks.0.attn.1.proj_out.weight"] == (64, 64, 1, 1)
    again = load(lambda: VQModel(CONFIG, rngs=nnx.Rngs(5)), vqgan.table(CONFIG), tensors)
    indices = encode(model, images)
    np.testing.assert_array_equal(encode(again, images), indices)
    pixels = decode(model, indices)
    np.testing.assert_array_equal(decode(again, indices), pixels)
    for name in ("decoder.levels.0.attentions.1.o.bias", "decoder.levels.1.blocks.0.shortcut.kernel", "codebook.embedding"):
        other = parameters.with_arrays(again, {name: parameters.arrays(again)[name] + jnp.linspace(0, 1, parameters.arrays(again)[name].shape[-1])})
        assert not jnp.allclose(decode(other, indices), pixels), name


def test_bfloat16_is_near(model):
    make = lambda: VQModel(CONFIG, compute=Compute(dtype=jnp.bfloat16), rngs=nnx.Rngs(0))  # noqa: E731
    half = parameters.with_arrays(nnx.eval_shape(make), parameters.arrays(model))
    indices = jax.random.randint(jax.random.key(0), (2, 4, 6), 0, CONFIG.codebook_size)
    pixels, expected = decode(half, indices), decode(model, indices)
    assert pixels.dtype == jnp.float32
    assert 0 < jnp.abs(pixels - expected).max() <= 0.06 * jnp.abs(expected).max()


def test_published_variants():
    assert {name: config.downsample for name, config in VARIANTS.items()} == {"VQ-16": 16, "VQ-8": 8}


def test_golden(shared):
    comparisons = diffusion.KINDS["llamagen_vq"](Case(shared / "golden" / "llamagen_vq"))
    assert len(comparisons) == 9 and [c.tolerance for c in comparisons if c.name == "indices"] == [0.0]
    assert [f"{c.name}: {c.error:.1e} > {c.tolerance}" for c in comparisons if not c.passed] == []


@pytest.mark.parametrize("name", ["llamagen_vq16", "llamagen_vq8"])
def test_manifest(shared, name):
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    make_model, table = diffusion.MANIFESTS["llamagen_vq(16|8)"](manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
