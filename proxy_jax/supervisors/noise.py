"""Flow matching: noise schedules, training targets and the Euler sampler, as pure functions.

x_sigma = (1 - sigma) · x + sigma · noise, the model predicts the velocity noise - x, and timesteps are 1000 · sigma
(Esser et al., arXiv 2403.03206). The tables follow diffusers' FlowMatchEulerDiscreteScheduler 0.42.1, its quirks included.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

TRAIN_STEPS = 1000


def shift_sigmas(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Moves a schedule towards noise (shift > 1): shift · s / (1 + (shift - 1) · s), SD3's equation 23."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def training_sigmas(shift: float) -> np.ndarray:
    """The 1000 sigmas that training draws from, descending, float32."""
    return shift_sigmas(np.linspace(1, TRAIN_STEPS, TRAIN_STEPS, dtype=np.float32)[::-1] / TRAIN_STEPS, shift).astype(np.float32)


def sampling_sigmas(steps: int, shift: float) -> np.ndarray:
    """The steps + 1 sigmas of SD3's sampler, from 1 to 0.

    diffusers spaces them evenly between the ends of the already shifted training table and shifts them again; so do we.
    """
    table = training_sigmas(shift)
    return np.append(shift_sigmas(np.linspace(table[0], table[-1], steps), shift), 0.0).astype(np.float32)


def dynamic_sigmas(steps: int, image_tokens: int, *, base: tuple[int, float] = (256, 0.5), top: tuple[int, float] = (4096, 1.15)) -> np.ndarray:
    """FLUX's steps + 1 sigmas, shifted by e^mu with mu = dynamic_mu(image_tokens, base, top)."""
    shift = math.exp(dynamic_mu(image_tokens, base, top))
    return np.append(shift_sigmas(np.linspace(1, 1 / steps, steps), shift), 0.0).astype(np.float32)


def dynamic_mu(image_tokens: int, base: tuple[int, float], top: tuple[int, float]) -> float:
    """The line through the points `base` and `top`, each (number of image tokens, mu)."""
    return base[1] + (top[1] - base[1]) / (top[0] - base[0]) * (image_tokens - base[0])


@dataclasses.dataclass(frozen=True)
class Weighting:
    """How training chooses timesteps and weighs their losses (diffusers' --weighting_scheme).

    kind: logit_normal | none | sigma_sqrt | cosmap | mode. mean, std: of logit_normal. mode_scale: of mode.
    """

    kind: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    mode_scale: float = 1.29

    def __post_init__(self):
        if self.kind not in ("logit_normal", "none", "sigma_sqrt", "cosmap", "mode"):
            raise ValueError(f"unknown weighting {self.kind!r}: logit_normal, none, sigma_sqrt, cosmap or mode")

    def density(self, normal: jax.Array, uniform: jax.Array) -> jax.Array:
        """u in (0, 1), one an example, from a standard normal and a uniform draw; small u: much noise."""
        if self.kind == "logit_normal":
            return jax.nn.sigmoid(self.mean + self.std * normal)
        if self.kind == "mode":
            return 1 - uniform - self.mode_scale * (jnp.cos(jnp.pi * uniform / 2) ** 2 - 1 + uniform)
        return uniform

    def weight(self, sigmas: jax.Array) -> jax.Array:
        """The loss's weight at each sigma."""
        if self.kind == "sigma_sqrt":
            return sigmas**-2.0
        if self.kind == "cosmap":
            return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
        return jnp.ones_like(sigmas)


def draw_sigmas(keys: jax.Array, weighting: Weighting, shift: float) -> jax.Array:
    """One training sigma for each of the random keys [batch]."""
    normal, uniform = jax.vmap(jax.random.normal)(keys), jax.vmap(jax.random.uniform)(keys)
    return table_sigmas(weighting.density(normal, uniform), shift)


def table_indices(u: jax.Array) -> jax.Array:
    """The places in the training table of u in [0, 1]: floor(1000 · u), int32."""
    return jnp.clip((u * TRAIN_STEPS).astype(jnp.int32), 0, TRAIN_STEPS - 1)


def table_sigmas(u: jax.Array, shift: float) -> jax.Array:
    """The sigmas of the training table there."""
    return jnp.asarray(training_sigmas(shift))[table_indices(u)]


def add_noise(x: jax.Array, noise: jax.Array, sigmas: jax.Array) -> jax.Array:
    """(1 - sigma) · x + sigma · noise with one sigma an example."""
    s = sigmas.reshape(-1, *(1,) * (x.ndim - 1))
    return (1 - s) * x + s * noise


def denoised(velocity: jax.Array, noisy: jax.Array, sigmas: jax.Array) -> jax.Array:
    """The clean latents that a velocity implies, in float32: noisy - sigma · velocity."""
    return noisy - sigmas.reshape(-1, *(1,) * (noisy.ndim - 1)) * velocity.astype(jnp.float32)


def flow_loss(
    velocity: jax.Array, x: jax.Array, noise: jax.Array, sigmas: jax.Array, *, weighting: Weighting, precondition_outputs: bool
) -> jax.Array:
    """The weighted squared error of a predicted velocity, one value an example [batch], in float32.

    precondition_outputs: compare the implied clean latents instead (diffusers' default for SD3): a factor sigma² an example.
    """
    if precondition_outputs:
        error = denoised(velocity, add_noise(x, noise, sigmas), sigmas) - x
    else:
        error = velocity.astype(jnp.float32) - (noise - x)
    return weighting.weight(sigmas) * jnp.mean(jnp.square(error), axis=range(1, x.ndim))


def euler(velocity: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, sigmas: np.ndarray) -> jax.Array:
    """Integrates dx/dsigma = velocity(x, timestep) from `noise` at sigmas[0] down to sigmas[-1]: one scan, steps in float32.

    velocity: of x [batch, ...] and timesteps [batch] = 1000 · sigma.
    """

    def step(x, pair):
        sigma, following = pair
        v = velocity(x, jnp.full(x.shape[0], sigma * TRAIN_STEPS)).astype(jnp.float32)
        return x + (following - sigma) * v, None

    x, _ = jax.lax.scan(step, noise.astype(jnp.float32), (jnp.asarray(sigmas[:-1]), jnp.asarray(sigmas[1:])))
    return x


def unit_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit-normal noise [batch, *shape], each example's from its own key, so never a function of the batch around it."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
