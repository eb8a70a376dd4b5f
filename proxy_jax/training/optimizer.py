"""AdamW with warm-up schedules, as in torch and diffusers, over a flat dict of float32 arrays."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

# name -> from the fraction of the steps after the warm-up that is done (0 to 1) to the fraction of the learning rate
SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
}


def schedule(config: ConfigDict) -> optax.Schedule:
    """The learning rate of a step, counted from 0: a linear warm-up from 0, then `config.schedule` down to 0 at `config.steps`.

    The same values as diffusers' get_scheduler (optimization.py). Raises ValueError on an unknown schedule or if the warm-up
    does not end before the run does.
    """
    if config.schedule not in SCHEDULES:
        near = difflib.get_close_matches(str(config.schedule), SCHEDULES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown schedule {config.schedule!r}; did you mean {near!r}? known: {sorted(SCHEDULES)}")
    if not 0 <= config.warmup_steps < config.steps:
        raise ValueError(f"warmup_steps is {config.warmup_steps}; it must be at least 0 and less than steps ({config.steps})")
    shape, peak, warmup, steps = SCHEDULES[config.schedule], config.learning_rate, config.warmup_steps, config.steps

    def learning_rate(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = step / max(warmup, 1)
        done = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
        return peak * jnp.where(step < warmup, rising, shape(done))

    return learning_rate


def decays(axes: Sequence[str]) -> bool:
    """Whether weight decay applies to a variable with these logical axes: it has two or more besides the stack's "layers"."""
    return sum(axis != "layers" for axis in axes) >= 2


def make(config: ConfigDict, axes: Mapping[str, Sequence[str]], rates: Mapping[str, float] = MappingProxyType({})) -> optax.GradientTransformation:
    """AdamW for parameters {name: float32 array} with logical axes {name: axes}.

    Gradients are clipped to a global norm of `config.clip_norm` (0: not clipped). Weight decay is decoupled (torch's AdamW)
    and leaves out biases and norm scales. rates: of some parameters, by what the learning rate is multiplied. Raises ValueError on an
    unknown schedule.
    """
    slowed = optax.stateless(lambda updates, _: {name: update * rates.get(name, 1.0) for name, update in updates.items()})
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon, mu_dtype=jnp.float32),
        optax.add_decayed_weights(config.weight_decay, mask={name: decays(names) for name, names in axes.items()}),
        optax.scale_by_learning_rate(schedule(config)),
        *([slowed] if rates else []),
    )
