"""The supervisors SD3 and SD3.5: three text encoders, the MMDiT denoiser, flow matching, the 16-channel autoencoder."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from transformers import AutoTokenizer

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.clip import CLIPText, CLIPTextConfig
from proxy_jax.models.layers import Compute, split_keys
from proxy_jax.models.mmdit import SD3Config, SD3Transformer
from proxy_jax.models.t5 import T5Config, T5Encoder
from proxy_jax.supervisors import noise
from proxy_jax.weights import autoencoder_kl, clip, hub, mmdit, t5
from proxy_jax.weights.table import Table


@parameters.jit
def _encode_clip(encoder: CLIPText, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = encoder(ids)
    return out.penultimate.astype(jnp.float32), out.text_embeds.astype(jnp.float32)


@parameters.jit
def _encode_t5(encoder: T5Encoder, ids: jax.Array) -> jax.Array:
    return encoder(ids).astype(jnp.float32)


@parameters.jit
def _encode_images(vae: AutoencoderKL, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision("highest"):
        mean, logvar = vae.moments(images.astype(jnp.float32) / 127.5 - 1)
    return mean, jnp.exp(0.5 * logvar)


@parameters.jit
def _decode_latents(vae: AutoencoderKL, latents: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        pixels = jnp.clip(vae.decode(vae.unscale(latents)).astype(jnp.float32), -1, 1)
    return jnp.round((pixels + 1) * 127.5).astype(jnp.uint8)


@functools.partial(parameters.jit, static_argnames=("shape", "steps", "shift", "guidance_scale"))
def sample_latents(
    model: SD3Transformer,
    text: Mapping[str, jax.Array],
    unconditional: Mapping[str, jax.Array],
    seed: jax.Array,
    indices: jax.Array,
    *,
    shape: tuple[int, int, int],
    steps: int,
    shift: float,
    guidance_scale: float,
) -> jax.Array:
    """Scaled latents [batch, *shape] by Euler steps from noise that depends on (seed, index) alone; the whole loop in one program.

    text, unconditional: prompt_embeds [batch, length, width] and pooled [batch, width]. Guidance runs as one doubled batch; 1 is off.
    """
    start = noise.unit_noise(jax.vmap(jax.random.fold_in, (None, 0))(seed, indices), shape)
    guided = guidance_scale != 1.0
    if guided:
        text = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), dict(unconditional), dict(text))

    def velocity(x: jax.Array, timesteps: jax.Array) -> jax.Array:
        if not guided:
            return model(x, timesteps, text["prompt_embeds"], text["pooled"])
        twice = model(jnp.concatenate([x, x]), jnp.concatenate([timesteps, timesteps]), text["prompt_embeds"], text["pooled"])
        without, with_prompt = jnp.split(twice.astype(jnp.float32), 2)
        return without + guidance_scale * (with_prompt - without)

    return noise.euler(velocity, start, noise.sampling_sigmas(steps, shift))


@dataclasses.dataclass
class SD3Supervisor:
    """Stable Diffusion 3 and 3.5 as a learner (see proxy_jax/stages/tuning.py for the protocol). Parts load when first needed.

    folder: a checkpoint in the diffusers layout; resolution: in pixels; max_sequence_length: T5 tokens; with_t5: False puts zeros in
    place of T5's features; weighting, precondition_outputs: of the loss (proxy_jax/supervisors/noise.py).
    """

    folder: Path
    resolution: int
    max_sequence_length: int
    with_t5: bool
    weighting: noise.Weighting
    precondition_outputs: bool
    compute: Compute

    crop = "bilinear"
    lora_prefix = "transformer"

    @functools.cached_property
    def config(self) -> SD3Config:
        """The denoiser's sizes."""
        return hub.config_from(SD3Config, self.base / "config.json")

    @functools.cached_property
    def shift(self) -> float:
        """The scheduler's timestep shift."""
        return float(hub.read_json(self.folder / "scheduler" / "scheduler_config.json")["shift"])

    @property
    def base(self) -> Path:
        """The denoiser's folder."""
        return self.folder / "transformer"

    def settings(self) -> dict[str, Any]:
        """What else of the checkpoint decides how the denoiser is tuned and drawn from: the scheduler's shift."""
        return {"shift": self.shift}

    @property
    def table(self) -> Table:
        return mmdit.table(self.config)

    def encoders(self) -> dict[str, Any]:
        """All that decides what the frozen encoders return: files and folders (as Path) and settings."""
        names = ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
        names += ["text_encoder_3", "tokenizer_3"] if self.with_t5 else []
        settings = {"resolution": self.resolution, "max_sequence_length": self.max_sequence_length, "dtype": jnp.dtype(self.compute.dtype).name}
        return {name: self.folder / name for name in names} | settings

    def _dtype(self, name: str) -> Any:
        return self.compute.dtype

    def _tokenize(self, tokenizer: str, prompts: Sequence[str], length: int) -> np.ndarray:
        tokenizer = AutoTokenizer.from_pretrained(self.folder / tokenizer)
        return tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="np")["input_ids"]

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """prompt_embeds [n, clip + t5 tokens, joint_attention_dim] and pooled [n, width], float32; each encoder is loaded, run and freed.

        The two CLIPs' penultimate states stand side by side, padded with zeros to T5's width, before T5's states; no masks (diffusers).
        """
        states, pooled = [], []
        for number in ("", "_2"):
            encoder = hub.load_pretrained(
                self.folder / f"text_encoder{number}", CLIPText, CLIPTextConfig, clip.text_table, compute=self.compute, dtype_of=self._dtype
            )
            ids = self._tokenize(f"tokenizer{number}", prompts, encoder.config.max_position_embeddings)
            outputs = [[sharding.to_host(part) for part in _encode_clip(encoder, ids[i : i + 1])] for i in range(len(ids))]
            states.append(np.concatenate([penultimate for penultimate, _ in outputs]))
            pooled.append(np.concatenate([embeds for _, embeds in outputs]))
            del encoder
        both = np.concatenate(states, axis=-1)
        both = np.pad(both, ((0, 0), (0, 0), (0, self.config.joint_attention_dim - both.shape[-1])))
        return {"prompt_embeds": np.concatenate([both, self._t5(prompts)], axis=1), "pooled": np.concatenate(pooled, axis=-1)}

    def _t5(self, prompts: Sequence[str]) -> np.ndarray:
        if not self.with_t5:
            return np.zeros((len(prompts), self.max_sequence_length, self.config.joint_attention_dim), np.float32)
        encoder = hub.load_pretrained(self.folder / "text_encoder_3", T5Encoder, T5Config, t5.table, compute=self.compute, dtype_of=self._dtype)
        ids = self._tokenize("tokenizer_3", prompts, self.max_sequence_length)
        return np.concatenate([sharding.to_host(_encode_t5(encoder, ids[i : i + 1])) for i in range(len(ids))])

    @functools.cached_property
    def vae_config(self) -> AutoencoderKLConfig:
        """The autoencoder's sizes and the affine map from its latents to the denoiser's."""
        return hub.config_from(AutoencoderKLConfig, self.folder / "vae" / "config.json")

    @functools.cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, in float32."""
        return hub.load_pretrained(self.folder / "vae", AutoencoderKL, AutoencoderKLConfig, autoencoder_kl.table, compute=Compute())

    def encode_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """latent_mean, latent_std [n, h, w, channels] float32 of images [n, resolution, resolution, 3] uint8: latents are drawn anew each step."""
        mean, std = _encode_images(self.vae, sharding.put_batch(images, sharding.current()))
        return {"latent_mean": sharding.to_host(mean), "latent_std": sharding.to_host(std)}

    def load_model(self, dtype_of: Callable[[str], Any], tuned: Path | None = None) -> SD3Transformer:
        """The denoiser to tune or draw from; tuned: a folder that `save_model` wrote, in place of the base weights."""
        folder = self.base if tuned is None else tuned / "transformer"
        return hub.load_pretrained(folder, SD3Transformer, SD3Config, mmdit.table, compute=self.compute, dtype_of=dtype_of)

    def save_model(self, model: SD3Transformer, folder: Path) -> None:
        """Writes the whole denoiser as a diffusers `transformer` folder."""
        config = hub.read_json(self.base / "config.json")
        hub.save_pretrained(model, self.table, folder / "transformer", config=config, filename="diffusion_pytorch_model.safetensors")

    def loss(self, model: SD3Transformer, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
        """The flow-matching loss of each example [batch]; batch: latent_mean, latent_std, prompt_embeds, pooled, row_index (of the randomness)."""
        keys_latent, keys_noise, keys_sigma = split_keys(jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row_index"]), 3)
        mean = batch["latent_mean"]
        latents = mean + batch["latent_std"] * noise.unit_noise(keys_latent, mean.shape[1:])
        x = (latents - (self.vae_config.shift_factor or 0.0)) * self.vae_config.scaling_factor
        unit = noise.unit_noise(keys_noise, mean.shape[1:])
        sigmas = noise.draw_sigmas(keys_sigma, self.weighting, self.shift)
        noisy = noise.add_noise(x, unit, sigmas)
        velocity = model(noisy, sigmas * noise.TRAIN_STEPS, batch["prompt_embeds"], batch["pooled"])
        return noise.flow_loss(velocity, x, unit, sigmas, weighting=self.weighting, precondition_outputs=self.precondition_outputs)

    def draw(
        self,
        model: SD3Transformer,
        text: Mapping[str, np.ndarray],
        unconditional: Mapping[str, np.ndarray],
        seed: int,
        indices: np.ndarray,
        options: Mapping[str, Any],
    ) -> np.ndarray:
        """Pictures [batch, resolution, resolution, 3] uint8, one a row of `text`; options: steps, guidance_scale.

        unconditional: the encoded empty prompt, one row.
        """
        mesh = sharding.current()
        empty = {name: np.repeat(value, len(indices), axis=0) for name, value in unconditional.items()}
        text, empty, indices = sharding.put_batch((dict(text), empty, np.asarray(indices, np.int32)), mesh)
        side = self.resolution // self.vae_config.downsample
        shape = (side, side, self.config.in_channels)
        latents = sample_latents(model, text, empty, jax.random.key(seed), indices, shape=shape, shift=self.shift, **options)
        return sharding.to_host(_decode_latents(self.vae, latents))


def make(fields: ConfigDict, tuning: ConfigDict, compute: Compute, locate: Callable[[str], Path]) -> SD3Supervisor:
    """The supervisor that the config's `supervisor` and `subject_tuning` describe; locate: from a checkpoint's name to its folder."""
    supervisor = SD3Supervisor(
        folder=locate(fields.checkpoint),
        resolution=fields.resolution,
        max_sequence_length=fields.max_sequence_length,
        with_t5=fields.t5,
        weighting=noise.Weighting(tuning.weighting),
        precondition_outputs=tuning.precondition_outputs,
        compute=compute,
    )
    multiple = supervisor.vae_config.downsample * supervisor.config.patch_size
    if fields.resolution % multiple:
        raise hub.CheckpointError(f"supervisor.resolution is {fields.resolution}; {supervisor.folder} draws multiples of {multiple}")
    return supervisor
