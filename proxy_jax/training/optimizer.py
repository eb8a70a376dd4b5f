"""AdamW with warm-up schedules, as in torch and diffusers, over a flat dict of float32 arrays."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

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


class Override(NamedTuple):
    """What is a parameter's own: a factor of the learning rate, after how many steps it stays as it is, and a standard deviation to keep to.

    The last, if it is not 0: after each step the parameter is multiplied by (std / its standard deviation)^0.1, as diffusers' scripts for
    pivotal tuning do with the embeddings of new tokens.
    """

    rate: float = 1.0
    steps: float = math.inf
    std: float = 0.0


def make(
    config: ConfigDict, axes: Mapping[str, Sequence[str]], overrides: Mapping[str, Override] = MappingProxyType({})
) -> optax.GradientTransformation:
    """AdamW for parameters {name: float32 array} with logical axes {name: axes}.

    Gradients are clipped to a global norm of `config.clip_norm` (0: not clipped). Weight decay is decoupled (torch's AdamW)
    and leaves out biases and norm scales. overrides: of some parameters. Raises ValueError on an unknown schedule.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon, mu_dtype=jnp.float32),
        optax.add_decayed_weights(config.weight_decay, mask={name: decays(names) for name, names in axes.items()}),
        optax.scale_by_learning_rate(schedule(config)),
        *([_overridden(overrides)] if overrides else []),
    )


def _overridden(overrides: Mapping[str, Override]) -> optax.GradientTransformation:
    """Changes the final updates of some parameters as their `Override` says. Its state is the number of steps done."""

    def update(updates: dict[str, jax.Array], step: jax.Array, params: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        def changed(name: str, rate: float, steps: float, std: float) -> jax.Array:
            change = updates[name] * rate
            if std:
                new = params[name] + change
                change = new * (std / jnp.std(new, ddof=1)) ** 0.1 - params[name]
            return jnp.where(step < steps, change, 0.0)

        return updates | {name: changed(name, *values) for name, values in overrides.items()}, step + 1

    return optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)
