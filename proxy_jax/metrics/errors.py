"""Errors of many pictures and subjects: rates, what of a mean error is systematic, lines and intervals by resampling, in numpy.

All errors are split in the same way. A picture's error is a vector: of an attribute, what is read less what is true, as one-hot vectors; of a
token, its code vector less the true token's, both of length 1. Half its squared length is the error itself: 1 for a wrong attribute,
1 - cosine for a token. Its mean over pictures is half the squared length of the mean vector, the **systematic** part (the same error in
every picture), and half the variance around it, the **scattered** part (another error in each picture): where the same wrong value is read
with probability p, p² is systematic and p (1 - p) scattered. So this is not what a filter keeps and what it takes away: one that draws the
likeliest value makes the error rate 0 where p < 1/2, and 1 where p > 1/2. The systematic part is estimated from pairs of different
pictures, hence without bias at any number of pictures, and may come out a little below 0.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.special import ndtri

from proxy_jax.metrics.scores import Interval, interval

RESAMPLED = 2000  # times, for the interval of a slope


@dataclasses.dataclass(frozen=True)
class Record:
    """A dataclass that goes into JSON and comes back: its fields are plain values and dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        return _made(cls, content)


def _made(kind: type, content: Mapping[str, Any]) -> Any:
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    return kind(**{name: _made(types[name], value) if isinstance(value, Mapping) else value for name, value in content.items()})


@dataclasses.dataclass(frozen=True)
class Rate(Record):
    """A share of n pictures with its 95 % interval (Wilson)."""

    rate: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Split(Record):
    """A mean error, systematic + scattered (see above). covered: the share of all errors that it is a mean over (of tokens: see account.tokens)."""

    error: float
    systematic: float
    scattered: float
    covered: float


@dataclasses.dataclass(frozen=True)
class Paired(Record):
    """A figure of supervisor and student over the same subjects, and of the student less its supervisor."""

    supervisor: Interval
    student: Interval
    difference: Interval


@dataclasses.dataclass(frozen=True)
class Line(Record):
    """A least-squares line with 95 % intervals (low, high) by resampling whole subjects; None for one subject."""

    slope: float
    intercept: float
    slope_interval: tuple[float, float] | None
    intercept_interval: tuple[float, float] | None
    points: int
    subjects: int


def rate(errors: int, n: int) -> Rate:
    """A share with Wilson's interval. Raises ValueError without pictures."""
    if n < 1:
        raise ValueError("a rate needs at least one picture")
    z, p = float(ndtri(0.975)), errors / n
    middle, half = p + z**2 / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)))
    return Rate(p, max(0.0, (middle - half) / (1 + z**2 / n)), min(1.0, (middle + half) / (1 + z**2 / n)), n)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Error vectors summed by group (what is the same thing in different pictures), sorted by key."""

    keys: np.ndarray  # [g]
    counts: np.ndarray  # [g]
    sums: np.ndarray  # [g, d]
    squares: np.ndarray  # [g]: of halved squared lengths
    shared: np.ndarray  # [g]: the systematic part, nan for a group that one picture alone shows


def groups_of(errors: np.ndarray, keys: np.ndarray, pictures: np.ndarray) -> Groups:
    """Of error vectors [m, d] with their groups [m] and pictures [m]."""
    found, group = np.unique(keys, return_inverse=True)
    pairs, pair = np.unique(np.stack([group, pictures], 1), axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    own = np.zeros((len(pairs), errors.shape[1]))  # of one group in one picture
    np.add.at(own, pair, errors)
    of_group, own_counts = pairs[:, 0], np.bincount(pair)

    def by_group(values: np.ndarray) -> np.ndarray:
        return np.bincount(of_group, values, minlength=len(found))

    sums = np.stack([by_group(column) for column in own.T], 1)
    counts, squares = np.bincount(group), np.bincount(group, (errors**2).sum(1) / 2)
    # The sum over pairs of different pictures is that over all pairs less that within pictures.
    products = (sums**2).sum(1) - by_group((own**2).sum(1))
    number = counts**2 - by_group(own_counts**2)
    shared = np.divide(products, 2 * number, out=np.full(len(found), np.nan), where=number > 0)
    return Groups(found, counts, sums, squares, shared)


def with_keys(groups: Groups, keys: np.ndarray) -> Groups:
    """The groups of these keys, all of which there are."""
    rows = np.searchsorted(groups.keys, keys)
    return Groups(*(getattr(groups, field.name)[rows] for field in dataclasses.fields(Groups)))


def split_of(groups: Groups, weights: np.ndarray, covered: float) -> Split:
    """The split of the groups' mean errors, weighted [g]."""
    error, systematic = (float(np.average(values, weights=weights)) for values in (groups.squares / groups.counts, groups.shared))
    return Split(error, systematic, error - systematic, covered)


def resamples(subjects: int) -> np.ndarray:
    """How often each subject counts, [1 + RESAMPLED, subjects]: first once each, then as drawn with replacement."""
    draws = np.random.default_rng(0).multinomial(subjects, np.full(subjects, 1 / subjects), RESAMPLED)
    return np.vstack([np.ones(subjects), draws])


def ends(values: np.ndarray, subjects: int) -> tuple[float, float] | None:
    """The 95 % interval of a figure from its values over resamples."""
    return None if subjects < 2 else tuple(np.quantile(values, (0.025, 0.975)).tolist())


def line(x: Sequence[float], y: Sequence[float], subjects: Sequence[str], groups: Sequence[str] | None = None) -> Line | None:
    """The least-squares line of y [n] as a function of x [n], points of one subject resampled together; None if all x are the same.

    groups [n]: each has an intercept of its own. The slope is then that within groups (None if their x do not differ), the intercept
    the mean one.
    """
    names, of = np.unique(np.asarray(subjects), return_inverse=True)
    kinds, kind = np.unique(np.asarray([""] * len(of) if groups is None else groups), return_inverse=True)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    terms = np.zeros((len(names), len(kinds), 5))
    np.add.at(terms, (of, kind), np.stack([np.ones_like(x), x, y, x * x, x * y], 1))
    n, sx, sy, sxx, sxy = np.moveaxis(np.tensordot(resamples(len(names)), terms, 1), -1, 0)  # [1 + RESAMPLED, groups] each
    some = np.maximum(n, 1)  # all sums of a group that a resample lacks are 0
    spread, along, points = (sxx - sx**2 / some).sum(1), (sxy - sx * sy / some).sum(1), n.sum(1)
    usable = spread > 1e-9 * points
    if not usable[0]:
        return None
    slopes = along[usable] / spread[usable]
    intercepts = (sy.sum(1)[usable] - slopes * sx.sum(1)[usable]) / points[usable]
    return Line(float(slopes[0]), float(intercepts[0]), *(ends(found[1:], len(names)) for found in (slopes, intercepts)), len(x), len(names))


def paired(supervisor: Sequence[float], student: Sequence[float]) -> Paired:
    """Means with intervals over subjects, one value a subject on each side. Raises ValueError if their numbers differ or are 0."""
    a, b = np.asarray(supervisor, np.float64), np.asarray(student, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values of the supervisor and {len(b)} of the student: one a subject each")
    return Paired(interval(a), interval(b), interval(b - a))
