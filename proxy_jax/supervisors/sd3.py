"""The supervisors SD3 and SD3.5: three text encoders, the MMDiT denoiser, flow matching, the 16-channel autoencoder."""

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

from proxy_jax.models import parameters
from proxy_jax.models.layers import Compute, split_keys
from proxy_jax.models.mmdit import SD3Config, SD3Transformer
from proxy_jax.supervisors import noise
from proxy_jax.supervisors.latent import LatentSupervisor, NewTokens, Text, guided, of_config, start_noise
from proxy_jax.weights import hub, mmdit


@functools.partial(parameters.jit, static_argnames=("shape", "steps", "shift", "guidance_scale"))
def sample_latents(
    model: SD3Transformer,
    text: Text,
    unconditional: Text,
    seed: jax.Array,
    indices: jax.Array,
    *,
    shape: tuple[int, int, int],
    steps: int,
    shift: float,
    guidance_scale: float,
) -> jax.Array:
    """Scaled latents [batch, *shape] by Euler steps from noise that depends on (seed, index) alone; the whole loop in one program.

    text, unconditional: prompt_embeds [batch, length, width] and pooled [batch, width].
    """

    def velocity(x: jax.Array, timesteps: jax.Array, text: Text) -> jax.Array:
        return model(x, timesteps, text["prompt_embeds"], text["pooled"])

    predict = guided(velocity, text, unconditional, guidance_scale)
    return noise.euler(predict, start_noise(seed, indices, shape), noise.sampling_sigmas(steps, shift))


@dataclasses.dataclass(kw_only=True)
class SD3Supervisor(LatentSupervisor):
    """Stable Diffusion 3 and 3.5 as a learner.

    max_sequence_length: T5 tokens; with_t5: False puts zeros in place of T5's features; weighting, precondition_outputs: of the loss
    (proxy_jax/supervisors/noise.py).
    """

    max_sequence_length: int
    with_t5: bool
    weighting: noise.Weighting
    precondition_outputs: bool

    crop = "bilinear"
    lora_prefix = "transformer"
    model_class = SD3Transformer
    config_class = SD3Config
    names = staticmethod(mmdit.table)
    clips = MappingProxyType({"text_encoder": True, "text_encoder_2": True})

    @functools.cached_property
    def shift(self) -> float:
        """The scheduler's timestep shift."""
        return float(hub.read_json(self.folder / "scheduler" / "scheduler_config.json")["shift"])

    def settings(self) -> dict[str, Any]:
        """What else of the checkpoint decides how the denoiser is tuned and drawn from: the scheduler's shift."""
        return {"shift": self.shift}

    def encoders(self) -> dict[str, Any]:
        """All that decides what the frozen encoders return: files and folders (as Path) and settings."""
        names = ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
        names += ["text_encoder_3", "tokenizer_3"] if self.with_t5 else []
        settings = {"resolution": self.resolution, "max_sequence_length": self.max_sequence_length, "dtype": jnp.dtype(self.compute.dtype).name}
        return {name: self.folder / name for name in names} | settings | self.text_settings()

    def t5_states(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """The column t5 [n, max_sequence_length, joint_attention_dim] float32: T5's states, or zeros."""
        if self.with_t5:
            return {"t5": self.t5("_3", prompts, self.max_sequence_length)}
        return {"t5": np.zeros((len(prompts), self.max_sequence_length, self.config.joint_attention_dim), np.float32)}

    def combine(self, states: Sequence[jax.Array], pooled: Sequence[jax.Array], t5: jax.Array) -> dict[str, jax.Array]:
        """prompt_embeds [n, clip + t5 tokens, joint_attention_dim] and pooled [n, width].

        The two CLIPs' penultimate states stand side by side, padded with zeros to T5's width, before T5's states; no masks (diffusers).
        """
        both = jnp.concatenate(states, axis=-1)
        both = jnp.pad(both, ((0, 0), (0, 0), (0, self.config.joint_attention_dim - both.shape[-1])))
        return {"prompt_embeds": jnp.concatenate([both, t5], axis=1), "pooled": jnp.concatenate(pooled, axis=-1)}

    def loss(self, model: nnx.Module, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
        """The flow-matching loss of each example [batch]; batch: latent_mean, latent_std, the text columns, row_index (of the randomness)."""
        model, batch = self.conditioned(model, batch)
        keys_latent, keys_noise, keys_sigma = split_keys(jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row_index"]), 3)
        x = self.draw_latents(batch, keys_latent)
        unit = noise.unit_noise(keys_noise, x.shape[1:])
        sigmas = noise.draw_sigmas(keys_sigma, self.weighting, self.shift)
        noisy = noise.add_noise(x, unit, sigmas)
        velocity = model(noisy, sigmas * noise.TRAIN_STEPS, batch["prompt_embeds"], batch["pooled"])
        return noise.flow_loss(velocity, x, unit, sigmas, weighting=self.weighting, precondition_outputs=self.precondition_outputs)

    def sample(
        self, model: SD3Transformer, text: Text, unconditional: Text, seed: jax.Array, indices: jax.Array, options: Mapping[str, Any]
    ) -> jax.Array:
        """Scaled latents by flow-matching Euler steps; options: steps, guidance_scale."""
        return sample_latents(model, text, unconditional, seed, indices, shape=self.latent_shape, shift=self.shift, **options)


def make(fields: ConfigDict, tuning: ConfigDict, compute: Compute, locate: Callable[[str], Path], new_tokens: NewTokens | None) -> SD3Supervisor:
    """The supervisor that the config's `supervisor` and `subject_tuning` describe; locate: from a checkpoint's name to its folder."""
    supervisor = SD3Supervisor(
        **of_config(fields, tuning, compute, locate, new_tokens),
        max_sequence_length=fields.max_sequence_length,
        with_t5=fields.t5,
        weighting=noise.Weighting(tuning.weighting),
        precondition_outputs=tuning.precondition_outputs,
    )
    supervisor.check_resolution(supervisor.config.patch_size)
    return supervisor
