"""The account of weak-to-strong: how much of the supervisor's error survives in the student that learned from its proxies, in numpy.

The paper's claim (arXiv 2503.10125): next-token training fits the main mode of the proxies' tokens and filters the supervisor's scattered
errors. Where the truth is known it can be measured, in what a probe reads from the pictures (attributes) and in their tokens.

Both are split in the same way. A picture's error is a vector: of an attribute, what is read less what is true, as one-hot vectors; of a
token, its code vector less the true token's, both of length 1. Half its squared length is the error itself: 1 for a wrong attribute,
1 - cosine for a token. Its mean over pictures is half the squared length of the mean vector, the **systematic** part (the same error in
every picture), and half the variance around it, the **scattered** part (another error in each picture): where the same wrong value is read
with probability p, p² is systematic and p (1 - p) scattered. So this is not what a filter keeps and what it takes away: one that draws the
likeliest value makes the error rate 0 where p < 1/2, and 1 where p > 1/2. The systematic part is estimated from pairs of different
pictures, hence without bias at any number of pictures, and may come out a little below 0.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri

from proxy_jax.metrics.scores import Interval, interval, normalise

Read = Mapping[str, Sequence[str]]  # attribute -> its value in each picture, as Probes.read gives it
RESAMPLED = 2000  # times, for the interval of a slope


def _from_dict(kind: type, content: Mapping[str, Any]) -> Any:
    """A dataclass whose fields are plain values or dataclasses, from dataclasses.asdict of it."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    return kind(**{name: _from_dict(types[name], value) if isinstance(value, Mapping) else value for name, value in content.items()})


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of n pictures with its 95 % interval (Wilson)."""

    rate: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Split:
    """A mean error, systematic + scattered (see above). covered: the share of all errors that it is a mean over (of tokens: see `tokens`)."""

    error: float
    systematic: float
    scattered: float
    covered: float


@dataclasses.dataclass(frozen=True)
class Paired:
    """A figure of supervisor and student over the same subjects, and of the student less its supervisor."""

    supervisor: Interval
    student: Interval
    difference: Interval


@dataclasses.dataclass(frozen=True)
class AttributeSide:
    """One attribute in the pictures of one side. mode: the value most often read (the first by name of several)."""

    wrong: Rate
    mode: str
    split: Split


@dataclasses.dataclass(frozen=True)
class AttributeAccount:
    """One attribute of one subject, of the supervisor's pictures and the student's.

    overlap: the share of pictures with a wrong value that both sides show so often; supervisor_only, student_only: what else of theirs is
    wrong. Two sides that are wrong for reasons of their own overlap too. misread: how often the probe is wrong about renderings of the
    truth, None if none were read.
    """

    subject: str
    attribute: str
    truth: str
    supervisor: AttributeSide
    student: AttributeSide
    overlap: float
    supervisor_only: float
    student_only: float
    misread: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "AttributeAccount":
        """What `to_dict` gave."""
        return _from_dict(cls, content)


@dataclasses.dataclass(frozen=True)
class Line:
    """A least-squares line with 95 % intervals (low, high) by resampling whole subjects; None for one subject."""

    slope: float
    intercept: float
    slope_interval: tuple[float, float] | None
    intercept_interval: tuple[float, float] | None
    points: int
    subjects: int


@dataclasses.dataclass(frozen=True)
class Modes:
    """Numbers of attributes by their likeliest values: right on both sides; wrong at the supervisor and right at the student (what a
    majority filter cannot do); right and then wrong; the same wrong value; two different wrong ones."""

    right: int
    corrected: int
    spoiled: int
    copied: int
    other: int


@dataclasses.dataclass(frozen=True)
class AttributeSummary:
    """All attributes of all subjects. line: the student's error rate as a function of its supervisor's; slope 1: it is wrong as often more.

    within: the same with an intercept for each attribute: one that is hard for both sides does not make the slope. Neither says that errors
    are copied (see `excess`). The rest are means over a subject's attributes, then over subjects. left_out: "subject: attribute" of those
    that the probe misreads.
    """

    line: Line | None
    within: Line | None
    modes: Modes
    error: Paired
    systematic: Paired
    scattered: Paired
    overlap: Interval
    supervisor_only: Interval
    student_only: Interval
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts, ready for JSON."""
        return dataclasses.asdict(self)


