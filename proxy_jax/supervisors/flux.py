"""The supervisor FLUX.1: CLIP and T5 text encoders, the double- and single-stream denoiser, flow matching, the 16-channel autoencoder."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from proxy_jax.models import parameters
from proxy_jax.models.flux import PATCH, FluxConfig, FluxTransformer
from proxy_jax.models.layers import Compute, split_keys
from proxy_jax.supervisors import noise
from proxy_jax.supervisors.latent import LatentSupervisor, NewTokens, Text, of_config, start_noise
from proxy_jax.weights import flux, hub

TRAIN_GUIDANCE = 1.0  # diffusers' command for the DreamBooth LoRA of FLUX.1-dev; its script's default is 3.5
Ends = tuple[tuple[int, float], tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Shift:
    """How the scheduler moves its noise levels; field names and defaults as in scheduler_config.json. Raises ValueError for other ways."""

    shift: float = 1.0  # without dynamic shifting
    use_dynamic_shifting: bool = False
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15
    time_shift_type: str = "exponential"
    shift_terminal: float | None = None

    def __post_init__(self):
        if self.time_shift_type != "exponential" or self.shift_terminal:
            raise ValueError(f"time_shift_type is {self.time_shift_type!r}, shift_terminal {self.shift_terminal}; known: 'exponential' and None")

    @property
    def ends(self) -> Ends:
        """Two points (number of image tokens, mu) of the line on which sampling's mu is: e^mu is the shift."""
        if self.use_dynamic_shifting:
            return (self.base_image_seq_len, self.base_shift), (self.max_image_seq_len, self.max_shift)
        return (0, math.log(self.shift)), (1, math.log(self.shift))

    @property
    def training(self) -> float:
        """The shift of training's noise levels: diffusers' scripts train without the dynamic one."""
        return 1.0 if self.use_dynamic_shifting else self.shift


@functools.partial(parameters.jit, static_argnames=("shape", "steps", "ends"))
def sample_latents(
    model: FluxTransformer,
    text: Text,
    seed: jax.Array,
    indices: jax.Array,
    *,
    shape: tuple[int, int, int],
    steps: int,
    ends: Ends,
    guidance_scale: float,
) -> jax.Array:
    """Scaled latents [batch, *shape] by Euler steps from noise that depends on (seed, index) alone; the whole loop in one program.

    text: prompt_embeds [batch, length, width] and pooled [batch, width]; ends: as in Shift.
    """

    def velocity(x: jax.Array, timesteps: jax.Array) -> jax.Array:
        return model(x, timesteps, text["prompt_embeds"], text["pooled"], guidance_of(model.config, len(x), guidance_scale))

    height, width, _ = shape
    sigmas = noise.dynamic_sigmas(steps, height * width // PATCH**2, base=ends[0], top=ends[1])
    return noise.euler(velocity, start_noise(seed, indices, shape), sigmas)


def guidance_of(config: FluxConfig, batch: int, scale: float) -> jax.Array | None:
    """The guidance scale of each example [batch] as the denoiser takes it: None for one that was not distilled with guidance (schnell)."""
    return jnp.full(batch, scale, jnp.float32) if config.guidance_embeds else None


@dataclasses.dataclass(kw_only=True)
class FluxSupervisor(LatentSupervisor):
    """FLUX.1 (dev, schnell) as a learner. max_sequence_length: T5 tokens; weighting: of the loss (proxy_jax/supervisors/noise.py)."""

    max_sequence_length: int
    weighting: noise.Weighting

    crop = "bilinear"
    lora_prefix = "transformer"
    model_class = FluxTransformer
    config_class = FluxConfig
    names = staticmethod(flux.table)
    clips = MappingProxyType({"text_encoder": False})

    @functools.cached_property
    def shift(self) -> Shift:
        """How the scheduler moves its noise levels. Raises CheckpointError for a way that is not supported."""
        path = self.folder / "scheduler" / "scheduler_config.json"
        try:
            return hub.config_from(Shift, path)
        except ValueError as error:
            raise hub.CheckpointError(f"{path}: {error}") from error

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture's latents, before they are packed."""
        side = self.resolution // self.vae_config.downsample
        return side, side, self.config.latent_channels

    def settings(self) -> dict[str, Any]:
        """What else of the checkpoint decides how the denoiser is tuned and drawn from: the scheduler's shift."""
        return {"shift": dataclasses.asdict(self.shift)}

    def encoders(self) -> dict[str, Any]:
        """All that decides what the frozen encoders return: files and folders (as Path) and settings."""
        names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        settings = {"resolution": self.resolution, "max_sequence_length": self.max_sequence_length, "dtype": jnp.dtype(self.compute.dtype).name}
        return {name: self.folder / name for name in names} | settings | self.text_settings()

    def t5_states(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """The column t5 [n, max_sequence_length, joint_attention_dim] float32."""
        return {"t5": self.t5("_2", prompts, self.max_sequence_length)}

    def combine(self, states: Sequence[jax.Array], pooled: Sequence[jax.Array], t5: jax.Array) -> dict[str, jax.Array]:
        """prompt_embeds [n, max_sequence_length, joint_attention_dim], T5's states, and pooled [n, width], CLIP's; no masks (diffusers)."""
        return {"prompt_embeds": t5, "pooled": pooled[0]}

    def loss(self, model: nnx.Module, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
        """The flow-matching loss of each example [batch]; batch: latent_mean, latent_std, the text columns, row_index (of the randomness)."""
        model, batch = self.conditioned(model, batch)
        keys_latent, keys_noise, keys_sigma = split_keys(jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row_index"]), 3)
        x = self.draw_latents(batch, keys_latent)
        unit = noise.unit_noise(keys_noise, x.shape[1:])
        sigmas = noise.draw_sigmas(keys_sigma, self.weighting, self.shift.training)
        noisy, guidance = noise.add_noise(x, unit, sigmas), guidance_of(model.config, len(x), TRAIN_GUIDANCE)
        velocity = model(noisy, sigmas * noise.TRAIN_STEPS, batch["prompt_embeds"], batch["pooled"], guidance)
        return noise.flow_loss(velocity, x, unit, sigmas, weighting=self.weighting, precondition_outputs=False)

    def sample(
        self, model: FluxTransformer, text: Text, unconditional: Text, seed: jax.Array, indices: jax.Array, options: Mapping[str, Any]
    ) -> jax.Array:
        """As LatentSupervisor's, without `unconditional`: the guidance scale is an input of the denoiser."""
        return sample_latents(model, text, seed, indices, shape=self.latent_shape, ends=self.shift.ends, **options)


def make(fields: ConfigDict, tuning: ConfigDict, compute: Compute, locate: Callable[[str], Path], new_tokens: NewTokens | None) -> FluxSupervisor:
    """The supervisor that the config's `supervisor` and `subject_tuning` describe; locate: from a checkpoint's name to its folder."""
    supervisor = FluxSupervisor(
        **of_config(fields, tuning, compute, locate, new_tokens),
        max_sequence_length=fields.max_sequence_length,
        weighting=noise.Weighting(tuning.weighting),
    )
    supervisor.check_resolution(PATCH)
    return supervisor
