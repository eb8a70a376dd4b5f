"""AutoencoderKL against diffusers, both ways through the files, and the golden cases."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.layers import Compute
from proxy_jax.supervisors import latent
from proxy_jax.weights import autoencoder_kl
from proxy_jax.weights.golden import Case, diffusion
from proxy_jax.weights.table import differences, export, load, save
from proxy_jax.weights.tensors import open_tensors, write_safetensors
from tests.models import oracles

# As SDXL's and as SD3's, at a fraction of the width.
SDXL = AutoencoderKLConfig(block_out_channels=(8, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4, scaling_factor=0.13025)
SD3 = dataclasses.replace(SDXL, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609)
FILE = "diffusion_pytorch_model.safetensors"


def oracle(config):
    return oracles.random_model(lambda diffusers: diffusers.AutoencoderKL.from_config(autoencoder_kl.official_config(config)), oracles.nearby)


def run_oracle(model, images, latents):
    """Mean, log variance and decoded latents of diffusers' model, channels last."""
    import torch

    nchw = [torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for x in (images, latents)]
    with torch.no_grad():
        posterior = model.encode(nchw[0]).latent_dist
        outputs = posterior.mean, posterior.logvar, model.decode(nchw[1]).sample
    return [np.moveaxis(x.numpy(), 1, -1) for x in outputs]


@jax.jit
def run(model, images, latents):
    return *model.moments(images), model.decode(latents)


def inputs(config):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 10, 14, 3)).astype(np.float32)
    return images, rng.normal(size=(2, 7, 5, config.latent_channels)).astype(np.float32)


@pytest.fixture(scope="module", params=[SDXL, SD3], ids=["sdxl", "sd3"])
def pair(request, tmp_path_factory):
    """A diffusers model and ours, loaded from the file it saved."""
    config, folder = request.param, tmp_path_factory.mktemp("vae")
    model = oracle(config)
    model.save_pretrained(folder)
    make = lambda: AutoencoderKL(config, rngs=nnx.Rngs(0))  # noqa: E731
    return model, load(make, autoencoder_kl.table(config), open_tensors(folder / FILE))


def test_equals_diffusers(pair):
    model, ours = pair
    arrays = inputs(ours.config)
    for name, x, expected, tolerance in zip(
        ("mean", "logvar", "pixels"), run(ours, *arrays), run_oracle(model, *arrays), (5e-5, 5e-5, 1e-4), strict=True
    ):
        print(f"{name}: max error {np.abs(x - expected).max():.1e}")
        assert x.shape == expected.shape and np.abs(x - expected).max() <= tolerance, name


@pytest.mark.parametrize("pair", [SDXL], indirect=True, ids=["sdxl"])
def test_decoding_in_tiles_equals_diffusers(pair):
    """Tiles of 8 × 8 latents; at the right and the bottom only 2 are left."""
    import torch

    model, ours = pair
    latents = np.random.default_rng(0).normal(size=(1, 14, 20, 4)).astype(np.float32)
    model.enable_tiling()
    model.tile_latent_min_size, model.tile_sample_min_size = 8, 16
    try:
        with torch.no_grad():
            tiled = model.decode(torch.from_numpy(np.moveaxis(latents, -1, 1).copy())).sample.numpy()
    finally:
        model.disable_tiling()
    expected = 127.5 * (np.clip(np.moveaxis(tiled, 1, -1), -1, 1) + 1)
    pictures = np.asarray(latent.decode_tiled(ours, ours.scale(latents), 8), np.float32)
    whole = np.asarray(latent.decode(ours, ours.scale(latents)), np.float32)
    errors = [np.abs(image - expected).max() for image in (pictures, whole)]
    print(f"of 255: {errors[0]:.2f}; without tiles {errors[1]:.1f}")
    assert pictures.shape == (1, 28, 40, 3) and errors[0] < 0.6 and errors[1] > 2


