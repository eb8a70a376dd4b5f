"""Schedules and AdamW, against torch and diffusers, and against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from proxy_jax.training import optimizer

AXES = {"blocks.q.kernel": ("layers", "embed", "heads"), "blocks.norm.scale": ("layers", "scalar"), "out.bias": ("vocab",)}
SHAPES = {"blocks.q.kernel": (2, 3, 4), "blocks.norm.scale": (2, 3), "out.bias": (5,)}


def numbers(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def updated(config, num_steps: int, scale: float = 1.0, **options) -> dict[str, jax.Array]:
    """The parameters after some steps with given gradients."""
    transform = optimizer.make(config, AXES, **options)
    params = jax.tree.map(jnp.asarray, numbers(0))
    state, update = transform.init(params), jax.jit(transform.update)
    for step in range(num_steps):
        updates, state = update(numbers(step + 1, scale), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedule_against_diffusers(name, warmup):
    torch = pytest.importorskip("torch", reason="the oracle is diffusers on torch")
    scheduling = pytest.importorskip("diffusers.optimization", reason="the oracle is diffusers")
    theirs = "constant_with_warmup" if name == "constant" else name
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = scheduling.get_scheduler(theirs, sgd, num_warmup_steps=warmup, num_training_steps=10)
    ours = optimizer.schedule(base.training(schedule=name, warmup_steps=warmup, steps=10, learning_rate=3e-4))
    for step in range(11):
        assert float(ours(step)) == pytest.approx(schedule.get_last_lr()[0], abs=1e-10)
        sgd.step()
        schedule.step()


def test_schedule_landmarks():
    """Zero at first, the peak after the warm-up, half of it half-way, zero at the end."""
    for name in ("linear", "cosine"):
        rate = optimizer.schedule(base.training(schedule=name, warmup_steps=10, steps=110, learning_rate=1.0))
        np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(60), rate(110)], [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)


def test_adamw_against_torch():
    """AdamW with clipping, decay and what is a parameter's own gives torch's numbers; decay leaves out biases and stacked norm scales."""
    torch = pytest.importorskip("torch", reason="the oracle is torch")
    config = base.training(steps=6, learning_rate=1e-2, beta2=0.95, weight_decay=0.3, clip_norm=2.0, schedule="linear", warmup_steps=2)
    params = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in numbers(0).items()}
    overrides, decay = {"blocks.q.kernel": optimizer.Override(0.25, steps=4, std=1.5), "out.bias": optimizer.Override(0.5)}, {"blocks.q.kernel": 0.3}
    groups = [
        {"params": [p], "weight_decay": decay.get(name, 0.0), "override": overrides.get(name, optimizer.Override())} for name, p in params.items()
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3)
    rate = optimizer.schedule(config)
    for step in range(6):
        for name, grad in numbers(step + 1, 3.0).items():
            params[name].grad = torch.from_numpy(grad)
        torch.nn.utils.clip_grad_norm_(params.values(), 2.0)
        for group in adamw.param_groups:
            group["lr"] = float(rate(step)) * group["override"].rate * (step < group["override"].steps)
        adamw.step()
        if step < 4:
            params["blocks.q.kernel"].data *= (1.5 / params["blocks.q.kernel"].data.std()) ** 0.1
    ours = updated(config, 6, 3.0, overrides=overrides)
    error = max(float(np.abs(ours[name] - params[name].detach().numpy()).max()) for name in SHAPES)
    print(f"AdamW against torch: {error:.1e}")
    assert error < 2e-6


def test_decay_covers_matrices_only():
    """With no gradient, matrices shrink by lr · decay a step and everything else stays."""
    changed = updated(base.training(steps=9, learning_rate=0.1, weight_decay=0.5), 2, scale=0.0)
    before = numbers(0)
    np.testing.assert_allclose(changed["blocks.q.kernel"], before["blocks.q.kernel"] * 0.95**2, rtol=1e-6)
    np.testing.assert_array_equal(changed["blocks.norm.scale"], before["blocks.norm.scale"])
    np.testing.assert_array_equal(changed["out.bias"], before["out.bias"])
    assert optimizer.decays(("conv_window", "conv_window", "conv_in", "conv_out")) and not optimizer.decays(("layers", "scalar"))


def test_clipping_scales_the_whole_gradient():
    """Adam's first moment sees gradients of global norm 1; with clip_norm 0 it sees them as they are."""
    grads = numbers(1, 5.0)
    norm = np.sqrt(sum(np.square(grad).sum() for grad in grads.values()))
    for clip_norm, scale in ((1.0, 1 / norm), (0.0, 1.0)):
        transform = optimizer.make(base.training(clip_norm=clip_norm), AXES)
        params = jax.tree.map(jnp.asarray, numbers(0))
        _, state = transform.update(grads, transform.init(params), params)
        moments = next(part for part in state if hasattr(part, "mu")).mu
        for name, grad in grads.items():
            np.testing.assert_allclose(moments[name], 0.1 * grad * scale, rtol=1e-5)


def test_state_is_float32():
    params = {name: jnp.asarray(value, jnp.bfloat16) for name, value in numbers(0).items()}
    moments = next(part for part in optimizer.make(base.training(), AXES).init(params) if hasattr(part, "mu"))
    assert {array.dtype for array in moments.mu.values()} == {jnp.dtype("float32")}


def test_errors_name_the_field():
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'; did you mean 'cosine'\?"):
        optimizer.make(base.training(schedule="cosin"), AXES)
    with pytest.raises(ValueError, match=r"warmup_steps is 10; .* less than steps \(10\)"):
        optimizer.schedule(base.training(steps=10, warmup_steps=10))
