"""SDXL's UNet against diffusers, both ways through the files, the golden case and the manifest."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.layers import Compute
from proxy_jax.models.unet import UNet, UNetConfig
from proxy_jax.weights import unet
from proxy_jax.weights.golden import Case, diffusion
from proxy_jax.weights.hub import config_from
from proxy_jax.weights.table import WeightsError, differences, load, save
from proxy_jax.weights.tensors import open_tensors
from tests.models import oracles

TINY = UNetConfig(
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=12,
    attention_head_dim=(1, 2),
    transformer_layers_per_block=(1, 2),
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=34,
    use_linear_projection=True,
    layers_per_block=1,
    norm_num_groups=4,
)
# Other sizes of the kind: attention in the first level and none in the last, numbers given once for all levels.
OTHER = dataclasses.replace(
    TINY,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=2,
    transformer_layers_per_block=1,
    layers_per_block=2,
    out_channels=3,
)
FILE = "diffusion_pytorch_model.safetensors"
TOLERANCE = 5e-5


def oracle(config):
    return oracles.random_model(lambda diffusers: diffusers.UNet2DConditionModel.from_config(unet.official_config(config)), oracles.nearby)


def inputs(config):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, 6, 10, config.in_channels)).astype(np.float32)
    text = rng.normal(size=(2, 5, config.cross_attention_dim)).astype(np.float32)
    pooled = rng.normal(size=(2, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)).astype(np.float32)
    time_ids = np.float32([[1024, 768, 0, 13, 512, 512], [64, 80, 5, 0, 48, 40]])
    return latents, np.float32([731, 12]), text, pooled, time_ids


def run_oracle(model, latents, timesteps, text, pooled, time_ids):
    import torch

    latents, timesteps, text, pooled, time_ids = map(torch.from_numpy, (np.moveaxis(latents, -1, 1).copy(), timesteps, text, pooled, time_ids))
    with torch.no_grad():
        out = model(latents, timesteps, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample
    return np.moveaxis(out.numpy(), 1, -1)


def ours(config, path, **compute):
    return load(lambda: UNet(config, compute=Compute(**compute), rngs=nnx.Rngs(0)), unet.table(config), open_tensors(path), source=str(path))


@pytest.fixture(scope="module", params=[TINY, OTHER], ids=["tiny", "other"])
def pair(request, tmp_path_factory):
    """A diffusers model, the folder it saved and our model loaded from that."""
    folder = tmp_path_factory.mktemp("unet")
    model = oracle(request.param)
    model.save_pretrained(folder)
    return model, folder, ours(config_from(UNetConfig, folder / "config.json"), folder / FILE, remat="none")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The first of these pairs."""
    folder = tmp_path_factory.mktemp("unet")
    model = oracle(TINY)
    model.save_pretrained(folder)
    return model, folder


run = jax.jit(UNet.__call__)


def test_equals_diffusers_and_its_export_too(pair, tmp_path):
    import diffusers

    model, _, our_model = pair
    arrays = inputs(our_model.config)
    expected = run_oracle(model, *arrays)
    error = np.abs(run(our_model, *arrays) - expected).max()
    print(f"max error {error:.1e} of {np.abs(expected).max():.2f}")
    assert error <= TOLERANCE and np.abs(expected).max() > 0.1
    for i, array in enumerate(arrays):  # each input makes a difference
        changed = [*arrays[:i], array[::-1], *arrays[i + 1 :]]
        assert np.abs(run(our_model, *changed) - expected).max() > 100 * TOLERANCE, i

    changed = parameters.with_arrays(our_model, {name: x * 1.1 for name, x in parameters.arrays(our_model).items()})
    save(changed, unet.table(changed.config), tmp_path / FILE)
    (tmp_path / "config.json").write_text(json.dumps(unet.official_config(changed.config)))
    again, info = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    theirs = run_oracle(again.eval(), *arrays)
    assert np.abs(theirs - expected).max() > 1e-2
    assert np.abs(run(changed, *arrays) - theirs).max() <= 2 * TOLERANCE


def test_scanned_and_rematerialised_equals_straight(tiny):
    _, folder = tiny
    scanned, straight = (ours(TINY, folder / FILE, unroll=unroll, remat=remat) for unroll, remat in ((False, "full"), (True, "none")))
    latents, *rest = inputs(TINY)

    @jax.jit
    def value_and_gradient(model, latents):
        return jax.value_and_grad(lambda x: jnp.square(model(x, *rest)).mean())(latents)

    for a, b in zip(jax.tree.leaves(value_and_gradient(scanned, latents)), jax.tree.leaves(value_and_gradient(straight, latents)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_bfloat16_is_near(tiny):
    model, folder = tiny
    arrays = inputs(TINY)
    prediction, expected = run(ours(TINY, folder / FILE, dtype=jnp.bfloat16, remat="none"), *arrays), run_oracle(model, *arrays)
    assert prediction.dtype == jnp.float32
    assert 0 < np.abs(prediction - expected).max() <= 0.05 * np.abs(expected).max()


def test_what_lora_patterns_rely_on():
    model = nnx.eval_shape(lambda: UNet(TINY, rngs=nnx.Rngs(0)))
    shapes = {name: value.shape for name, value in parameters.arrays(model).items()}
    for place in ("down.1.transformers.0", "middle.transformer", "up.0.transformers.1"):
        for name in "qkvo":
            assert shapes[f"{place}.blocks.self_attention.{name}.kernel"] == (2, 16, 16)
        assert shapes[f"{place}.blocks.cross_attention.k.kernel"] == (2, 12, 16)
    assert not [name for name in shapes if name.startswith(("down.0.transformers", "up.1.transformers"))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(addition_embed_type=None), "addition_embed_type 'text_time'"),
        (dict(use_linear_projection=False), "use_linear_projection True"),
        (dict(freq_shift=1), "freq_shift 0"),
        (dict(mid_block_type=None), "mid_block_type 'UNetMidBlock2DCrossAttn'"),
        (dict(down_block_types=("AttnDownBlock2D", "DownBlock2D")), "unknown block types"),
        (dict(attention_head_dim=(1, 2, 3)), "there are 2 levels"),
    ],
)
def test_refuses_what_it_does_not_build(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_refuses_latents_that_cannot_be_halved():
    model = nnx.eval_shape(lambda: UNet(TINY, rngs=nnx.Rngs(0)))
    latents, *rest = inputs(TINY)
    with pytest.raises(ValueError, match="multiples of 2"):
        model(latents[:, :5], *rest)


def test_refuses_another_models_file(tiny):
    _, folder = tiny
    with pytest.raises(WeightsError, match=r"missing: down_blocks\.1\.attentions\.0\.transformer_blocks\.2\.attn1"):
        ours(dataclasses.replace(TINY, transformer_layers_per_block=(1, 3)), folder / FILE)


def test_golden(shared):
    comparisons = diffusion.KINDS["sdxl_unet"](Case(shared / "golden" / "sdxl_unet"))
    assert {c.name for c in comparisons} == {"time_emb", "time_id_emb", "aug_emb", "output"}
    assert [f"{c.name}: {c.error:.1e} > {c.tolerance}" for c in comparisons if not c.passed] == []


def test_manifest(shared):
    manifest = json.loads((shared / "manifests" / "sdxl_base_unet.json").read_text())
    make_model, table = diffusion.MANIFESTS["sdxl_.*unet"](manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