def test_export_loads_in_diffusers(pair, tmp_path):
    import diffusers

    model, ours = pair
    changed = parameters.with_arrays(ours, {name: x * 1.05 for name, x in parameters.arrays(ours).items()})
    save(changed, autoencoder_kl.table(changed.config), tmp_path / FILE)
    (tmp_path / "config.json").write_text(json.dumps(autoencoder_kl.official_config(changed.config)))
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path).eval()
    assert (again.config.scaling_factor, again.config.shift_factor) == (ours.config.scaling_factor, ours.config.shift_factor)
    arrays = inputs(ours.config)
    expected = run_oracle(again, *arrays)
    assert np.abs(expected[2] - run_oracle(model, *arrays)[2]).max() > 1e-2
    for x, theirs in zip(run(changed, *arrays), expected, strict=True):
        assert np.abs(x - theirs).max() <= 1e-4


def test_old_names_are_read(pair, tmp_path):
    _, ours = pair
    old = {new: name for name, new in autoencoder_kl.OLD_NAMES}
    tensors = {}
    for name, value in export(ours, autoencoder_kl.table(ours.config)).items():
        stem, _, kind = name.rpartition(".")
        head, _, tail = stem.partition("attentions.0.")
        tensors[f"{head}attentions.0.{old[tail]}.{kind}" if tail in old else name] = value
    assert {"encoder.mid_block.attentions.0.proj_attn.bias", "decoder.mid_block.attentions.0.query.weight"} < set(tensors)
    write_safetensors(tensors, tmp_path / FILE, {})
    again = load(lambda: AutoencoderKL(ours.config, rngs=nnx.Rngs(0)), autoencoder_kl.table(ours.config), open_tensors(tmp_path / FILE))
    for name, value in parameters.arrays(again).items():
        np.testing.assert_array_equal(value, parameters.arrays(ours)[name], err_msg=name)


def test_scaling():
    sd3, sdxl = (nnx.eval_shape(lambda config=config: AutoencoderKL(config, rngs=nnx.Rngs(0))) for config in (SD3, SDXL))
    latents = jnp.array([0.0609, 1.0609])
    np.testing.assert_allclose(sd3.scale(latents), [0.0, 1.5305], atol=1e-6)
    np.testing.assert_allclose(sd3.unscale(sd3.scale(latents)), latents, atol=1e-6)
    np.testing.assert_allclose(sdxl.scale(latents), latents * 0.13025, rtol=1e-6)


def test_log_variance_is_clamped(pair):
    _, ours = pair
    wild = parameters.with_arrays(ours, {"encoder.conv_out.kernel": 1e4 * parameters.arrays(ours)["encoder.conv_out.kernel"]})
    _, logvar, _ = run(wild, *inputs(ours.config))
    assert (logvar.min(), logvar.max()) == (-30.0, 20.0)


def test_bfloat16_gives_float32_near_the_reference(pair):
    model, ours = pair
    make = lambda: AutoencoderKL(ours.config, compute=Compute(dtype=jnp.bfloat16), rngs=nnx.Rngs(0))  # noqa: E731
    half = parameters.with_arrays(nnx.eval_shape(make), parameters.arrays(ours))
    arrays = inputs(ours.config)
    for x, expected in zip(run(half, *arrays), run_oracle(model, *arrays), strict=True):
        assert x.dtype == jnp.float32
        assert 0 < np.abs(x - expected).max() <= 0.06 * np.abs(expected).max()


@pytest.mark.parametrize("change", [dict(act_fn="relu"), dict(mid_block_add_attention=False)])
def test_refuses_what_it_does_not_build(change):
    with pytest.raises(ValueError, match="act_fn 'silu'"):
        dataclasses.replace(SDXL, **change)


@pytest.mark.parametrize("kind", ["autoencoder_kl", "autoencoder_kl_noquant"])
def test_golden(shared, kind):
    comparisons = diffusion.KINDS[kind](Case(shared / "golden" / kind))
    assert len(comparisons) == 8
    assert [f"{c.name}: {c.error:.1e} > {c.tolerance}" for c in comparisons if not c.passed] == []


@pytest.mark.parametrize("name", ["sd3_vae", "sdxl_vae"])
def test_manifest(shared, name):
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    make_model, table = diffusion.MANIFESTS["(sd3|sdxl)_vae"](manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
