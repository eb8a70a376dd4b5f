"""Discrete-time diffusion against the installed diffusers, and properties of the pure functions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxy_jax.supervisors import diffusion
from proxy_jax.supervisors.diffusion import Schedule
from proxy_jax.weights.golden import Case, pipeline

SDXL = Schedule(0.00085, 0.012, "scaled_linear", timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
VELOCITY = dataclasses.replace(SDXL, prediction_type="v_prediction", timestep_spacing="trailing", set_alpha_to_one=True)
NAMES = {"euler": "EulerDiscreteScheduler", "ddim": "DDIMScheduler"}
A = jnp.asarray([0.999, 0.7, 0.2, 0.005])


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch", reason="the oracle is diffusers, which needs torch ([test] extra)")
    return pytest.importorskip("diffusers")


def official(diffusers, sampler, schedule):
    fields = dataclasses.asdict(schedule) | dict(clip_sample=False)
    kind = getattr(diffusers, NAMES[sampler])
    return kind(**{name: value for name, value in fields.items() if name in kind().config})


@pytest.mark.parametrize("schedule", [SDXL, VELOCITY], ids=["epsilon leading", "velocity trailing"])
@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_samplers_equal_diffusers(diffusers, sampler, schedule, steps):
    import torch

    scheduler = official(diffusers, sampler, schedule)
    scheduler.set_timesteps(steps)
    assert schedule.timesteps(steps).tolist() == scheduler.timesteps.tolist()
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(0.4 * seen + torch.sin(t / 300), t, x).prev_sample
    found = diffusion.sample(sampler, lambda x, t: 0.4 * x + jnp.sin(t / 300)[:, None, None, None], jnp.asarray(noise), schedule, steps)
    np.testing.assert_allclose(found, x.numpy(), atol=2e-5 * max(1.0, float(x.abs().max())))


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_samplers_reach_the_only_picture_there_is(sampler, prediction_type):
    """Of one picture the best prediction is known: from any noise the sampler ends at that picture."""
    rng = np.random.default_rng(0)
    picture, noise = rng.normal(size=(2, 2, 3, 3, 4)).astype(np.float32)
    schedule = dataclasses.replace(SDXL, prediction_type=prediction_type, set_alpha_to_one=True)
    table = jnp.asarray(schedule.alphas_cumprod)

    def predict(x, t):
        a = table[t.astype(jnp.int32)][:, None, None, None]
        unit = (x - jnp.sqrt(a) * picture) / jnp.sqrt(1 - a)
        return unit if prediction_type == "epsilon" else jnp.sqrt(a) * unit - jnp.sqrt(1 - a) * picture

    np.testing.assert_allclose(diffusion.sample(sampler, predict, jnp.asarray(noise), schedule, 8), picture, atol=1e-4)


def test_tables_noise_and_weights_equal_diffusers(diffusers):
    import torch
    from diffusers.training_utils import compute_snr

    scheduler = official(diffusers, "ddim", SDXL)
    np.testing.assert_allclose(SDXL.alphas_cumprod, scheduler.alphas_cumprod.numpy(), atol=1e-6)
    timesteps = np.asarray([3, 500, 999])
    x, unit = np.random.default_rng(1).normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
    a = jnp.asarray(SDXL.alphas_cumprod[timesteps])
    tensors = torch.from_numpy(x), torch.from_numpy(unit), torch.from_numpy(timesteps)
    np.testing.assert_allclose(diffusion.add_noise(x, unit, a), scheduler.add_noise(*tensors).numpy(), atol=1e-5)
    np.testing.assert_allclose(diffusion.target(x, unit, a, "v_prediction"), scheduler.get_velocity(*tensors).numpy(), atol=1e-5)
    np.testing.assert_array_equal(diffusion.target(x, unit, a, "epsilon"), unit)
    np.testing.assert_allclose(diffusion.signal_to_noise(a), compute_snr(scheduler, torch.from_numpy(timesteps)).numpy(), rtol=1e-4)


def test_min_snr_caps_what_the_clean_latents_error_weighs():
    """Of a velocity or a noise that are wrong alike, min-SNR makes the same loss: that of the clean latents times min(snr, gamma)."""
    rng = np.random.default_rng(2)
    x, unit, wrong = rng.normal(size=(3, 4, 2, 2, 3)).astype(np.float32)
    a = A[:, None, None, None]
    noise = unit + wrong  # the clean latents that it implies are wrong by sqrt((1 - a) / a) · wrong, and so the velocity by wrong / sqrt(a)
    velocity = diffusion.target(x, unit, A, "v_prediction") + wrong / jnp.sqrt(a)
    square = jnp.square(wrong).mean((1, 2, 3))
    expected = jnp.minimum(A / (1 - A), 5.0) * (1 - A) / A * square
    for prediction, kind in ((noise, "epsilon"), (velocity, "v_prediction")):
        np.testing.assert_allclose(diffusion.diffusion_loss(prediction, x, unit, A, prediction_type=kind, snr_gamma=5.0), expected, rtol=1e-4)
    np.testing.assert_allclose(diffusion.diffusion_loss(noise, x, unit, A, prediction_type="epsilon", snr_gamma=0.0), square, rtol=1e-5)


def test_draws_depend_on_the_key_alone_and_cover_every_timestep():
    keys = jax.random.split(jax.random.key(3), 20000)
    draws = np.asarray(diffusion.draw_timesteps(keys, 1000))
    some = jnp.asarray([4, 1])
    np.testing.assert_array_equal(diffusion.draw_timesteps(keys[some], 1000), draws[np.asarray(some)])
    assert set(draws) == set(range(1000)) and abs(draws.mean() - 499.5) < 8


@pytest.mark.parametrize(
    "change", [dict(beta_schedule="linear"), dict(timestep_spacing="linspace"), dict(prediction_type="sample"), dict(use_karras_sigmas=True)]
)
def test_refuses_what_it_does_not_build(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"the scheduler's {name} is"):
        dataclasses.replace(SDXL, **change)


def test_a_scheduler_that_does_not_say_its_spacing_has_diffusers_default_which_is_refused():
    with pytest.raises(ValueError, match="timestep_spacing is 'linspace'"):
        Schedule(0.00085, 0.012, "scaled_linear")


@pytest.mark.parametrize("kind", ["schedulers", "training_targets"])
def test_golden_cases_whole(shared, kind):
    case = Case(shared / "golden" / kind)
    comparisons = pipeline.KINDS[kind](case)
    inputs = {"noise", "latents", "model_pred", "z_normal", "u_uniform", "ddpm_timesteps"}
    assert {comparison.name for comparison in comparisons} == set(case.io) - inputs
    assert [f"{c.name}: {c.error:.1e} > {c.tolerance}" for c in comparisons if not c.passed] == []
