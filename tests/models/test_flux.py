"""FLUX.1 against diffusers, both ways through the files, and the golden case."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.flux import FluxConfig, FluxTransformer, pack
from proxy_jax.models.layers import Compute
from proxy_jax.weights import flux
from proxy_jax.weights.golden import Case, diffusion
from proxy_jax.weights.table import WeightsError, differences, load, save
from proxy_jax.weights.tensors import open_tensors
from tests.models import oracles

DEV = FluxConfig(
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=12,
    pooled_projection_dim=10,
    in_channels=16,
    guidance_embeds=True,
    axes_dims_rope=(4, 8, 4),
)
SCHNELL = dataclasses.replace(DEV, guidance_embeds=False)
FILE = "diffusion_pytorch_model.safetensors"
TOLERANCE = 5e-5


def oracle(config):
    return oracles.random_model(lambda diffusers: diffusers.FluxTransformer2DModel(**dataclasses.asdict(config)), oracles.anew)


def inputs(config):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, 6, 10, config.latent_channels)).astype(np.float32)
    prompt_embeds = rng.normal(size=(2, 5, config.joint_attention_dim)).astype(np.float32)
    pooled = rng.normal(size=(2, config.pooled_projection_dim)).astype(np.float32)
    guidance = np.array([3.5, 1.0], np.float32) if config.guidance_embeds else None
    return latents, np.array([731.5, 12.0], np.float32), prompt_embeds, pooled, guidance


def run_oracle(model, latents, timesteps, prompt_embeds, pooled, guidance):
    """The velocity as diffusers' pipeline has it from the model: packed and unpacked by its own functions."""
    import torch
    from diffusers import FluxPipeline

    (b, h, w, c), (prompt_embeds, pooled) = latents.shape, map(torch.from_numpy, (prompt_embeds, pooled))
    packed = FluxPipeline._pack_latents(torch.from_numpy(np.moveaxis(latents, -1, 1).copy()), b, c, h, w)
    places = dict(img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32), txt_ids=torch.zeros(5, 3))
    times = dict(timestep=torch.from_numpy(timesteps / 1000), guidance=None if guidance is None else torch.from_numpy(guidance))
    with torch.no_grad():
        velocity = model(packed, prompt_embeds, pooled, **times, **places).sample
    return np.moveaxis(FluxPipeline._unpack_latents(velocity, 8 * h, 8 * w, 8).numpy(), 1, -1)


def ours(config, path, **compute):
    make = lambda: FluxTransformer(config, compute=Compute(**compute), rngs=nnx.Rngs(0))  # noqa: E731
    return load(make, flux.table(config), open_tensors(path), source=str(path))


@pytest.fixture(scope="module", params=[DEV, SCHNELL], ids=["dev", "schnell"])
def pair(request, tmp_path_factory):
    """A diffusers model, the file it saved and our model loaded from that."""
    folder = tmp_path_factory.mktemp("flux")
    model = oracle(request.param)
    model.save_pretrained(folder)
    return model, folder, ours(request.param, folder / FILE, unroll=True)


def test_equals_diffusers(pair):
    model, _, our_model = pair
    arrays = inputs(our_model.config)
    expected = run_oracle(model, *arrays)
    error = np.abs(jax.jit(FluxTransformer.__call__)(our_model, *arrays) - expected).max()
    print(f"max error {error:.1e} of {np.abs(expected).max():.1f}")
    assert error <= TOLERANCE
    assert np.abs(expected).max() > 0.1
    if our_model.config.guidance_embeds:
        assert np.abs(run_oracle(model, *arrays[:-1], arrays[-1][::-1].copy()) - expected).max() > 1e-2