def rate(errors: int, n: int) -> Rate:
    """A share with Wilson's interval. Raises ValueError without pictures."""
    if n < 1:
        raise ValueError("a rate needs at least one picture")
    z, p = float(ndtri(0.975)), errors / n
    middle, half = p + z**2 / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)))
    return Rate(p, max(0.0, (middle - half) / (1 + z**2 / n)), min(1.0, (middle + half) / (1 + z**2 / n)), n)


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Error vectors summed by group (what is the same thing in different pictures), sorted by key."""

    keys: np.ndarray  # [g]
    counts: np.ndarray  # [g]
    sums: np.ndarray  # [g, d]
    squares: np.ndarray  # [g]: of halved squared lengths
    shared: np.ndarray  # [g]: the systematic part, nan for a group that one picture alone shows


def _groups(errors: np.ndarray, keys: np.ndarray, pictures: np.ndarray) -> _Groups:
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
    return _Groups(found, counts, sums, squares, shared)


def _chosen(groups: _Groups, keys: np.ndarray) -> _Groups:
    """The groups of these keys, all of which there are."""
    rows = np.searchsorted(groups.keys, keys)
    return _Groups(*(getattr(groups, field.name)[rows] for field in dataclasses.fields(_Groups)))


def _split(groups: _Groups, weights: np.ndarray, covered: float) -> Split:
    error, systematic = (float(np.average(values, weights=weights)) for values in (groups.squares / groups.counts, groups.shared))
    return Split(error, systematic, error - systematic, covered)


def _attribute_side(values: Sequence[str], truth: str) -> AttributeSide:
    if len(values) < 2:
        raise ValueError("systematic and scattered errors are told apart by more than one picture")
    names = sorted({truth, *values})
    errors = np.eye(len(names))[[names.index(value) for value in values]] - np.eye(len(names))[names.index(truth)]
    wrong, counts = sum(value != truth for value in values), Counter(values)
    split = _split(_groups(errors, np.zeros(len(values), int), np.arange(len(values))), np.ones(1), 1.0)
    return AttributeSide(rate(wrong, len(values)), min(names, key=lambda name: (-counts[name], name)), split)


def attributes(subject: str, truth: Mapping[str, str], supervisor: Read, student: Read, rendered: Read | None = None) -> tuple[AttributeAccount, ...]:
    """One account an attribute of `truth`, from what a probe read in the supervisor's pictures and in the student's of the same prompt.

    Read the very proxies that the student learned from: those are the errors it could copy. rendered: what the probe reads in renderings
    of the truth (matching.nearest), which shows where the probe, not the generator, is wrong.
    Raises ValueError if a side has fewer than two pictures.
    """
    found = []
    for name, value in truth.items():
        shares = [Counter(read[name]) for read in (supervisor, student)]
        numbers = [len(read[name]) for read in (supervisor, student)]
        both = sum(min(count / n for count, n in zip((s[v] for s in shares), numbers, strict=True)) for v in shares[0] if v != value)
        sides = _attribute_side(supervisor[name], value), _attribute_side(student[name], value)
        misread = None if rendered is None else float(np.mean([seen != value for seen in rendered[name]]))
        found.append(AttributeAccount(subject, name, value, *sides, both, sides[0].wrong.rate - both, sides[1].wrong.rate - both, misread))
    return tuple(found)


def _resamples(subjects: int) -> np.ndarray:
    """How often each subject counts, [1 + RESAMPLED, subjects]: first once each, then as drawn with replacement."""
    draws = np.random.default_rng(0).multinomial(subjects, np.full(subjects, 1 / subjects), RESAMPLED)
    return np.vstack([np.ones(subjects), draws])


def _ends(values: np.ndarray, subjects: int) -> tuple[float, float] | None:
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
    n, sx, sy, sxx, sxy = np.moveaxis(np.tensordot(_resamples(len(names)), terms, 1), -1, 0)  # [1 + RESAMPLED, groups] each
    some = np.maximum(n, 1)  # all sums of a group that a resample lacks are 0
    spread, along, points = (sxx - sx**2 / some).sum(1), (sxy - sx * sy / some).sum(1), n.sum(1)
    usable = spread > 1e-9 * points
    if not usable[0]:
        return None
    slopes = along[usable] / spread[usable]
    intercepts = (sy.sum(1)[usable] - slopes * sx.sum(1)[usable]) / points[usable]
    return Line(float(slopes[0]), float(intercepts[0]), *(_ends(found[1:], len(names)) for found in (slopes, intercepts)), len(x), len(names))


def excess(accounts: Sequence[AttributeAccount], others: Sequence[AttributeAccount], most_misread: float = 1.0) -> Line | None:
    """How much oftener a student is wrong than another one, as a line over the supervisor's error rate; of the same subjects and attributes.

    If the other learned from true pictures, its errors are those of a student of this size; what the first has more of them where its
    supervisor has more is inherited. Raises ValueError if the accounts are not of the same attributes.
    """
    if [(a.subject, a.attribute) for a in accounts] != [(b.subject, b.attribute) for b in others]:
        raise ValueError("the two students' accounts are of different subjects or attributes")
    used = [(a, b) for a, b in zip(accounts, others, strict=True) if (a.misread or 0.0) <= most_misread]
    more = [a.student.wrong.rate - b.student.wrong.rate for a, b in used]
    return line([a.supervisor.wrong.rate for a, _ in used], more, [a.subject for a, _ in used]) if used else None


def paired(supervisor: Sequence[float], student: Sequence[float]) -> Paired:
    """Means with intervals over subjects, one value a subject on each side. Raises ValueError if their numbers differ or are 0."""
    a, b = np.asarray(supervisor, np.float64), np.asarray(student, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values of the supervisor and {len(b)} of the student: one a subject each")
    return Paired(interval(a), interval(b), interval(b - a))


def summarise_attributes(accounts: Sequence[AttributeAccount], most_misread: float = 1.0) -> AttributeSummary:
    """Over attributes and subjects; attributes of a subject that the probe misreads more often than `most_misread` are left out.

    Leave them out to judge the line: what the probe cannot read is wrong on both sides and looks copied. Raises ValueError if none is left.
    """
    left_out = [account for account in accounts if (account.misread or 0.0) > most_misread]
    used = [account for account in accounts if account not in left_out]
    if not used:
        raise ValueError(f"none of {len(accounts)} accounts is left to summarise")
    sides = [(account.supervisor, account.student) for account in used]
    names = list(dict.fromkeys(account.subject for account in used))

    def over_attributes(value: Callable[[AttributeAccount], float]) -> list[float]:
        return [float(np.mean([value(account) for account in used if account.subject == name])) for name in names]

    def both(value: Callable[[AttributeSide], float]) -> Paired:
        return paired(over_attributes(lambda account: value(account.supervisor)), over_attributes(lambda account: value(account.student)))

    rates = [[side.wrong.rate for side in own] for own in zip(*sides, strict=True)]
    subjects = [account.subject for account in used]
    return AttributeSummary(
        line=line(*rates, subjects),
        within=line(*rates, subjects, [account.attribute for account in used]),
        modes=_modes(used),
        error=both(lambda side: side.wrong.rate),
        systematic=both(lambda side: side.split.systematic),
        scattered=both(lambda side: side.split.scattered),
        overlap=interval(over_attributes(lambda account: account.overlap)),
        supervisor_only=interval(over_attributes(lambda account: account.supervisor_only)),
        student_only=interval(over_attributes(lambda account: account.student_only)),
        left_out=tuple(f"{account.subject}: {account.attribute}" for account in left_out),
    )


def _modes(accounts: Sequence[AttributeAccount]) -> Modes:
    counts: Counter[str] = Counter()
    for account in accounts:
        before, after = account.supervisor.mode, account.student.mode
        if after == account.truth:
            counts["right" if before == account.truth else "corrected"] += 1
        elif before == account.truth:
            counts["spoiled"] += 1
        else:
            counts["copied" if before == after else "other"] += 1
    return Modes(**{field.name: counts[field.name] for field in dataclasses.fields(Modes)})


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of n pictures [n, t], of the renderings nearest to them [n, t], and where those show the subject [n, t] bool (matching.areas)."""

    pictures: np.ndarray
    truth: np.ndarray
    area: np.ndarray

    def __post_init__(self):
        if self.pictures.ndim != 2 or not self.pictures.shape == self.truth.shape == self.area.shape or len(self.pictures) < 2:
            shapes = self.pictures.shape, self.truth.shape, self.area.shape
            raise ValueError(f"tokens, true tokens and areas are [n, t] of at least two pictures, not {shapes}")


