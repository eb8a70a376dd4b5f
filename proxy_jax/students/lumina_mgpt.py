"""The student Lumina-mGPT (Liu et al., arXiv 2408.02657): Chameleon's decoder over text and pictures in one sequence of tokens.

A conversation is <s>, what is asked for, end of turn; then the picture, as lumina_tokens.py writes it, and end of turn. Here prompts are padded
on the left, so that the pictures of a batch begin in one column.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from proxy_jax import processes, sharding
from proxy_jax.models import parameters
from proxy_jax.models.chameleon import Chameleon, ChameleonConfig
from proxy_jax.models.layers import Compute, split_keys
from proxy_jax.models.vqgan import VQConfig
from proxy_jax.students import subjects, vq
from proxy_jax.students.decoding import Sampling, decode, guide, keep_top_k
from proxy_jax.students.lumina_tokens import CODES_PER_CELL, MOST_CELLS, PATCH, TEXT, Vocabulary, bucket_sizes, turn_length
from proxy_jax.students.next_token import next_token_loss
from proxy_jax.students.token_student import TokenStudent, of_config
from proxy_jax.weights import chameleon, chameleon_vqgan, hub
from proxy_jax.weights.table import export
from proxy_jax.weights.tensors import open_tensors, write_safetensors

PROMPT = "Generate an image of {width}x{height} according to the following prompt:\n{caption}"
PROMPT_STEP = 32  # prompts are padded to a multiple of so many tokens, so that few shapes compile


def generate(
    model: Chameleon,
    text: Mapping[str, jax.Array],
    seed: jax.Array,
    indices: jax.Array,
    *,
    vocabulary: Vocabulary,
    grid: tuple[int, int],
    sampling: Sampling,
    text_top_k: int = 10,
    num_tokens: int | None = None,
    collect_logits: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Ids [batch, num_tokens] of pictures of grid = (rows, columns) codes: what follows `Vocabulary.start`. Traceable: jit it.

    text: prompt [batch, slots], padded on the left, and prompt_mask; with learned subjects also subject_rows. indices [batch]: the samples'
    numbers. num_tokens: None ends with the picture's end; what comes after it is text, unguided, of the text_top_k likeliest (10 in the
    official sampler). With collect_logits also the logits [batch, num_tokens, vocab] that the ids were drawn from, those that cannot stand
    there at -inf.
    The unguided half of the batch sees no prompt, so its positions count from the picture's begin, as the official sampler has it.
    """
    ids, mask, rows = text["prompt"], text["prompt_mask"].astype(bool), text.get("subject_rows")
    (batch, slots), start = ids.shape, vocabulary.start(*grid)
    picture = grid[0] * (grid[1] + 1) + 1
    num_tokens = picture if num_tokens is None else num_tokens
    guided = sampling.guidance_scale != 1.0
    frame = jnp.asarray(vocabulary.frame(*grid, num_tokens))
    is_code = jnp.zeros(model.config.vocab_size, bool).at[jnp.asarray(vocabulary.image)].set(True)

    def constrain(logits: jax.Array, position: jax.Array | int) -> jax.Array:
        only = frame[position]
        allowed = jnp.where(only >= 0, jnp.arange(logits.shape[-1]) == only, is_code | (only == TEXT))
        logits = jnp.where(allowed, logits, -jnp.inf)
        kept = keep_top_k(logits, sampling.top_k)
        return kept if num_tokens <= picture else jnp.where(only == TEXT, keep_top_k(logits, text_top_k), kept)

    def next_logits(hidden: jax.Array, position: jax.Array | int) -> jax.Array:
        """Of the token at `position`, from the states [batch, n, dim] up to the one before it."""
        logits = model.logits(hidden[:, -1])
        if not guided:
            return logits
        conditional, unconditional = logits[:batch], logits[batch:]
        return jnp.where(position < picture, guide(conditional, unconditional, sampling.guidance_scale), conditional)

    def doubled(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, x]) if guided else x

    visible = jnp.concatenate([mask, jnp.zeros_like(mask)]) if guided else mask

    def prefill():
        first = jnp.concatenate([ids, jnp.broadcast_to(jnp.asarray(start, ids.dtype), (batch, len(start)))], axis=1)
        x = doubled(embed(model, first, rows))
        hidden, cache = model.extend(x, model.init_cache(len(x), slots + len(start) + num_tokens), 0, visible)
        return next_logits(hidden, 0), cache

    def extend(token: jax.Array, position: jax.Array, cache):
        x = doubled(model.embed(token[:, None]))
        hidden, cache = model.extend(x, cache, slots + len(start) + position, visible)
        return next_logits(hidden, position + 1), cache

    # `constrain` has taken the likeliest, a number that depends on the position.
    rest = dataclasses.replace(sampling, top_k=0)
    return decode(prefill, extend, num_tokens, seed, indices, rest, collect_logits, constrain)


