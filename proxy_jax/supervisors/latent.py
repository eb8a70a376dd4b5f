"""What latent diffusion supervisors share: a diffusers pipeline's CLIP and T5 encoders and autoencoder, its denoiser's files, guidance."""

import abc
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.clip import CLIPText, CLIPTextConfig
from proxy_jax.models.layers import Compute, subject_embed
from proxy_jax.models.t5 import T5Config, T5Encoder
from proxy_jax.supervisors import noise
from proxy_jax.weights import autoencoder_kl, clip, hub, t5
from proxy_jax.weights.table import Part, Table
from proxy_jax.weights.tensors import write_safetensors

Text = Mapping[str, jax.Array]  # the text columns of a batch
DECODED_PIXELS = 1 << 20  # that the autoencoder decodes at a time, but for a picture a device at least: those of 1024² take 5 GiB each
EMBEDDINGS_FILE = "learned_embeds.safetensors"  # diffusers' name for one
EMBEDDINGS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # a text encoder's tensor in it, as diffusers' advanced scripts have it


def _token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> np.ndarray:
    """Token ids [n, length] int32, padded and truncated."""
    return tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="np")["input_ids"].astype(np.int32)


@parameters.jit
def _encode_clip(encoder: CLIPText, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = encoder(ids)
    return out.penultimate.astype(jnp.float32), (out.pooled if out.text_embeds is None else out.text_embeds).astype(jnp.float32)


@parameters.jit
def _encode_t5(encoder: T5Encoder, ids: jax.Array) -> jax.Array:
    return encoder(ids).astype(jnp.float32)


@parameters.jit
def encode(vae: AutoencoderKL, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of the unscaled latents, [n, h, w, channels] each, of images [n, f·h, f·w, 3] uint8, in full precision."""
    with jax.default_matmul_precision("highest"):
        mean, logvar = vae.moments(images.astype(jnp.float32) / 127.5 - 1)
    return mean, jnp.exp(0.5 * logvar)


@parameters.jit
def decode(vae: AutoencoderKL, latents: jax.Array) -> jax.Array:
    """Pictures [n, f·h, f·w, 3] uint8 of latents as the denoiser has them [n, h, w, channels], in full precision."""
    return _to_bytes(_decode(vae, latents))


def decode_tiled(vae: AutoencoderKL, latents: jax.Array, side: int) -> np.ndarray:
    """As `decode`, in tiles of side × side latents, a multiple of 4, with the memory of one tile at a time; they are put together on the host.

    Tiles overlap by a quarter and are blended there, as in diffusers' tiled decoding: a little different from the whole at once.
    """
    stride, factor, rows, latents = side - side // 4, vae.config.downsample, [], sharding.to_host(latents)
    for top in range(0, latents.shape[1], stride):
        row = []
        for left in range(0, latents.shape[2], stride):
            cut = sharding.put_batch(latents[:, top : top + side, left : left + side], sharding.current())
            tile = sharding.to_host(_decode_tile(vae, cut))
            tile = _blend(rows[-1][len(row)], tile, factor * side // 4, axis=1) if rows else tile
            row.append(_blend(row[-1], tile, factor * side // 4, axis=2) if row else tile)
        rows.append(row)
    kept = slice(factor * stride)
    return np.asarray(_to_bytes(np.concatenate([np.concatenate([tile[:, kept, kept] for tile in row], axis=2) for row in rows], axis=1)))


def _decode(vae: AutoencoderKL, latents: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return vae.decode(vae.unscale(latents)).astype(jnp.float32)


_decode_tile = parameters.jit(_decode)


def _blend(before: np.ndarray, after: np.ndarray, extent: int, *, axis: int) -> np.ndarray:
    """`after` whose first `extent` pixels along `axis` (as many as both have) go over from the last ones of `before`."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    ramp = np.arange(extent, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(after.ndim)]) / np.float32(extent)
    last, (first, rest) = np.split(before, [before.shape[axis] - extent], axis)[1], np.split(after, [extent], axis)
    return np.concatenate([last * (1 - ramp) + first * ramp, rest], axis)


def _to_bytes(pixels: jax.Array) -> jax.Array:
    return jnp.round((jnp.clip(pixels, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def guided(
    predict: Callable[[jax.Array, jax.Array, Text], jax.Array], text: Text, unconditional: Text, guidance_scale: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """predict(x, timesteps, text) with classifier-free guidance, as a function of x and timesteps: one doubled batch; 1 is off."""
    if guidance_scale == 1.0:
        return lambda x, timesteps: predict(x, timesteps, text)
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), dict(unconditional), dict(text))

    def run(x: jax.Array, timesteps: jax.Array) -> jax.Array:
        twice = predict(jnp.concatenate([x, x]), jnp.concatenate([timesteps, timesteps]), both)
        without, with_prompt = jnp.split(twice.astype(jnp.float32), 2)
        return without + guidance_scale * (with_prompt - without)

    return run


def start_noise(seed: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit noise [batch, *shape] that depends on (seed, index) alone."""
    return noise.unit_noise(jax.vmap(jax.random.fold_in, (None, 0))(seed, indices), shape)


class NewTokens(NamedTuple):
    """Tokens, `count` in a row, that a word stands for in the CLIP text encoders. Their embeddings are learned; they start from `start`'s."""

    word: str
    count: int
    start: str


class WithTextEncoders(nnx.Module):
    """A denoiser and its CLIP text encoders, to be tuned together; each under the name of its folder."""

    def __init__(self, **parts: nnx.Module):
        for name, part in parts.items():
            setattr(self, name, part)


@dataclasses.dataclass(kw_only=True)
class LatentSupervisor(abc.ABC):
    """A diffusers checkpoint as a learner (see proxy_jax/stages/tuning.py for the protocol); prompts, loss and sampling are a family's own.

    folder: in the diffusers layout; resolution: in pixels; vae_tile: the side of decoding's tiles, in pixels, 0: whole pictures.
    tune_text: the CLIP text encoders are tuned too, which new_tokens need: they are part of the model then, and the text columns are their
    token ids and T5's states. Else all text encoders run once over the prompts. Parts load when first needed.
    """

    folder: Path
    resolution: int
    compute: Compute
    vae_tile: int = 0
    tune_text: bool = False
    new_tokens: NewTokens | None = None

    lora_prefix: ClassVar[str]  # in adapter files; the name of the denoiser's folder too
    model_class: ClassVar[type[nnx.Module]]
    config_class: ClassVar[type]
    names: ClassVar[Callable[[Any], Table]]  # the name table of a config
    clips: ClassVar[Mapping[str, bool]]  # the CLIP text encoders' folders; whether the pooled text is projected

    @functools.cached_property
    def config(self) -> Any:
        """The denoiser's sizes."""
        return hub.config_from(self.config_class, self.base / "config.json")

    @property
    def base(self) -> Path:
        """The denoiser's folder."""
        return self.folder / self.lora_prefix

    @property
    def table(self) -> Table:
        """The denoiser's name table."""
        return self.names(self.config)

    def parts(self, model: nnx.Module) -> list[Part]:
        """The denoiser and, if they are tuned too, the text encoders."""
        if not self.tune_text:
            return [Part(model, self.table, self.lora_prefix)]
        found = [Part(getattr(model, self.lora_prefix), self.table, self.lora_prefix)]
        for number, (name, projection) in enumerate(self.clips.items(), 1):
            encoder = getattr(model, name)
            found.append(Part(encoder, clip.text_table(encoder.config, projection=projection), name, f"lora_te{number}_"))
        return found

    def text_settings(self) -> dict[str, Any]:
        """What of the settings of `encoders` says that the text encoders are tuned, and on which tokens."""
        found = {"clip": "token ids"} if self.tune_text else {}
        return found | ({"new_tokens": list(self.new_tokens)} if self.new_tokens else {})

    def crop_columns(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Picture columns that depend on how each was cropped: none, as most models are not told."""
        return {}

    def in_compute_dtype(self, name: str) -> Any:
        """The dtype of every variable of a frozen encoder: the run's compute dtype."""
        return self.compute.dtype

    def tokenizer_of(self, text_encoder: str) -> Any:
        """The tokenizer of the text encoder in that folder."""
        return AutoTokenizer.from_pretrained(self.folder / text_encoder.replace("text_encoder", "tokenizer"))

    def load_clip(self, name: str, dtype_of: Callable[[str], Any]) -> CLIPText:
        """The CLIP text encoder in the folder `name`, one of `clips`."""
        projection = self.clips[name]
        model_class, names = functools.partial(CLIPText, projection=projection), functools.partial(clip.text_table, projection=projection)
        return hub.load_pretrained(self.folder / name, model_class, CLIPTextConfig, names, compute=self.compute, dtype_of=dtype_of)

    def token_ids(self, name: str, prompts: Sequence[str]) -> np.ndarray:
        """Token ids [n, length] int32 of the CLIP text encoder in the folder `name`; those of new tokens go on from its vocabulary's."""
        config, tokenizer = hub.config_from(CLIPTextConfig, self.folder / name / "config.json"), self.tokenizer_of(name)
        if not self.new_tokens:
            return _token_ids(tokenizer, prompts, config.max_position_embeddings)
        known, names = len(tokenizer), [f"<s{number}>" for number in range(self.new_tokens.count)]
        tokenizer.add_tokens(names)
        word = re.compile(rf"(?<!\w){re.escape(self.new_tokens.word)}(?!\w)", re.IGNORECASE)
        ids = _token_ids(tokenizer, [word.sub("".join(names), prompt) for prompt in prompts], config.max_position_embeddings)
        return np.where(ids < known, ids, ids - known + config.vocab_size)

    def first_embeddings(self, name: str, encoder: CLIPText) -> np.ndarray:
        """The embeddings [count, width] float32 that new tokens start from: of the pieces of their start word in turn (diffusers)."""
        pieces = self.tokenizer_of(name)(self.new_tokens.start, add_special_tokens=False)["input_ids"]
        ids = np.resize(pieces, self.new_tokens.count)
        take = jax.jit(lambda table: table[ids].astype(jnp.float32))
        return sharding.to_host(sharding.apply(take, parameters.value(encoder.token_embed.embedding)))

    def clip(self, name: str, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Penultimate states [n, length, width] and pooled text [n, width], float32, of the encoder `name`, which is loaded, run and freed."""
        encoder, ids = self.load_clip(name, self.in_compute_dtype), self.token_ids(name, prompts)
        outputs = [jax.tree.map(sharding.to_host, _encode_clip(encoder, ids[i : i + 1])) for i in range(len(ids))]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *outputs)

    def t5(self, number: str, prompts: Sequence[str], length: int) -> np.ndarray:
        """T5's states [n, length, width], float32, of text_encoder<number>, which is loaded, run and freed."""
        folder, dtype_of = self.folder / f"text_encoder{number}", self.in_compute_dtype
        encoder = hub.load_pretrained(folder, T5Encoder, T5Config, t5.table, compute=self.compute, dtype_of=dtype_of)
        ids = _token_ids(self.tokenizer_of(f"text_encoder{number}"), prompts, length)
        return np.concatenate([sharding.to_host(_encode_t5(encoder, ids[i : i + 1])) for i in range(len(ids))])

    def t5_states(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """The column t5 [n, length, width] float32, of a family that has a T5."""
        return {}

    @abc.abstractmethod
    def combine(self, states: Sequence[jax.Array], pooled: Sequence[jax.Array], t5: jax.Array | None = None) -> dict[str, jax.Array]:
        """The denoiser's columns of the CLIPs' penultimate states [n, length, width] and pooled text [n, width], in order, and T5's states."""

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """What the denoiser sees of prompts (`combine`), float32; if the text encoders are tuned, the token ids under their names, and t5."""
        if self.tune_text:
            return {name: self.token_ids(name, prompts) for name in self.clips} | self.t5_states(prompts)
        states, pooled = zip(*(self.clip(name, prompts) for name in self.clips), strict=True)
        return jax.tree.map(np.asarray, self.combine(states, pooled, **self.t5_states(prompts)))

    def conditioned(self, model: nnx.Module, columns: Text) -> tuple[nnx.Module, Text]:
        """The denoiser, and the columns with what it sees of the prompts: where the text encoders are tuned they run here."""
        if not self.tune_text:
            return model, columns
        others = dict(columns)
        states, pooled = zip(*(_encode_clip(getattr(model, name), others.pop(name)) for name in self.clips), strict=True)
        t5 = {"t5": others.pop("t5")} if "t5" in others else {}
        return getattr(model, self.lora_prefix), others | sharding.apply(self.combine, states, pooled, **t5)

    @functools.cached_property
    def vae_config(self) -> AutoencoderKLConfig:
        """The autoencoder's sizes and the affine map from its latents to the denoiser's."""
        return hub.config_from(AutoencoderKLConfig, self.folder / "vae" / "config.json")

    @functools.cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, in float32: in half precision SDXL's gives NaN."""
        return hub.load_pretrained(self.folder / "vae", AutoencoderKL, AutoencoderKLConfig, autoencoder_kl.table, compute=Compute())

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[height, width, channels] of a picture's latents."""
        side = self.resolution // self.vae_config.downsample
        return side, side, self.config.in_channels

    def encode_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """latent_mean, latent_std [n, h, w, channels] float32 of images [n, resolution, resolution, 3] uint8: latents are drawn anew each step."""
        mean, std = encode(self.vae, sharding.put_batch(images, sharding.current()))
        return {"latent_mean": sharding.to_host(mean), "latent_std": sharding.to_host(std)}

    def draw_latents(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> jax.Array:
        """Latents of a batch's pictures as the denoiser sees them, drawn with one of the random keys [batch] each."""
        latents = batch["latent_mean"] + batch["latent_std"] * noise.unit_noise(keys, batch["latent_mean"].shape[1:])
        return (latents - (self.vae_config.shift_factor or 0.0)) * self.vae_config.scaling_factor

    def load_model(self, dtype_of: Callable[[str], Any], tuned: Path | None = None) -> nnx.Module:
        """The denoiser to tune or draw from, with its text encoders if they are tuned; tuned: a folder that `save_model` wrote."""
        folder = self.base if tuned is None else tuned / self.lora_prefix
        denoiser = hub.load_pretrained(folder, self.model_class, self.config_class, self.names, compute=self.compute, dtype_of=dtype_of)
        if not self.tune_text:
            return denoiser
        encoders = {name: self.load_clip(name, dtype_of) for name in self.clips}
        if self.new_tokens:
            for name, encoder in encoders.items():
                encoder.subject_embed = subject_embed(self.first_embeddings(name, encoder))
        return WithTextEncoders(**{self.lora_prefix: denoiser}, **encoders)

    def save_model(self, model: nnx.Module, folder: Path) -> None:
        """Writes the whole denoiser as a folder of the diffusers pipeline."""
        config = hub.read_json(self.base / "config.json")
        hub.save_pretrained(model, self.table, folder / self.lora_prefix, config=config, filename="diffusion_pytorch_model.safetensors")

    def save_subjects(self, model: nnx.Module, folder: Path) -> None:
        """Writes the learned embeddings of new tokens, if there are any, as EMBEDDINGS_FILE: text encoder -> [count, width]."""
        if self.new_tokens:
            learned = {EMBEDDINGS[name]: sharding.to_host(getattr(model, name).subject_embed[...]) for name in self.clips}
            write_safetensors(learned, folder / EMBEDDINGS_FILE, {"format": "pt"})

    def load_subjects(self, model: nnx.Module, folder: Path) -> None:
        """Puts the embeddings that `save_subjects` wrote on the model."""
        if self.new_tokens:
            learned = load_file(folder / EMBEDDINGS_FILE)
            for name in self.clips:
                getattr(model, name).subject_embed = subject_embed(learned[EMBEDDINGS[name]])

    @abc.abstractmethod
    def sample(
        self, model: nnx.Module, text: Text, unconditional: Text, seed: jax.Array, indices: jax.Array, options: Mapping[str, Any]
    ) -> jax.Array:
        """Scaled latents [batch, *latent_shape] by the denoiser `model`, a function of (seed, index) each."""

    def draw(
        self,
        model: nnx.Module,
        text: Mapping[str, np.ndarray],
        unconditional: Mapping[str, np.ndarray],
        seed: int,
        indices: np.ndarray,
        options: Mapping[str, Any],
    ) -> np.ndarray:
        """Pictures [batch, resolution, resolution, 3] uint8, one a row of `text`; options: steps, guidance_scale.

        unconditional: the encoded empty prompt, one row.
        """
        empty = {name: np.repeat(value, len(indices), axis=0) for name, value in unconditional.items()}
        text, empty, indices = sharding.put_batch((dict(text), empty, np.asarray(indices, np.int32)), sharding.current())
        (denoiser, text), (_, empty) = self.conditioned(model, text), self.conditioned(model, empty)
        latents = self.sample(denoiser, text, empty, jax.random.key(seed), indices, options)
        if 0 < self.vae_tile < self.resolution:
            return decode_tiled(self.vae, latents, self.vae_tile // self.vae_config.downsample)
        step = sharding.padded(max(1, DECODED_PIXELS // self.resolution**2))
        if len(indices) <= step:
            return sharding.to_host(decode(self.vae, latents))
        latents, mesh = sharding.to_host(latents), sharding.current()
        parts = [sharding.put_batch(latents[start : start + step], mesh) for start in range(0, len(latents), step)]
        return np.concatenate([sharding.to_host(decode(self.vae, part)) for part in parts])

    def check_resolution(self, multiple: int) -> None:
        """Raises CheckpointError if the resolution is not a multiple of the autoencoder's downsampling times `multiple`, or vae_tile times 4."""
        for field, value, units in (("resolution", self.resolution, multiple), ("vae_tile", self.vae_tile, 4)):
            if value % (units * self.vae_config.downsample):
                multiples = f"multiples of {units * self.vae_config.downsample}"
                raise hub.CheckpointError(f"supervisor.{field} is {value}; for {self.folder} it can be {multiples}")


def of_config(
    fields: ConfigDict, tuning: ConfigDict, compute: Compute, locate: Callable[[str], Path], new_tokens: NewTokens | None
) -> dict[str, Any]:
    """The fields of a LatentSupervisor that the config's `supervisor` and `subject_tuning` describe."""
    return dict(
        folder=locate(fields.checkpoint),
        resolution=fields.resolution,
        vae_tile=fields.vae_tile,
        tune_text=bool(tuning.lora.text_encoders or new_tokens),
        new_tokens=new_tokens,
        compute=compute,
    )