@dataclasses.dataclass(frozen=True)
class Region:
    """One side's tokens inside or outside the subject's area.

    deviation: 1 - cosine of the code vectors of a token and the true one, a mean over tokens, then pictures. beyond: the share of tokens
    that deviate more than the threshold. split: of the mean deviation over the true tokens that are compared (see `tokens`), those with the
    same true token being the same thing; covered: the share of this side's tokens whose true one is compared.
    entropy: of the token in each place over pictures, in bits, a mean over places (weighted by how often both sides show the region there);
    truth_entropy: that of the true tokens, the spread of the scenes themselves.
    """

    tokens: int
    deviation: Interval
    beyond: float
    split: Split
    entropy: float
    truth_entropy: float


@dataclasses.dataclass(frozen=True)
class TokenAccount:
    """The tokens of one subject's pictures. compared: the number of each side's pictures (its first) that entropies are taken over.

    repeated: the part of the supervisor's systematic deviation that the student's mean errors repeat. Over the whole of it, it is a slope:
    1 if the student makes the supervisor's systematic error, 0 if it has nothing of it.
    """

    subject: str
    threshold: float
    compared: int
    supervisor_inside: Region
    supervisor_outside: Region
    student_inside: Region
    student_outside: Region
    repeated_inside: float
    repeated_outside: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TokenAccount":
        """What `to_dict` gave."""
        return _from_dict(cls, content)


