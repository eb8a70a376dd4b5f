"""Discrete-time diffusion (DDPM): the noise schedule, training targets, the Euler and DDIM samplers, as pure functions.

x_t = sqrt(a) · x + sqrt(1 - a) · noise, where a, the cumulative product of alphas at timestep t, falls from 1 towards 0; the model
predicts the noise or the velocity (Ho et al., arXiv 2006.11239; Salimans and Ho, arXiv 2202.00512). Tables and steps follow diffusers'
EulerDiscreteScheduler and DDIMScheduler 0.42.1.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Predict = Callable[[jax.Array, jax.Array], jax.Array]  # of x [batch, ...] and timesteps [batch]
SAMPLERS = ("euler", "ddim")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Field names and defaults as in the official scheduler_config.json. Raises ValueError for schedules that are not supported."""

    beta_start: float
    beta_end: float
    beta_schedule: str
    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"  # epsilon | v_prediction
    timestep_spacing: str = "linspace"  # leading | trailing are supported
    steps_offset: int = 0  # of leading timesteps
    set_alpha_to_one: bool = True  # of DDIM's last step
    trained_betas: None = None
    rescale_betas_zero_snr: bool = False
    use_karras_sigmas: bool = False
    interpolation_type: str = "linear"

    def __post_init__(self):
        choices = dict(beta_schedule=("scaled_linear",), prediction_type=("epsilon", "v_prediction"), timestep_spacing=("leading", "trailing"))
        choices |= dict(trained_betas=(None,), rescale_betas_zero_snr=(False,), use_karras_sigmas=(False,), interpolation_type=("linear",))
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"the scheduler's {name} is {getattr(self, name)!r}; it can be {' or '.join(map(repr, known))}")

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """a at every timestep, float32."""
        roots = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps, dtype=np.float32)
        return np.cumprod(1 - roots**2, dtype=np.float32)

    def timesteps(self, steps: int) -> np.ndarray:
        """The sampler's timesteps, descending, float32. leading: every so many from 0 on; trailing: from the last one down."""
        count = self.num_train_timesteps
        if self.timestep_spacing == "leading":
            return np.float32(np.arange(steps)[::-1] * (count // steps) + self.steps_offset)
        return np.float32(np.round(count - np.arange(steps) * (count / steps)) - 1)

    def sigmas(self, steps: int) -> np.ndarray:
        """The steps + 1 noise levels sqrt((1 - a) / a) of the Euler sampler, float32, the last one 0."""
        a = self.alphas_cumprod
        return np.float32([*np.interp(self.timesteps(steps), np.arange(len(a)), ((1 - a) / a) ** 0.5), 0.0])

    def euler_start(self, steps: int) -> float:
        """What unit noise is multiplied by to begin the Euler sampler."""
        top = float(self.sigmas(steps)[0])
        return (top**2 + 1) ** 0.5 if self.timestep_spacing == "leading" else top

    def ddim_alphas(self, steps: int) -> np.ndarray:
        """a before and after each DDIM step, [steps, 2] float32."""
        before = self.timesteps(steps).astype(int)
        after = before - self.num_train_timesteps // steps
        last = 1.0 if self.set_alpha_to_one else self.alphas_cumprod[0]
        return np.stack([self.alphas_cumprod[before], np.where(after < 0, last, self.alphas_cumprod[after])], axis=1).astype(np.float32)


def _per_example(a: jax.Array, x: jax.Array) -> jax.Array:
    return a.reshape(-1, *(1,) * (x.ndim - 1))


def add_noise(x: jax.Array, noise: jax.Array, a: jax.Array) -> jax.Array:
    """sqrt(a) · x + sqrt(1 - a) · noise with one a an example."""
    a = _per_example(a, x)
    return jnp.sqrt(a) * x + jnp.sqrt(1 - a) * noise


def target(x: jax.Array, noise: jax.Array, a: jax.Array, prediction_type: str) -> jax.Array:
    """What the model is to predict: the noise, or the velocity sqrt(a) · noise - sqrt(1 - a) · x."""
    if prediction_type == "epsilon":
        return noise
    a = _per_example(a, x)
    return jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * x


def signal_to_noise(a: jax.Array) -> jax.Array:
    """a / (1 - a)."""
    return a / (1 - a)


def min_snr_weight(a: jax.Array, gamma: float, prediction_type: str) -> jax.Array:
    """The loss's weight at each a: min(snr, gamma) / snr of the noise, / (snr + 1) of the velocity (Hang et al., arXiv 2303.09556)."""
    snr = signal_to_noise(a)
    return jnp.minimum(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1)


def diffusion_loss(prediction: jax.Array, x: jax.Array, noise: jax.Array, a: jax.Array, *, prediction_type: str, snr_gamma: float) -> jax.Array:
    """The squared error of a prediction, one value an example [batch], in float32; snr_gamma: of min-SNR weighting, 0: unweighted."""
    error = prediction.astype(jnp.float32) - target(x, noise, a, prediction_type)
    loss = jnp.mean(jnp.square(error), axis=range(1, x.ndim))
    return loss if snr_gamma == 0 else min_snr_weight(a, snr_gamma, prediction_type) * loss


def draw_timesteps(keys: jax.Array, count: int) -> jax.Array:
    """One timestep of 0 .. count - 1, int32, for each of the random keys [batch]."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)


def _steps(step: Callable, start: jax.Array, *schedule: np.ndarray) -> jax.Array:
    """`start` after step(x, row) for the rows of `schedule`: one scan, in float32."""
    x, _ = jax.lax.scan(lambda x, row: (step(x, *row), None), start.astype(jnp.float32), tuple(map(jnp.asarray, schedule)))
    return x


def euler(predict: Predict, start: jax.Array, timesteps: np.ndarray, sigmas: np.ndarray, prediction_type: str) -> jax.Array:
    """Integrates from `start`, of noise level sigmas[0], down to sigmas[-1]. The model sees x / sqrt(sigma² + 1)."""

    def step(x: jax.Array, t: jax.Array, sigma: jax.Array, following: jax.Array) -> jax.Array:
        scale = jax.lax.rsqrt(sigma**2 + 1)
        slope = predict(x * scale, jnp.full(x.shape[0], t)).astype(jnp.float32)
        if prediction_type == "v_prediction":  # (x - clean) / sigma, with clean = x / (sigma² + 1) - v · sigma / sqrt(sigma² + 1)
            slope = scale * slope + x * sigma * scale**2
        return x + (following - sigma) * slope

    return _steps(step, start, timesteps, sigmas[:-1], sigmas[1:])


def ddim(predict: Predict, start: jax.Array, timesteps: np.ndarray, alphas: np.ndarray, prediction_type: str) -> jax.Array:
    """The deterministic sampler (eta 0) of Song et al., arXiv 2010.02502, from unit noise; alphas [steps, 2]: a before and after each step."""

    def step(x: jax.Array, t: jax.Array, pair: jax.Array) -> jax.Array:
        a, following = pair
        prediction = predict(x, jnp.full(x.shape[0], t)).astype(jnp.float32)
        if prediction_type == "epsilon":
            clean, noise = (x - jnp.sqrt(1 - a) * prediction) / jnp.sqrt(a), prediction
        else:
            clean, noise = jnp.sqrt(a) * x - jnp.sqrt(1 - a) * prediction, jnp.sqrt(a) * prediction + jnp.sqrt(1 - a) * x
        return jnp.sqrt(following) * clean + jnp.sqrt(1 - following) * noise

    return _steps(step, start, timesteps, alphas)


def sample(sampler: str, predict: Predict, noise: jax.Array, schedule: Schedule, steps: int) -> jax.Array:
    """What `predict` makes of unit noise in so many steps of a sampler of SAMPLERS."""
    timesteps = schedule.timesteps(steps)
    if sampler == "ddim":
        return ddim(predict, noise, timesteps, schedule.ddim_alphas(steps), schedule.prediction_type)
    return euler(predict, noise * schedule.euler_start(steps), timesteps, schedule.sigmas(steps), schedule.prediction_type)
