"""The supervisor SDXL: two CLIP text encoders, the UNet denoiser, discrete-time diffusion, the 4-channel autoencoder."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.models.layers import Compute, split_keys
from proxy_jax.models.unet import UNet, UNetConfig
from proxy_jax.supervisors import diffusion, noise
from proxy_jax.supervisors.diffusion import Schedule
from proxy_jax.supervisors.latent import LatentSupervisor, NewTokens, Text, guided, of_config, start_noise
from proxy_jax.weights import hub, unet


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """The field of model_index.json that sampling depends on, with diffusers' default."""

    force_zeros_for_empty_prompt: bool = True  # guide away from zeros, not from the encoded empty prompt


@functools.partial(parameters.jit, static_argnames=("shape", "time_ids", "schedule", "sampler", "steps", "guidance_scale"))
def sample_latents(
    model: UNet,
    text: Text,
    unconditional: Text,
    seed: jax.Array,
    indices: jax.Array,
    *,
    shape: tuple[int, int, int],
    time_ids: tuple[int, ...],
    schedule: Schedule,
    sampler: str,
    steps: int,
    guidance_scale: float,
) -> jax.Array:
    """Scaled latents [batch, *shape] from noise that depends on (seed, index) alone; the whole loop in one program.

    text, unconditional: prompt_embeds [batch, length, width] and pooled [batch, width]; time_ids: as UNet takes them, for all pictures.
    """

    def prediction(x: jax.Array, timesteps: jax.Array, text: Text) -> jax.Array:
        ids = jnp.broadcast_to(jnp.asarray(time_ids, jnp.float32), (len(x), len(time_ids)))
        return model(x, timesteps, text["prompt_embeds"], text["pooled"], ids)

    predict = guided(prediction, text, unconditional, guidance_scale)
    return diffusion.sample(sampler, predict, start_noise(seed, indices, shape), schedule, steps)


@dataclasses.dataclass(kw_only=True)
class SDXLSupervisor(LatentSupervisor):
    """Stable Diffusion XL as a learner. sampler: one of diffusion.SAMPLERS; snr_gamma: of the loss's min-SNR weighting, 0: unweighted."""

    sampler: str
    snr_gamma: float

    crop = "lanczos"
    lora_prefix = "unet"
    model_class = UNet
    config_class = UNetConfig
    names = staticmethod(unet.table)
    clips = MappingProxyType({"text_encoder": False, "text_encoder_2": True})

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The scheduler's noise schedule. Raises CheckpointError for one that is not supported."""
        path = self.folder / "scheduler" / "scheduler_config.json"
        try:
            return hub.config_from(Schedule, path)
        except ValueError as error:
            raise hub.CheckpointError(f"{path}: {error}") from error

    @functools.cached_property
    def zeros_for_empty_prompt(self) -> bool:
        """Whether guidance is away from zeros, not from the encoded empty prompt."""
        return hub.config_from(PipelineConfig, self.folder / "model_index.json").force_zeros_for_empty_prompt

    def settings(self) -> dict[str, Any]:
        """What else of the checkpoint decides how the denoiser is tuned and drawn from: the schedule, and what stands for no prompt."""
        return {"schedule": dataclasses.asdict(self.schedule), "zeros_for_empty_prompt": self.zeros_for_empty_prompt}

    def encoders(self) -> dict[str, Any]:
        """All that decides what the frozen encoders return: files and folders (as Path) and settings."""
        names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        settings = {"resolution": self.resolution, "dtype": jnp.dtype(self.compute.dtype).name}
        return {name: self.folder / name for name in names} | settings | self.text_settings()

    def combine(self, states: Sequence[jax.Array], pooled: Sequence[jax.Array], t5: None = None) -> dict[str, jax.Array]:
        """prompt_embeds [n, tokens, cross_attention_dim], both encoders' penultimate states side by side, and pooled [n, width] of the second."""
        return {"prompt_embeds": jnp.concatenate(states, axis=-1), "pooled": pooled[1]}

    def crop_columns(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """time_ids [n, 6] float32: height and width before the crop, its top and left, and twice the resolution (the paper's section 2.2)."""
        return {"time_ids": np.concatenate([crops, np.full((len(crops), 2), self.resolution)], axis=1).astype(np.float32)}

    def encode_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """latent_mean, latent_std [n, h, w, channels] float32 of images [n, resolution, resolution, 3] uint8; time_ids of uncropped ones."""
        return super().encode_images(images) | self.crop_columns(np.tile((self.resolution, self.resolution, 0, 0), (len(images), 1)))

    def loss(self, model: nnx.Module, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
        """The diffusion loss of each example [batch].

        batch: latent_mean, latent_std, time_ids, the text columns, row_index (of the randomness).
        """
        model, batch = self.conditioned(model, batch)
        keys_latent, keys_noise, keys_time = split_keys(jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row_index"]), 3)
        x = self.draw_latents(batch, keys_latent)
        unit = noise.unit_noise(keys_noise, x.shape[1:])
        timesteps = diffusion.draw_timesteps(keys_time, self.schedule.num_train_timesteps)
        a = jnp.asarray(self.schedule.alphas_cumprod)[timesteps]
        prediction = model(diffusion.add_noise(x, unit, a), timesteps, batch["prompt_embeds"], batch["pooled"], batch["time_ids"])
        return diffusion.diffusion_loss(prediction, x, unit, a, prediction_type=self.schedule.prediction_type, snr_gamma=self.snr_gamma)

    def sample(self, model: UNet, text: Text, unconditional: Text, seed: jax.Array, indices: jax.Array, options: Mapping[str, Any]) -> jax.Array:
        """Scaled latents by the chosen sampler, told of an uncropped picture; options: steps, guidance_scale."""
        if self.zeros_for_empty_prompt:
            unconditional = sharding.apply(lambda text: jax.tree.map(jnp.zeros_like, text), dict(unconditional))
        side = self.resolution
        fixed = dict(shape=self.latent_shape, time_ids=(side, side, 0, 0, side, side), schedule=self.schedule, sampler=self.sampler)
        return sample_latents(model, text, unconditional, seed, indices, **fixed, **options)


def make(fields: ConfigDict, tuning: ConfigDict, compute: Compute, locate: Callable[[str], Path], new_tokens: NewTokens | None) -> SDXLSupervisor:
    """The supervisor that the config's `supervisor` and `subject_tuning` describe; locate: from a checkpoint's name to its folder."""
    supervisor = SDXLSupervisor(
        **of_config(fields, tuning, compute, locate, new_tokens),
        sampler=fields.sampler,
        snr_gamma=tuning.snr_gamma,
    )
    supervisor.check_resolution(2 ** (len(supervisor.config.block_out_channels) - 1))
    return supervisor