@dataclasses.dataclass(frozen=True)
class RegionSummary:
    """Means over subjects; error, systematic, scattered and covered are the split's.

    bias_slope: all subjects' repeated deviation over their supervisors' systematic one, None where they have none, and its 95 % interval
    by resampling subjects (None for one).
    """

    deviation: Paired
    beyond: Paired
    error: Paired
    systematic: Paired
    scattered: Paired
    covered: Paired
    entropy: Paired
    truth_entropy: Paired
    bias_slope: float | None
    bias_slope_interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class TokenSummary:
    """The accounts of all subjects' tokens together, inside and outside of the subject's area."""

    inside: RegionSummary
    outside: RegionSummary

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts, ready for JSON."""
        return dataclasses.asdict(self)


def deviation(tokens: np.ndarray, truth: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """1 - cosine of the code vectors of tokens and true tokens of one shape, from 0 (the same) to 2. codebook [k, d]; no row is zero."""
    vectors = normalise(codebook)
    return ((vectors[tokens] - vectors[truth]) ** 2).sum(-1) / 2


def entropy(tokens: np.ndarray) -> np.ndarray:
    """The entropy of each place's token over pictures, of tokens [n, t]: [t], in bits, at most log2(n)."""
    found = np.zeros(tokens.shape[1])
    for place, column in enumerate(tokens.T):
        shares = np.unique(column, return_counts=True)[1] / len(column)
        found[place] = -(shares * np.log2(shares)).sum()
    return found


