"""The account of weak-to-strong: how much of the supervisor's error survives in the student that learned from its proxies, in numpy.

The paper's claim (arXiv 2503.10125): next-token training fits the main mode of the proxies' tokens and filters the supervisor's scattered
errors. Where the truth is known it can be measured, in what a probe reads from the pictures (attributes) and in their tokens.

Both are split into a systematic and a scattered part (errors.py): of an attribute by one-hot vectors, of a token by code vectors.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from proxy_jax.metrics.errors import Groups, Line, Paired, Rate, Record, Split, ends, groups_of, line, paired, rate, resamples, split_of, with_keys
from proxy_jax.metrics.scores import Interval, interval, normalise

Read = Mapping[str, Sequence[str]]  # attribute -> its value in each picture, as Probes.read gives it


@dataclasses.dataclass(frozen=True)
class AttributeSide(Record):
    """One attribute in the pictures of one side. mode: the value most often read (the first by name of several)."""

    wrong: Rate
    mode: str
    split: Split


@dataclasses.dataclass(frozen=True)
class AttributeAccount(Record):
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


@dataclasses.dataclass(frozen=True)
class Modes(Record):
    """Numbers of attributes by their likeliest values: right on both sides; wrong at the supervisor and right at the student (what a
    majority filter cannot do); right and then wrong; the same wrong value; two different wrong ones."""

    right: int
    corrected: int
    spoiled: int
    copied: int
    other: int


@dataclasses.dataclass(frozen=True)
class AttributeSummary(Record):
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


def _attribute_side(values: Sequence[str], truth: str) -> AttributeSide:
    if len(values) < 2:
        raise ValueError("systematic and scattered errors are told apart by more than one picture")
    names = sorted({truth, *values})
    errors = np.eye(len(names))[[names.index(value) for value in values]] - np.eye(len(names))[names.index(truth)]
    wrong, counts = sum(value != truth for value in values), Counter(values)
    split = split_of(groups_of(errors, np.zeros(len(values), int), np.arange(len(values))), np.ones(1), 1.0)
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
class Region(Record):
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
class TokenAccount(Record):
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


@dataclasses.dataclass(frozen=True)
class RegionSummary(Record):
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
class TokenSummary(Record):
    """The accounts of all subjects' tokens together, inside and outside of the subject's area."""

    inside: RegionSummary
    outside: RegionSummary


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
        chosen = [with_keys(own, keys) for own in groups]
        shares = np.stack([own.counts / whole.counts.sum() for own, whole in zip(chosen, groups, strict=True)])
        weights = shares.mean(0)
        for name, side, own, covered in zip(("supervisor", "student"), sides, chosen, shares.sum(1), strict=False):
            split = split_of(own, weights, float(covered))
            found[f"{name}_{place}"] = _region(side, place, codebook, threshold, split, weight, compared)
        products = (chosen[0].sums * chosen[1].sums).sum(1) / (2 * chosen[0].counts * chosen[1].counts)
        found[f"repeated_{place}"] = float(np.average(products, weights=weights))
    return TokenAccount(subject, threshold, compared, **found)


def _in_region(side: Tokens, place: str) -> np.ndarray:
    return side.area if place == "inside" else ~side.area


def _token_groups(side: Tokens, place: str, vectors: np.ndarray) -> Groups:
    chosen = _in_region(side, place)
    if not chosen.any():
        raise ValueError(f"the pictures of one side have no tokens {place} the subject's area")
    return groups_of(vectors[side.pictures[chosen]] - vectors[side.truth[chosen]], side.truth[chosen], np.nonzero(chosen)[0])


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
        repeated, of = (resamples(len(accounts)) @ np.asarray(biases)).T
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
            bias_slope_interval=ends(slopes[1:], len(accounts)) if of[0] > 0 else None,
        )

    return TokenSummary(region("inside"), region("outside"))
