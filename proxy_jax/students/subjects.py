"""Learned features of subjects' tokens (Sun et al., arXiv 2504.13162): where they stand in prompts, how they start, the file they are kept in.

`pieces`: token -> what the tokenizer makes of it inside a sentence; each piece has one row of features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from proxy_jax import sharding
from proxy_jax.models.layers import subject_embed
from proxy_jax.weights.tensors import write_safetensors

FILE = "subject_embed.safetensors"
Pieces = Mapping[str, Sequence[int]]


def subject_rows(ids: np.ndarray, pieces: Pieces) -> np.ndarray:
    """1, 2, ... [n, length] where the pieces of the first token stand in `ids` [n, length], the next numbers for the next token's; else 0."""
    rows, first = np.zeros(ids.shape, np.int32), 1
    for piece in pieces.values():
        windows = np.lib.stride_tricks.sliding_window_view(ids, len(piece), axis=1)
        for row, start in np.argwhere((windows == np.asarray(piece)).all(-1)):
            rows[row, start : start + len(piece)] = np.arange(first, first + len(piece))
        first += len(piece)
    return rows


def start(model: nnx.Module, pieces: Pieces, rows: np.ndarray, features: np.ndarray) -> None:
    """Puts features to learn on `model`: at first those [n, length, width] that stand where `rows` [n, length] has a piece, averaged.

    Raises ValueError if a piece stands nowhere.
    """
    numbers = np.arange(1, 1 + sum(map(len, pieces.values())))
    if set(numbers) - set(np.unique(rows)):
        raise ValueError(f"no prompt holds all of the tokens {tuple(pieces)}")
    model.subject_embed = subject_embed(np.stack([features[rows == number].mean(0) for number in numbers]))


def save(model: nnx.Module, pieces: Pieces, folder: Path) -> None:
    """Writes the features as FILE in `folder`: token -> [pieces, width]."""
    ends = np.cumsum([len(piece) for piece in pieces.values()])
    parts = np.split(sharding.to_host(model.subject_embed[...]), ends[:-1])
    write_safetensors(dict(zip(pieces, parts, strict=True)), folder / FILE, {"format": "pt"})


def load(model: nnx.Module, pieces: Pieces, folder: Path) -> None:
    """Puts the features that `save` wrote on `model`."""
    learned = load_file(folder / FILE)
    model.subject_embed = subject_embed(np.concatenate([learned[token] for token in pieces]))