def tokens(
    subject: str, supervisor: Tokens, student: Tokens, codebook: np.ndarray, threshold: float = 0.5, others: Sequence[Tokens] = ()
) -> TokenAccount:
    """The account of the supervisor's pictures (the proxies the student learned from) and the student's of the same prompt.

    codebook: the tokenizer's code vectors [k, d]. Splits are means over the true tokens that several pictures of each side show, weighted
    on both sides by their mean share; others: further sides that must show them too, so that several students' accounts compare the same.
    Raises ValueError if a region of a side has no tokens, or if there is no true token to compare.
    """
    vectors, compared, sides = normalise(codebook), min(len(supervisor.pictures), len(student.pictures)), (supervisor, student, *others)
    areas = np.concatenate([side.area[:compared] for side in sides[:2]])
    found: dict[str, Any] = {}
    for place, weight in (("inside", areas.mean(0)), ("outside", 1 - areas.mean(0))):
        groups = [_token_groups(side, place, vectors) for side in sides]
        keys = functools.reduce(np.intersect1d, [own.keys[~np.isnan(own.shared)] for own in groups])
        if not len(keys):
            raise ValueError(f"{subject}: no true token {place} the subject's area is in more than one picture of each side")
        chosen = [_chosen(own, keys) for own in groups]
        shares = np.stack([own.counts / whole.counts.sum() for own, whole in zip(chosen, groups, strict=True)])
        weights = shares.mean(0)
        for name, side, own, covered in zip(("supervisor", "student"), sides, chosen, shares.sum(1), strict=False):
            split = _split(own, weights, float(covered))
            found[f"{name}_{place}"] = _region(side, place, codebook, threshold, split, weight, compared)
        products = (chosen[0].sums * chosen[1].sums).sum(1) / (2 * chosen[0].counts * chosen[1].counts)
        found[f"repeated_{place}"] = float(np.average(products, weights=weights))
    return TokenAccount(subject, threshold, compared, **found)


def _in_region(side: Tokens, place: str) -> np.ndarray:
    return side.area if place == "inside" else ~side.area


def _token_groups(side: Tokens, place: str, vectors: np.ndarray) -> _Groups:
    chosen = _in_region(side, place)
    if not chosen.any():
        raise ValueError(f"the pictures of one side have no tokens {place} the subject's area")
    return _groups(vectors[side.pictures[chosen]] - vectors[side.truth[chosen]], side.truth[chosen], np.nonzero(chosen)[0])


def _region(side: Tokens, place: str, codebook: np.ndarray, threshold: float, split: Split, weight: np.ndarray, compared: int) -> Region:
    """weight [t]: how often a place of the grid is in the region, for the entropies."""
    chosen, off = _in_region(side, place), deviation(side.pictures, side.truth, codebook)
    means = [float(row[own].mean()) for row, own in zip(off, chosen, strict=True) if own.any()]
    spreads = [float(np.average(entropy(found[:compared]), weights=weight)) for found in (side.pictures, side.truth)]
    return Region(int(chosen.sum()), interval(means), float((off[chosen] > threshold).mean()), split, *spreads)


def summarise_tokens(accounts: Sequence[TokenAccount]) -> TokenSummary:
    """Over subjects. Raises ValueError without accounts."""

    def region(place: str) -> RegionSummary:
        def both(value: Callable[[Region], float]) -> Paired:
            sides = ([value(getattr(account, f"{name}_{place}")) for account in accounts] for name in ("supervisor", "student"))
            return paired(*sides)

        biases = [[getattr(account, f"repeated_{place}"), getattr(account, f"supervisor_{place}").split.systematic] for account in accounts]
        repeated, of = (_resamples(len(accounts)) @ np.asarray(biases)).T
        slopes = repeated[of > 0] / of[of > 0]
        return RegionSummary(
            deviation=both(lambda found: found.deviation.mean),
            beyond=both(lambda found: found.beyond),
            error=both(lambda found: found.split.error),
            systematic=both(lambda found: found.split.systematic),
            scattered=both(lambda found: found.split.scattered),
            covered=both(lambda found: found.split.covered),
            entropy=both(lambda found: found.entropy),
            truth_entropy=both(lambda found: found.truth_entropy),
            bias_slope=float(slopes[0]) if of[0] > 0 else None,
            bias_slope_interval=_ends(slopes[1:], len(accounts)) if of[0] > 0 else None,
        )

    return TokenSummary(region("inside"), region("outside"))
