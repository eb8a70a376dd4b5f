"""SD3 and SD3.5 against diffusers, both ways through the files, and the golden cases."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.layers import Compute
from proxy_jax.models.mmdit import SD3Config, SD3Transformer, position_table
from proxy_jax.weights import mmdit
from proxy_jax.weights.golden import Case, diffusion
from proxy_jax.weights.table import WeightsError, differences, load, save
from proxy_jax.weights.tensors import open_tensors
from tests.models import oracles

PLAIN = SD3Config(
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=12,
    caption_projection_dim=16,
    pooled_projection_dim=10,
    pos_embed_max_size=7,
    sample_size=8,
    in_channels=4,
    out_channels=4,
)
# Three pieces: two dual blocks, one plain, the last.
SD35 = dataclasses.replace(PLAIN, num_layers=4, qk_norm="rms_norm", dual_attention_layers=(0, 1))
TOLERANCE = 5e-5


def oracle(config):
    return oracles.random_model(lambda diffusers: diffusers.SD3Transformer2DModel(**dataclasses.asdict(config)), oracles.anew)


def inputs(config):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, 6, 10, config.in_channels)).astype(np.float32)
    prompt_embeds = rng.normal(size=(2, 5, config.joint_attention_dim)).astype(np.float32)
    pooled = rng.normal(size=(2, config.pooled_projection_dim)).astype(np.float32)
    return latents, np.array([731.5, 12.0], np.float32), prompt_embeds, pooled


def run_oracle(model, latents, timesteps, prompt_embeds, pooled):
    import torch

    tensors = (torch.from_numpy(x) for x in (np.moveaxis(latents, -1, 1).copy(), prompt_embeds, pooled, timesteps))
    with torch.no_grad():
        return np.moveaxis(model(*tensors).sample.numpy(), 1, -1)


def ours(config, path, **compute):
    make = lambda: SD3Transformer(config, compute=Compute(**compute), rngs=nnx.Rngs(0))  # noqa: E731
    return load(make, mmdit.table(config), open_tensors(path), source=str(path))


@pytest.fixture(scope="module", params=[PLAIN, SD35], ids=["sd3", "sd35"])
def pair(request, tmp_path_factory):
    """A diffusers model, the file it saved and our model loaded from that."""
    folder = tmp_path_factory.mktemp("sd3")
    model = oracle(request.param)
    model.save_pretrained(folder)
    return model, folder, ours(request.param, folder / "diffusion_pytorch_model.safetensors", unroll=True)


def test_equals_diffusers(pair):
    model, _, our_model = pair
    arrays = inputs(our_model.config)
    expected = run_oracle(model, *arrays)
    error = np.abs(jax.jit(SD3Transformer.__call__)(our_model, *arrays) - expected).max()
    print(f"max error {error:.1e}")
    assert error <= TOLERANCE
    assert np.abs(expected).max() > 0.1


def test_export_loads_in_diffusers(pair, tmp_path):
    import diffusers

    model, _, our_model = pair
    shift = lambda name, variable: isinstance(variable, nnx.Param)  # noqa: E731
    changed = parameters.with_arrays(our_model, {name: x * 1.1 for name, x in parameters.arrays(our_model, shift).items()})
    save(changed, mmdit.table(changed.config), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(mmdit.official_config(changed.config)))
    again = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path).eval()
    arrays = inputs(our_model.config)
    expected = run_oracle(again, *arrays)
    assert np.abs(expected - run_oracle(model, *arrays)).max() > 1e-2
    assert np.abs(jax.jit(SD3Transformer.__call__)(changed, *arrays) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("pair", [SD35], indirect=True, ids=["sd35"])
def test_scanned_and_rematerialised_equals_straight(pair):
    _, folder, _ = pair
    scanned, straight = (
        ours(pair[2].config, folder / "diffusion_pytorch_model.safetensors", unroll=unroll, remat=remat)
        for unroll, remat in ((False, "full"), (True, "none"))
    )
    latents, *rest = inputs(scanned.config)

    @jax.jit
    def value_and_gradient(model, latents):
        return jax.value_and_grad(lambda x: jnp.square(model(x, *rest)).mean())(latents)

    for a, b in zip(jax.tree.leaves(value_and_gradient(scanned, latents)), jax.tree.leaves(value_and_gradient(straight, latents)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_position_table_equals_diffusers(pair):
    model, _, our_model = pair
    np.testing.assert_allclose(position_table(our_model.config), model.pos_embed.pos_embed.numpy(), atol=1e-6)


@pytest.mark.parametrize("pair", [SD35], indirect=True, ids=["sd35"])
def test_bfloat16_is_near(pair):
    model, folder, our_model = pair
    half = ours(our_model.config, folder / "diffusion_pytorch_model.safetensors", dtype=jnp.bfloat16)
    arrays = inputs(our_model.config)
    velocity, expected = jax.jit(SD3Transformer.__call__)(half, *arrays), run_oracle(model, *arrays)
    assert velocity.dtype == jnp.float32
    assert 0 < np.abs(velocity - expected).max() <= 0.05 * np.abs(expected).max()


def test_what_lora_patterns_rely_on():
    model = nnx.eval_shape(lambda: SD3Transformer(SD35, rngs=nnx.Rngs(0)))
    shapes = {name: value.shape for name, value in parameters.arrays(model).items()}
    for stream in ("img", "txt"):
        assert shapes[f"dual_blocks.attention.{stream}_q.kernel"] == (2, 16, 16)
        assert shapes[f"blocks.attention.{stream}_o.kernel"] == (1, 16, 16)
        assert shapes[f"last_block.attention.{stream}_v.kernel"] == (16, 16)
    assert "last_block.attention.txt_o.kernel" not in shapes  # the last block's text ends in its keys and values
    assert not isinstance(parameters.variables(model)["position"], nnx.Param)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dual_attention_layers=(1,)), "first ones"),
        (dict(dual_attention_layers=(0, 2)), "first ones"),
        (dict(dual_attention_layers=(0, 1, 2)), "not the last"),
        (dict(qk_norm="layer_norm"), "qk_norm"),
        (dict(caption_projection_dim=24), "caption_projection_dim"),
    ],
)
def test_refuses_what_it_does_not_build(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_refuses_latents_that_do_not_fit():
    model = nnx.eval_shape(lambda: SD3Transformer(PLAIN, rngs=nnx.Rngs(0)))
    for height, width in ((5, 4), (4, 16)):
        with pytest.raises(ValueError, match="patches"):
            model.embed_latents(jnp.zeros((1, height, width, 4)))


def test_refuses_another_models_file(pair):
    _, folder, our_model = pair
    other = dataclasses.replace(our_model.config, num_layers=our_model.config.num_layers + 1)
    with pytest.raises(WeightsError, match=r"missing: transformer_blocks\.\d\.attn"):
        ours(other, folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("kind", ["sd3_transformer", "sd35_transformer"])
def test_golden(shared, kind):
    comparisons = diffusion.KINDS[kind](Case(shared / "golden" / kind))
    assert {c.name for c in comparisons} == {"patch_embed_out", "temb", "output"}
    assert [f"{c.name}: {c.error:.1e} > {c.tolerance}" for c in comparisons if not c.passed] == []


@pytest.mark.parametrize("name", ["sd3_medium_transformer", "sd35_medium_transformer", "sd35_large_transformer"])
def test_manifest(shared, name):
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    make_model, table = diffusion.MANIFESTS["sd3.*_transformer"](manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
