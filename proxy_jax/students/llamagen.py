"""The student LlamaGen: captions through T5, pictures through its VQ tokenizer, next-token loss and guided decoding."""

import dataclasses
import functools
import math
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
from proxy_jax.models.decoder import segments_of
from proxy_jax.models.layers import Compute, split_keys, with_subjects
from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.models.t5 import T5Config, T5Encoder
from proxy_jax.models.vqgan import VQConfig
from proxy_jax.students import subjects, vq
from proxy_jax.students.caption_cleaning import clean_caption
from proxy_jax.students.decoding import Sampling, decode, guide
from proxy_jax.students.next_token import next_token_loss
from proxy_jax.students.token_student import TokenStudent, of_config
from proxy_jax.weights import hub, t5, vqgan
from proxy_jax.weights import llamagen as weights
from proxy_jax.weights.table import save
from proxy_jax.weights.tensors import open_tensors


def left_pad(features: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """T5 output [n, length, width] with its right-padded mask [n, length] as LlamaGen wants it: valid rows last, padding zero."""
    mask = mask.astype(bool)
    out = np.zeros_like(features)
    for row, (values, valid) in enumerate(zip(features, mask, strict=True)):
        out[row, len(valid) - valid.sum() :] = values[valid]
    return out, mask[:, ::-1].copy()


@parameters.jit
def _encode_text(encoder: T5Encoder, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return encoder(ids, mask).astype(jnp.float32)


def generate(
    model: LlamaGen,
    condition: jax.Array,
    condition_mask: jax.Array,
    seed: jax.Array,
    indices: jax.Array,
    *,
    grid: int,
    sampling: Sampling,
    guided_steps: int = -1,
    collect_logits: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Tokens [batch, grid²] (and the logits they were drawn from, if asked for) for a batch of conditions. Traceable: jit it.

    condition, condition_mask: as in LlamaGen.hidden_states (class labels [batch] for c2i). indices [batch]: the samples' numbers.
    guided_steps: guidance only up to this decoding step (the official cfg_interval); -1: always.
    The guided and the unguided half run as one batch; both keep the caption's mask, as the official sampler does.
    """
    batch, slots = condition.shape[0], model.config.cls_token_num
    length = slots + grid**2
    guided = sampling.guidance_scale != 1.0
    drop = None
    if guided:
        condition, condition_mask = (jnp.concatenate([x, x]) for x in (condition, condition_mask))
        drop = jnp.arange(2 * batch) >= batch
    rope, segments = model.rope(grid), segments_of(condition_mask, length)

    def next_logits(hidden: jax.Array, step: jax.Array | int) -> jax.Array:
        logits = model.logits(hidden[:, -1])
        if not guided:
            return logits
        conditional, unconditional = logits[:batch], logits[batch:]
        mixed = guide(conditional, unconditional, sampling.guidance_scale)
        return mixed if guided_steps < 0 else jnp.where(step <= guided_steps, mixed, conditional)

    def prefill():
        x = model.embed_condition(condition, drop)
        hidden, cache = model.extend(x, model.init_cache(x.shape[0], length), 0, rope, segments)
        return next_logits(hidden, -1), cache

    def extend(token: jax.Array, position: jax.Array, cache):
        token = jnp.concatenate([token, token]) if guided else token
        x = model.token_embed(token[:, None], model.compute.dtype)
        hidden, cache = model.extend(x, cache, slots + position, rope, segments)
        return next_logits(hidden, position), cache

    return decode(prefill, extend, grid**2, seed, indices, sampling, collect_logits)


def caption_of(model: LlamaGen, text: Mapping[str, jax.Array]) -> jax.Array:
    """The T5 features in the text columns of a batch, with the learned ones of the subjects' tokens where the model has such."""
    return text["caption"] if model.subject_embed is None else with_subjects(text["caption"], model.subject_embed, text["subject_rows"])


@functools.partial(parameters.jit, static_argnames=("grid", "sampling"))
def _generate(model: LlamaGen, text: Mapping[str, jax.Array], seed: jax.Array, indices: jax.Array, *, grid: int, sampling: Sampling):
    tokens, _ = generate(model, caption_of(model, text), text["caption_mask"], seed, indices, grid=grid, sampling=sampling)
    return tokens.reshape(-1, grid, grid)


@dataclasses.dataclass(kw_only=True)
class LlamaGenStudent(TokenStudent):
    """LlamaGen t2i. text_encoder: T5's folder."""

    text_encoder: Path

    model_class = LlamaGen
    names = staticmethod(weights.table)
    vq_names = staticmethod(vqgan.table)

    @functools.cached_property
    def config(self) -> LlamaGenConfig:
        """The decoder's sizes, from the file beside the weights or from their shapes."""
        return hub.llamagen_config(open_tensors(self.gpt), self.gpt)

    def saved(self, folder: Path) -> Path:
        """Where the decoder's weights lie in a folder that `save_model` wrote."""
        return folder / "gpt.safetensors"

    def encoders(self) -> dict[str, Any]:
        """All that decides what the frozen encoders return: files and folders (as Path) and settings."""
        settings = {"resolution": self.resolution, "slots": self.config.cls_token_num, "dtype": jnp.dtype(self.compute.dtype).name}
        return {"vq": self.vq, "text_encoder": self.text_encoder, **settings, **self.learned()}

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """caption [n, slots, caption_dim] (float32, valid rows last) and caption_mask [n, slots] of cleaned prompts.

        With `tokens` also subject_rows [n, slots], see `subjects.subject_rows`.
        """
        tokenizer = AutoTokenizer.from_pretrained(self.text_encoder)
        dtype = self.compute.dtype
        encoder = hub.load_pretrained(self.text_encoder, T5Encoder, T5Config, t5.table, compute=self.compute, dtype_of=lambda name: dtype)
        cleaned = [clean_caption(prompt) for prompt in prompts]
        slots = self.config.cls_token_num
        batch = tokenizer(cleaned, max_length=slots, padding="max_length", truncation=True, return_attention_mask=True, return_tensors="np")
        features = np.concatenate(
            [sharding.to_host(_encode_text(encoder, batch["input_ids"][i : i + 1], batch["attention_mask"][i : i + 1])) for i in range(len(cleaned))]
        )
        caption, mask = left_pad(features, batch["attention_mask"])
        if not self.tokens:
            return {"caption": caption, "caption_mask": mask}
        rows, _ = left_pad(subjects.subject_rows(batch["input_ids"], self.pieces), batch["attention_mask"])
        return {"caption": caption, "caption_mask": mask, "subject_rows": rows}

    @functools.cached_property
    def pieces(self) -> dict[str, list[int]]:
        """What T5's tokenizer makes of each of `tokens`, inside a sentence."""
        tokenizer = AutoTokenizer.from_pretrained(self.text_encoder)
        return {token: tokenizer(clean_caption(token), add_special_tokens=False)["input_ids"] for token in self.tokens}

    def encode_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """tokens [n, grid²] int32 in raster order of images [n, resolution, resolution, 3] uint8."""
        indices = sharding.to_host(vq.encode(self.tokenizer, sharding.put_batch(images, sharding.current())))
        return {"tokens": indices.reshape(len(images), -1).astype(np.int32)}

    @functools.cached_property
    def vq_config(self) -> VQConfig:
        """The tokenizer's sizes, from the file beside the weights or from their shapes."""
        return hub.vq_config(open_tensors(self.vq), self.vq)

    def save_model(self, model: LlamaGen, folder: Path) -> None:
        """Writes the whole decoder with the official names, and its sizes beside it."""
        save(model, self.table, self.saved(folder))
        hub.write_json(folder / "gpt.json", dataclasses.asdict(self.config))

    def text_features(self, model: LlamaGen, text: Mapping[str, np.ndarray]) -> np.ndarray:
        """T5's own."""
        return text["caption"]

    def loss(self, model: LlamaGen, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
        """Mean next-token cross entropy of each picture [batch]; batch: tokens, caption, caption_mask, row_index (of the randomness)."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row_index"])
        keys_drop, keys_dropout = split_keys(keys, 2)
        tokens = batch["tokens"]
        drop = jax.vmap(jax.random.uniform)(keys_drop) < self.class_dropout
        hidden = model.hidden_states(
            caption_of(model, batch),
            batch["caption_mask"],
            tokens[:, :-1],
            grid=math.isqrt(tokens.shape[1]),
            drop=drop,
            dropout_rate=self.dropout,
            keys=keys_dropout if self.dropout else None,
        )
        return next_token_loss(hidden[:, model.config.cls_token_num - 1 :], model.head, tokens).mean(-1)

    def draw(
        self,
        model: LlamaGen,
        text: Mapping[str, np.ndarray],
        unconditional: Mapping[str, np.ndarray],
        seed: int,
        indices: np.ndarray,
        options: Mapping[str, Any],
    ) -> np.ndarray:
        """Pictures [batch, resolution, resolution, 3] uint8, one a row of `text`; options: the fields of Sampling.

        unconditional is not used: LlamaGen has an embedding of its own for it.
        """
        mesh = sharding.current()
        grid = self.resolution // self.vq_config.downsample
        text, indices = sharding.put_batch((dict(text), np.asarray(indices, np.int32)), mesh)
        tokens = _generate(model, text, jax.random.key(seed), indices, grid=grid, sampling=Sampling(**options))
        return sharding.to_host(vq.decode(self.tokenizer, tokens))


def make(fields: ConfigDict, tuning: ConfigDict, compute: Compute, locate: Callable[[str], Path], tokens: Sequence[str]) -> LlamaGenStudent:
    """The student that the config's `student` and `proxy_tuning` describe.

    locate: from a checkpoint's name to its file or folder. tokens: the words that come to mean the subjects.
    """
    student = LlamaGenStudent(**of_config(fields, tuning, compute, locate, tokens), text_encoder=locate(fields.text_encoder))
    if fields.resolution % student.vq_config.downsample:
        raise hub.CheckpointError(f"student.resolution is {fields.resolution}; {student.vq} codes multiples of {student.vq_config.downsample}")
    return student
