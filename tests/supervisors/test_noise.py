"""Flow matching against the installed diffusers, and properties of the pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxy_jax.supervisors import noise


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch", reason="the oracle is diffusers, which needs torch ([test] extra)")
    return pytest.importorskip("diffusers")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_tables_equal_diffusers(diffusers, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    np.testing.assert_allclose(noise.training_sigmas(shift), scheduler.sigmas[:1000].numpy(), atol=1e-6)
    for steps in (1, 4, 28):
        scheduler.set_timesteps(steps)
        np.testing.assert_allclose(noise.sampling_sigmas(steps, shift), scheduler.sigmas.numpy(), atol=1e-6)


def test_dynamic_shift_equals_diffusers(diffusers):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    for tokens in (256, 1000, 4096):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7), mu=0.5 + 0.65 * (tokens - 256) / 3840)
        np.testing.assert_allclose(noise.dynamic_sigmas(7, tokens), scheduler.sigmas.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["sigma_sqrt", "cosmap", "logit_normal"])
def test_loss_weights_equal_diffusers(diffusers, kind):
    import torch
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = np.linspace(0.01, 1, 9, dtype=np.float32)
    expected = compute_loss_weighting_for_sd3(kind, torch.from_numpy(sigmas)).numpy()
    np.testing.assert_allclose(noise.Weighting(kind).weight(jnp.asarray(sigmas)), expected, rtol=1e-5)


def test_euler_is_exact_on_a_straight_path():
    rng = np.random.default_rng(0)
    clean, start = rng.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    for steps in (1, 5):
        out = noise.euler(lambda x, t: jnp.asarray(start - clean), jnp.asarray(start), noise.sampling_sigmas(steps, 3.0))
        np.testing.assert_allclose(out, clean, atol=1e-5)


def test_euler_passes_timesteps_of_every_example():
    seen = noise.euler(lambda x, t: jnp.broadcast_to(t[:, None], x.shape), jnp.zeros((2, 1)), np.asarray([1.0, 0.5, 0.0], np.float32))
    np.testing.assert_allclose(seen, np.full((2, 1), -0.5 * 1000 - 0.5 * 500))


def test_draws_depend_on_the_key_alone():
    keys = jax.random.split(jax.random.key(3), 6)
    sigmas = noise.draw_sigmas(keys, noise.Weighting(), 3.0)
    some = jnp.asarray([4, 1])
    np.testing.assert_array_equal(noise.draw_sigmas(keys[some], noise.Weighting(), 3.0), sigmas[some])
    assert len(set(np.asarray(sigmas).tolist())) == 6
    np.testing.assert_array_equal(noise.unit_noise(keys, (3, 3))[some], noise.unit_noise(keys[some], (3, 3)))


def test_logit_normal_draws_have_its_distribution():
    u = noise.Weighting("logit_normal", mean=0.5, std=0.7).density(jax.random.normal(jax.random.key(0), (20000,)), jnp.zeros(20000))
    logits = np.log(np.asarray(u) / (1 - np.asarray(u)))
    assert abs(logits.mean() - 0.5) < 0.02 and abs(logits.std() - 0.7) < 0.02


def test_preconditioning_is_a_factor_of_sigma_squared():
    rng = np.random.default_rng(1)
    velocity, x, unit = rng.normal(size=(3, 4, 2, 2, 3)).astype(np.float32)
    sigmas = jnp.asarray([0.1, 0.4, 0.9, 1.0])
    plain, conditioned = (
        noise.flow_loss(velocity, x, unit, sigmas, weighting=noise.Weighting("none"), precondition_outputs=flag) for flag in (False, True)
    )
    np.testing.assert_allclose(conditioned, plain * sigmas**2, rtol=1e-4)
    assert noise.flow_loss(unit - x, x, unit, sigmas, weighting=noise.Weighting(), precondition_outputs=True).max() < 1e-10


def test_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="logit_normal"):
        noise.Weighting("logitnormal")