@pytest.mark.parametrize("pair", [DEV], indirect=True, ids=["dev"])
def test_export_loads_in_diffusers(pair, tmp_path):
    import diffusers

    model, _, our_model = pair
    changed = parameters.with_arrays(our_model, {name: x * 1.1 for name, x in parameters.arrays(our_model).items()})
    save(changed, flux.table(changed.config), tmp_path / FILE)
    (tmp_path / "config.json").write_text(json.dumps(flux.official_config(changed.config)))
    again, info = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    arrays = inputs(our_model.config)
    expected = run_oracle(again.eval(), *arrays)
    assert np.abs(expected - run_oracle(model, *arrays)).max() > 1e-2
    assert np.abs(jax.jit(FluxTransformer.__call__)(changed, *arrays) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("pair", [DEV], indirect=True, ids=["dev"])
def test_scanned_and_rematerialised_equals_straight(pair):
    _, folder, _ = pair
    scanned, straight = (ours(pair[2].config, folder / FILE, unroll=unroll, remat=remat) for unroll, remat in ((False, "full"), (True, "none")))
    latents, *rest = inputs(scanned.config)

    @jax.jit
    def value_and_gradient(model, latents):
        return jax.value_and_grad(lambda x: jnp.square(model(x, *rest)).mean())(latents)

    for a, b in zip(jax.tree.leaves(value_and_gradient(scanned, latents)), jax.tree.leaves(value_and_gradient(straight, latents)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("pair", [DEV], indirect=True, ids=["dev"])
def test_bfloat16_is_near(pair):
    model, folder, our_model = pair
    half = ours(our_model.config, folder / FILE, dtype=jnp.bfloat16)
    arrays = inputs(our_model.config)
    velocity, expected = jax.jit(FluxTransformer.__call__)(half, *arrays), run_oracle(model, *arrays)
    assert velocity.dtype == jnp.float32
    assert 0 < np.abs(velocity - expected).max() <= 0.05 * np.abs(expected).max()


def test_the_stacks_and_what_lora_patterns_rely_on():
    model = nnx.eval_shape(lambda: FluxTransformer(DEV, rngs=nnx.Rngs(0)))
    shapes = {name: value.shape for name, value in parameters.arrays(model).items()}
    for stream in ("img", "txt"):
        assert shapes[f"double_blocks.{stream}.qkv.q.kernel"] == shapes[f"double_blocks.{stream}.o.kernel"] == (2, 32, 32)
        assert shapes[f"double_blocks.{stream}.mlp.fc1.kernel"] == (2, 32, 128)
    assert shapes["single_blocks.qkv.v.kernel"] == (3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(axes_dims_rope=(4, 4, 4)), "axes_dims_rope"),
        (dict(axes_dims_rope=(1, 9, 6)), "axes_dims_rope"),
        (dict(patch_size=2), "patch_size"),
        (dict(in_channels=6), "in_channels"),
        (dict(out_channels=8), "out_channels"),
    ],
)
def test_refuses_what_it_does_not_build(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DEV, **change)


def test_refuses_odd_latents_and_guidance_that_does_not_fit():
    with pytest.raises(ValueError, match="patches"):
        pack(jnp.zeros((1, 5, 4, 4)))
    for config, guidance in ((DEV, None), (SCHNELL, jnp.ones(1))):
        model = nnx.eval_shape(lambda config=config: FluxTransformer(config, rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match="guidance_embeds"):
            model.embed_vec(jnp.ones(1), guidance, jnp.ones((1, 10)))


@pytest.mark.parametrize("pair", [SCHNELL], indirect=True, ids=["schnell"])
def test_refuses_another_models_file(pair):
    with pytest.raises(WeightsError, match=r"missing: time_text_embed\.guidance_embedder"):
        ours(DEV, pair[1] / FILE)


def test_golden(shared):
    comparisons = diffusion.KINDS["flux_transformer"](Case(shared / "golden" / "flux_transformer"))
    assert {c.name for c in comparisons} == {"packed", "rope_cos", "rope_sin", "temb", "output_packed", "output_unpacked"}
    assert [f"{c.name}: {c.error:.1e} > {c.tolerance}" for c in comparisons if not c.passed] == []


def test_manifest(shared):
    manifest = json.loads((shared / "manifests" / "flux1_dev_transformer.json").read_text())
    make_model, table = diffusion.MANIFESTS["flux1_.*transformer"](manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
