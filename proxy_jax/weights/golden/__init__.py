"""Golden cases: tiny random models with inputs and the official code's outputs, each kind run by one function.

A case is a folder with config.json, io.npz and, where the kind has parameters, weights.safetensors. Its kind is the folder's
name. `proxy_jax/weights/check.py` collects the KINDS and MANIFESTS of the modules here.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from proxy_jax.weights.table import Table


@dataclasses.dataclass(frozen=True)
class Case:
    """A golden folder."""

    folder: Path

    @property
    def config(self) -> dict:
        """The case's config.json."""
        return json.loads((self.folder / "config.json").read_text())

    @property
    def io(self) -> dict[str, np.ndarray]:
        """The case's inputs and expected outputs."""
        with np.load(self.folder / "io.npz") as arrays:
            return dict(arrays)

    @property
    def weights(self) -> Path:
        """The file of the tensors."""
        return self.folder / "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One array of a case: what we computed, what the official code did, and the largest error allowed (0: equal)."""

    name: str
    ours: np.ndarray
    expected: np.ndarray
    tolerance: float
    relative: bool = False

    @property
    def error(self) -> float:
        """The largest absolute (or relative) error; infinite if the shapes differ."""
        ours, expected = np.asarray(self.ours), np.asarray(self.expected)
        if ours.shape != expected.shape:
            return float("inf")
        gap = np.abs(ours.astype(np.float64) - expected.astype(np.float64))
        return float(np.max(gap / np.maximum(np.abs(expected), 1e-12) if self.relative else gap, initial=0.0))

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


def nhwc(images: np.ndarray) -> np.ndarray:
    """The official order of axes, channels second, as ours: channels last."""
    return np.moveaxis(images, 1, -1)


def nchw(images: jax.Array) -> np.ndarray:
    """The inverse of `nhwc`, on the host."""
    return np.moveaxis(np.asarray(images), -1, 1)


Run = Callable[[Case], list[Comparison]]
# A manifest's config -> a function that makes the full-size model, and its table.
Describe = Callable[[dict], tuple[Callable[[], nnx.Module], Table]]