def embed(model: Chameleon, ids: jax.Array, rows: jax.Array | None) -> jax.Array:
    """Embedded ids [batch, length], the first of which are a prompt with its subject_rows [batch, slots] (None: no subject is learned)."""
    if rows is None:
        return model.embed(ids)
    return model.embed(ids, jnp.pad(rows, ((0, 0), (0, ids.shape[1] - rows.shape[1]))))


@parameters.jit
def _embed_tokens(model: Chameleon, ids: jax.Array) -> jax.Array:
    return model.token_embed(ids)


@functools.partial(parameters.jit, static_argnames=("vocabulary", "grid", "sampling"))
def _draw_codes(model: Chameleon, text, seed: jax.Array, indices: jax.Array, *, vocabulary: Vocabulary, grid: tuple[int, int], sampling: Sampling):
    ids, _ = generate(model, text, seed, indices, vocabulary=vocabulary, grid=grid, sampling=sampling)
    return vocabulary.codes(ids, *grid)


@dataclasses.dataclass(kw_only=True)
class LuminaMGPTStudent(TokenStudent):
    """Lumina-mGPT. text_tokenizer: the text tokenizer's JSON file; z_loss: its weight in the loss.

    It draws squares. What it learns from keeps its shape: each picture is cut (from its middle) to the nearest of the official sizes, and its
    prompt asks for that one.
    """

    text_tokenizer: Path
    z_loss: float

    crop = "lumina_mgpt"
    model_class = Chameleon
    names = staticmethod(chameleon.table)
    vq_names = staticmethod(chameleon_vqgan.table)

    @functools.cached_property
    def config(self) -> ChameleonConfig:
        """The decoder's sizes."""
        return chameleon.read_config(hub.read_json(self.gpt / "config.json"), open_tensors(self.gpt))

    def saved(self, folder: Path) -> Path:
        """Where the decoder's weights lie in a folder that `save_model` wrote."""
        return folder

    def encoders(self) -> dict[str, Any]:
        """All that decides what the frozen encoders return: files (as Path) and settings."""
        return {"vq": self.vq, "text_tokenizer": self.text_tokenizer, "resolution": self.resolution, **self.learned()}

    @functools.cached_property
    def text(self) -> Tokenizer:
        """The text tokenizer."""
        hub.read_json(self.text_tokenizer)  # says what is wrong with the file; the library does not
        return Tokenizer.from_file(str(self.text_tokenizer))

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The ids of what a sequence is made of."""
        return Vocabulary.of(self.text.get_vocab())

    def text_ids(self, text: str) -> list[int]:
        """The token ids of a piece of text."""
        return self.text.encode(text, add_special_tokens=False).ids

    def prompt_ids(self, caption: str, width: int, height: int) -> list[int]:
        """The turn that asks for a picture, from <s> to the end of turn."""
        text = PROMPT.format(width=width, height=height, caption=caption)
        return [self.vocabulary.begin_text, *self.text_ids(text), self.vocabulary.end_turn]

    @functools.cached_property
    def pieces(self) -> dict[str, list[int]]:
        """What the text tokenizer makes of each of `tokens`, inside a sentence."""
        return {token: self.text_ids(f"a {token}")[len(self.text_ids("a")) :] for token in self.tokens}

    def encode_prompts(self, prompts: Sequence[str], sizes: Sequence[tuple[int, int]] = ()) -> dict[str, np.ndarray]:
        """prompt [n, slots] int32 and prompt_mask [n, slots]: the turns that ask for a picture, padded on the left.

        sizes: width and height of each picture; none: squares of `resolution`. With `tokens` also subject_rows [n, slots], see
        `subjects.subject_rows`.
        """
        sizes = sizes or [(self.resolution, self.resolution)] * len(prompts)
        turns = [self.prompt_ids(prompt, *size) for prompt, size in zip(prompts, sizes, strict=True)]
        slots = -(-max(map(len, turns)) // PROMPT_STEP) * PROMPT_STEP
        mask = np.arange(slots) >= slots - np.asarray([[len(turn)] for turn in turns])
        ids = np.zeros((len(turns), slots), np.int32)
        ids[mask] = np.concatenate(turns)
        learned = {"subject_rows": subjects.subject_rows(ids, self.pieces)} if self.tokens else {}
        return {"prompt": ids, "prompt_mask": mask, **learned}

    def encode_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """tokens [n, length] int32: the whole turns that answer with images [n, height, width, 3] uint8, padded with <s>.

        The length is that of the longest turn of any of the official sizes, so that one shape serves pictures of all of them.
        """
        codes = sharding.to_host(vq.encode(self.tokenizer, sharding.put_batch(images, sharding.current())))
        turns, side = self.vocabulary.picture(codes), self.vq_config.downsample
        longest = max(turn_length(height // side, width // side) for width, height in bucket_sizes(self.resolution))
        return {"tokens": np.pad(turns, ((0, 0), (0, longest - turns.shape[1])), constant_values=self.vocabulary.begin_text)}

    @functools.cached_property
    def vq_config(self) -> VQConfig:
        """The image tokenizer's sizes."""
        return chameleon_vqgan.read_config(self.vq)

    def save_model(self, model: Chameleon, folder: Path) -> None:
        """Writes a folder of the same kind as the base's: what lies beside its weights, and in them what is not the decoder's, is copied."""
        before = open_tensors(self.base)
        shapes = {name: shape for name, shape in before.shapes().items() if name.startswith(chameleon.VQ_PREFIX)}
        others = {name: before.read(name, (slice(None),) * len(shape)) for name, shape in shapes.items()}
        write_safetensors(export(model, self.table) | others, folder / "model.safetensors", {"format": "pt"})
        for file in self.base.iterdir() if processes.is_first() else ():
            if file.suffix in hub.TEXT_SUFFIXES and ".index." not in file.name:
                shutil.copyfile(file, folder / file.name)

    def text_features(self, model: Chameleon, text: Mapping[str, np.ndarray]) -> np.ndarray:
        """The embeddings of the tokens' pieces."""
        return sharding.to_host(_embed_tokens(model, text["prompt"]))

    def loss(self, model: Chameleon, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
        """Mean next-token loss of each picture's turn [batch]; batch: tokens, prompt, prompt_mask, row_index (of the randomness)."""
        keys_drop, keys_dropout = split_keys(jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row_index"]), 2)
        ids, mask, answer = batch["prompt"], batch["prompt_mask"].astype(bool), batch["tokens"]
        drop = jax.vmap(jax.random.uniform)(keys_drop) < self.class_dropout
        hidden = model.hidden_states(
            embed(model, jnp.concatenate([ids, answer[:, :-1]], axis=1), batch.get("subject_rows")),
            mask & ~drop[:, None],
            dropout_rate=self.dropout,
            keys=keys_dropout if self.dropout else None,
        )
        losses = next_token_loss(hidden[:, ids.shape[1] - 1 :], model.head, answer, z_loss=self.z_loss)
        alone = drop[:, None] & (jnp.arange(answer.shape[1]) == 0)  # without its prompt nothing comes before the picture
        supervised = (answer != self.vocabulary.begin_text) & ~alone
        return (losses * supervised).sum(-1) / supervised.sum(-1)

    def draw(
        self,
        model: Chameleon,
        text: Mapping[str, np.ndarray],
        unconditional: Mapping[str, np.ndarray],
        seed: int,
        indices: np.ndarray,
        options: Mapping[str, Any],
    ) -> np.ndarray:
        """Pictures [batch, resolution, resolution, 3] uint8, one a row of `text`; options: the fields of Sampling, for the picture's tokens.

        unconditional is not used: without guidance's prompt there is none at all.
        """
        side = self.resolution // self.vq_config.downsample
        text, indices = sharding.put_batch((dict(text), np.asarray(indices, np.int32)), sharding.current())
        common = dict(vocabulary=self.vocabulary, grid=(side, side), sampling=Sampling(**options))
        codes = _draw_codes(model, text, jax.random.key(seed), indices, **common)
        return sharding.to_host(vq.decode(self.tokenizer, codes, truncate=True))


def make(fields: ConfigDict, tuning: ConfigDict, compute: Compute, locate: Callable[[str], Path], tokens: Sequence[str]) -> LuminaMGPTStudent:
    """The student that the config's `student` and `proxy_tuning` describe.

    locate: from a checkpoint's name to its file or folder. tokens: the words that come to mean the subjects.
    """
    common = of_config(fields, tuning, compute, locate, tokens)
    student = LuminaMGPTStudent(**common, text_tokenizer=locate(fields.text_tokenizer), z_loss=tuning.z_loss)
    most = MOST_CELLS * CODES_PER_CELL * student.vq_config.downsample // 2  # a picture is at most twice as long
    if fields.resolution % PATCH or fields.resolution > most:
        raise hub.CheckpointError(f"student.resolution is {fields.resolution}; Lumina-mGPT draws multiples of {PATCH} up to {most}")
    codes, named = student.vq_config.codebook_size, len(student.vocabulary.image)
    if codes != named:
        raise hub.CheckpointError(f"{student.vq} has {codes} codes, but {student.text_tokenizer} names {named}")
    return student
