"""DreamBench's scores as functions of embeddings (Ruiz et al., arXiv 2208.12242, section 4.1), in numpy.

DINO and CLIP-I are the mean cosine over all pairs of a real photo and a generated image. CLIP-T is the mean cosine of each
generated image and its prompt, the prompt without the subject's token. The ceiling is the mean cosine over all pairs of two
different photos: what one more photo would reach. Higher is better everywhere.

Where a probe can read pictures (attributes.py), its scores are averaged beside them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.special import stdtrit

METRICS = ("dino", "clip_i", "clip_t")
PROBED = ("identity", "context", "identity_context", "right_class")
NOTHING_READ: Mapping[str, np.ndarray] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The DINO [n, d] and CLIP [n, e] embeddings of the same n images, of any length (the scores normalise)."""

    dino: np.ndarray
    clip: np.ndarray

    def __post_init__(self):
        if len(self.dino) != len(self.clip):
            raise ValueError(f"{len(self.dino)} DINO and {len(self.clip)} CLIP embeddings: they must be of the same images")

    def __len__(self) -> int:
        return len(self.dino)


@dataclasses.dataclass(frozen=True)
class PromptScores:
    """One prompt's means over its images."""

    prompt: str
    images: int
    dino: float
    clip_i: float
    clip_t: float
    identity: float | None = None
    context: float | None = None
    identity_context: float | None = None
    right_class: float | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
    """The means over all images of one arm. A score that is undefined is None, and `note` says why."""

    dino: float | None
    clip_i: float | None
    clip_t: float | None
    images: int
    identity: float | None = None
    context: float | None = None
    identity_context: float | None = None
    right_class: float | None = None
    per_prompt: tuple[PromptScores, ...] = ()
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON."""
        return dataclasses.asdict(self) | {"per_prompt": [dataclasses.asdict(prompt) for prompt in self.per_prompt]}


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over n values and the half width of its confidence interval (None for one value)."""

    mean: float
    half_width: float | None
    n: int


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Rows [n, d] scaled to length 1, in float64. Raises ValueError on a row that is zero or not finite, or on no rows."""
    rows = np.asarray(embeddings, np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"embeddings are [n, d] with n > 0, not of shape {rows.shape}")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0))
    if bad.size:
        raise ValueError(f"embeddings {bad[:5].tolist()} are zero or not finite")
    return rows / length


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of every row of `a` [n, d] and every row of `b` [m, d]: [n, m]."""
    return normalise(a) @ normalise(b).T


def fidelity(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Each generated image's mean cosine to all real ones, [n_generated]; its mean is the mean over all pairs."""
    return cosines(generated, real).mean(axis=1)


def agreement(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """The cosine of image i and text i, [n]. Raises ValueError if their numbers differ."""
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts: one text an image")
    return (normalise(images) * normalise(texts)).sum(axis=1)


def between_photos(real: np.ndarray) -> float | None:
    """The mean cosine over pairs of different rows of `real` [n, d]; None for one row."""
    if len(real) < 2:
        return None
    pairs = cosines(real, real)
    return float(pairs[np.triu_indices(len(real), k=1)].mean())


def ceiling(real: Embeddings, read: Mapping[str, np.ndarray] = NOTHING_READ) -> Scores:
    """The real photos against each other; undefined, and the note says so, for one photo. CLIP-T has no ceiling: photos have no prompt.

    read: what a probe reads in them, a value of a PROBED score a photo (`attributes.of_photos`).
    """
    note = "" if len(real) > 1 else "undefined: comparing real photos with each other needs at least two photos"
    means = {name: float(values.mean()) for name, values in read.items()}
    return Scores(between_photos(real.dino), between_photos(real.clip), None, len(real), **means, note=note)


def score(
    real: Embeddings,
    generated: Embeddings,
    texts: np.ndarray,
    prompts: Sequence[str],
    prompt_of: Sequence[int],
    read: Mapping[str, np.ndarray] = NOTHING_READ,
) -> Scores:
    """The scores of one arm's images.

    texts [p, e]: CLIP embeddings of the p `prompts` without the subject's token. prompt_of [n]: the prompt's number of each image.
    read: what a probe reads in them, a value of a PROBED score an image (`attributes.of_samples`).
    Raises ValueError if the numbers do not fit or a prompt has no image.
    """
    index = np.asarray(prompt_of, np.int64)
    if len(texts) != len(prompts) or len(index) != len(generated):
        raise ValueError(f"{len(prompts)} prompts with {len(texts)} embeddings, {len(generated)} images with {len(index)} prompt numbers")
    missing = sorted(set(range(len(prompts))) - set(index.tolist()))
    if missing or index.min() < 0 or index.max() >= len(prompts):
        found = f"{index.min()}..{index.max()}" if index.size else "none"
        raise ValueError(f"prompt numbers are 0..{len(prompts) - 1} and each has an image; without one: {missing[:5]}, found: {found}")
    values = {
        "dino": fidelity(real.dino, generated.dino),
        "clip_i": fidelity(real.clip, generated.clip),
        "clip_t": agreement(generated.clip, np.asarray(texts)[index]),
        **read,
    }
    per_prompt = [
        PromptScores(prompt, int((index == i).sum()), **{name: float(value[index == i].mean()) for name, value in values.items()})
        for i, prompt in enumerate(prompts)
    ]
    return Scores(**{name: float(value.mean()) for name, value in values.items()}, images=len(generated), per_prompt=tuple(per_prompt))


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean over subjects (or runs) and Student's t interval, mean ± t · s/√n with n - 1 degrees of freedom.

    Raises ValueError on no values or a level outside (0, 1).
    """
    sample = np.asarray(values, np.float64)
    if not sample.size or not 0 < level < 1:
        raise ValueError(f"an interval needs values and a level between 0 and 1, got {sample.size} values and level {level}")
    if sample.size == 1:
        return Interval(float(sample[0]), None, 1)
    quantile = stdtrit(sample.size - 1, 0.5 + level / 2)
    return Interval(float(sample.mean()), float(quantile * sample.std(ddof=1) / np.sqrt(sample.size)), sample.size)
