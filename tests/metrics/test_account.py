"""proxy_jax/metrics/account.py on made cases whose answer is known: a student that copies, one that filters, one that is noise."""

import dataclasses
import json

import numpy as np
import pytest

from proxy_jax.metrics import account
from proxy_jax.metrics.account import Modes, Tokens

COLOURS = ("red", "green", "blue", "teal")


def spread(wrong: int, n: int, values=COLOURS[1:]) -> list[str]:
    """n readings of a red subject, `wrong` of them wrong: each of the wrong values in turn."""
    return [values[i % len(values)] for i in range(wrong)] + ["red"] * (n - wrong)


def of(supervisor: list[str], student: list[str], subject: str = "dog", **fields) -> account.AttributeAccount:
    return account.attributes(subject, {"primary": "red"}, {"primary": supervisor}, {"primary": student}, **fields)[0]


# --- attributes ---


def test_wilson_interval():
    found = account.rate(5, 50)  # by hand: middle (0.1 + 0.03841) / 1.07683, half width 0.08546
    np.testing.assert_allclose((found.rate, found.low, found.high), (0.1, 0.04348, 0.21360), atol=2e-5)
    assert account.rate(0, 20).low == 0 and 0.1 < account.rate(0, 20).high < 0.2
    with pytest.raises(ValueError, match="at least one"):
        account.rate(0, 0)


def test_one_wrong_value_in_all_pictures_is_systematic_and_another_in_each_is_scattered():
    bias = of(["blue"] * 40, ["blue"] * 40).supervisor
    np.testing.assert_allclose((bias.split.error, bias.split.systematic, bias.split.scattered), (1, 1, 0), atol=1e-12)
    assert bias.mode == "blue"
    names = [f"colour{i}" for i in range(20)] + ["red"] * 20
    scattered = of(names, names).supervisor
    # Two different pictures: both wrong in (20·19)/(40·39) of the pairs, never in the same way; (e, e') is 1 there, 2 if they were the same.
    np.testing.assert_allclose(scattered.split.systematic, 0.5 * 20 * 19 / (40 * 39))
    assert scattered.mode == "red" and scattered.wrong.rate == scattered.split.error == 0.5


def test_the_split_does_not_depend_on_the_number_of_pictures():
    """A value that is wrong with probability 0.3: 0.3² is systematic, 0.3 · 0.7 scattered, in six pictures as in many."""
    rng = np.random.default_rng(0)
    for n in (6, 200):
        draws = [["blue" if wrong else "red" for wrong in rng.random(n) < 0.3] for _ in range(600)]
        splits = [of(values, values).supervisor.split for values in draws]
        np.testing.assert_allclose(np.mean([split.systematic for split in splits]), 0.09, atol=0.015)
        np.testing.assert_allclose(np.mean([split.scattered for split in splits]), 0.21, atol=0.015)


def test_what_both_sides_have_wrong_and_what_one_alone():
    copied, filtered = of(spread(30, 100), spread(30, 100)), of(spread(30, 100), ["red"] * 50)
    np.testing.assert_allclose((copied.overlap, copied.supervisor_only, copied.student_only), (0.3, 0, 0), atol=1e-12)
    np.testing.assert_allclose((filtered.overlap, filtered.supervisor_only, filtered.student_only), (0, 0.3, 0), atol=1e-12)
    other = of(spread(20, 100, ["blue"]), spread(5, 50, ["blue"])[:-5] + ["pink"] * 5)
    np.testing.assert_allclose((other.overlap, other.supervisor_only, other.student_only), (0.1, 0.1, 0.1), atol=1e-12)


def accounts(student_of) -> list[account.AttributeAccount]:
    """Twelve subjects, the supervisor wrong in 0, 5, ... 55 of 100 pictures, always the same wrong value; the student as told."""
    return [of(spread(5 * i, 100, ["blue"]), student_of(5 * i), f"subject{i}") for i in range(12)]


def test_a_copying_student_has_slope_one():
    found = account.summarise_attributes(accounts(lambda wrong: spread(wrong, 100, ["blue"])))
    np.testing.assert_allclose((found.line.slope, found.line.intercept), (1, 0), atol=1e-9)
    np.testing.assert_allclose((found.line.slope_interval, found.line.intercept_interval), ((1, 1), (0, 0)), atol=1e-9)
    assert (found.line.points, found.line.subjects) == (12, 12)
    assert found.modes == Modes(right=10, corrected=0, spoiled=0, copied=2, other=0)  # 50 of 100: the first by name, blue
    assert found.scattered.difference.mean == found.error.difference.mean == found.supervisor_only.mean == 0
    assert found.error.supervisor == found.error.student and found.overlap.mean == pytest.approx(0.275)


def test_a_student_that_takes_the_majority_loses_systematic_errors_too_or_doubles_them():
    """Wrong in the same way with p = 0.3, p² = 0.09 is systematic, and 0 in the student; of p = 0.7 it is 0.49, and 1 in the student."""
    for wrong, expected in ((30, 0.0), (70, 1.0)):
        found = of(spread(wrong, 100, ["blue"]), ["blue" if wrong >= 50 else "red"] * 100)
        assert found.supervisor.split.systematic == pytest.approx((wrong / 100) ** 2, abs=0.01)
        assert (found.student.split.systematic, found.student.split.scattered) == pytest.approx((expected, 0))
    found = account.summarise_attributes(accounts(lambda wrong: ["blue" if wrong >= 50 else "red"] * 100))
    assert found.scattered.student.mean == 0 and found.scattered.supervisor.mean > 0.1
    assert found.line.slope > 1  # of an ideal filter
    assert found.modes == Modes(right=10, corrected=0, spoiled=0, copied=2, other=0)


def test_a_perfect_student_and_one_that_is_noise_have_slope_zero():
    perfect = account.summarise_attributes(accounts(lambda wrong: ["red"] * 100))
    np.testing.assert_allclose((perfect.line.slope, perfect.line.intercept), (0, 0), atol=1e-12)
    assert perfect.modes.corrected == 2 and perfect.overlap.mean == perfect.student_only.mean == 0
    rng = np.random.default_rng(0)
    noise = account.summarise_attributes(accounts(lambda wrong: [str(value) for value in rng.choice(COLOURS, 100)]))
    low, high = noise.line.slope_interval
    assert low < 0 < high and high - low < 0.4 and noise.line.intercept == pytest.approx(0.75, abs=0.05)
    assert noise.student_only.mean > 0.4


def hard_and_easy(slope: float) -> list[account.AttributeAccount]:
    """Six subjects with an easy and a hard attribute, whose errors rise a little over subjects; the student's rise `slope` times as much."""
    found = []
    for i in range(6):
        for name, base in (("colour", 10), ("parts", 50)):
            wrong, student = base + 2 * i, base + round(slope * 2 * i)
            readings = ({name: ["blue"] * number + ["red"] * (100 - number)} for number in (wrong, student))
            found += account.attributes(f"subject{i}", {name: "red"}, *readings)
    return found


def test_an_attribute_that_is_hard_for_both_makes_no_slope_within_attributes():
    for slope in (0.0, 0.5):
        found = account.summarise_attributes(hard_and_easy(slope))
        assert found.line.slope == pytest.approx(1, abs=0.05)  # hard ones are wrong often on both sides
        assert found.within.slope == pytest.approx(slope, abs=1e-9)
        np.testing.assert_allclose(found.within.slope_interval, (slope, slope), atol=1e-9)
        assert (found.within.points, found.within.subjects) == (12, 6)


def test_what_a_student_has_more_of_than_one_of_true_pictures_is_inherited():
    copying, half, as_bad = (hard_and_easy(slope)[1::2] for slope in (1.0, 0.5, 0.0))  # the hard attribute alone
    assert account.excess(as_bad, as_bad).slope == 0
    assert account.excess(half, as_bad).slope == pytest.approx(0.5)
    found = account.excess(copying, as_bad)
    assert found.slope == pytest.approx(1) and (found.points, found.subjects) == (6, 6)
    with pytest.raises(ValueError, match="different subjects or attributes"):
        account.excess(copying, as_bad[::-1])
    misread = [dataclasses.replace(found, misread=0.5) for found in copying]
    assert account.excess(misread, as_bad, most_misread=0.2) is None


def test_the_interval_is_over_subjects_not_over_attributes():
    """Ten attributes of a subject that are all alike say no more than one."""
    rng = np.random.default_rng(1)
    subjects = [f"subject{i}" for i in range(8)]
    x, noise = rng.random(8), rng.normal(0, 0.1, 8)
    alone = account.line(x, 0.5 * x + 0.1 + noise, subjects)
    tenfold = account.line(np.repeat(x, 10), np.repeat(0.5 * x + 0.1 + noise, 10), np.repeat(subjects, 10))
    np.testing.assert_allclose(tenfold.slope_interval, alone.slope_interval, atol=1e-9)
    np.testing.assert_allclose((alone.slope, alone.intercept), np.polyfit(x, 0.5 * x + 0.1 + noise, 1), atol=1e-9)
    assert tenfold.points == 80 and alone.slope_interval[0] < alone.slope < alone.slope_interval[1]
    assert account.line([0.2, 0.2], [0.1, 0.3], ["a", "b"]) is None
    assert account.line([0.2, 0.4], [0.1, 0.3], ["a", "a"]).slope_interval is None


def test_what_the_probe_misreads_can_be_left_out():
    rendered = {"primary": ["red"] * 6 + ["blue"] * 4}
    misread = of(spread(40, 100), spread(40, 100), "cat", rendered=rendered)
    assert misread.misread == 0.4
    rest = accounts(lambda wrong: ["red"] * 100)
    found = account.summarise_attributes([*rest, misread], most_misread=0.2)
    assert found.left_out == ("cat: primary",) and dataclasses.replace(found, left_out=()) == account.summarise_attributes(rest)
    with pytest.raises(ValueError, match="none of 1"):
        account.summarise_attributes([misread], most_misread=0.2)


def test_attributes_as_json():
    found = accounts(lambda wrong: spread(wrong, 100))
    for part in (found[0], account.summarise_attributes(found)):
        assert json.loads(json.dumps(part.to_dict())).keys() == part.to_dict().keys()


# --- tokens ---

# A subject's true token 0 and the background's 1; 2 is near 0 (cosine 0.8), 3 ... 10 are at right angles to both and to each other.
CODEBOOK = 3.0 * np.eye(10)[[0, 1, 0, *range(2, 10)]]
CODEBOOK[2] = 0.8 * CODEBOOK[0] + 0.6 * CODEBOOK[3]
PLACES = 16


def pictures(subject_tokens, n: int = 40) -> Tokens:
    """n pictures: the first half of the places shows the subject, with the tokens given [n, 8]; the rest a perfect background."""
    truth = np.tile(np.repeat([0, 1], PLACES // 2), (n, 1))
    drawn = truth.copy()
    drawn[:, : PLACES // 2] = subject_tokens
    return Tokens(drawn, truth, truth == 0)


def scattered(seed: int, n: int = 40) -> np.ndarray:
    """Half of the pictures show one of eight wrong tokens all over the subject, the others the true one."""
    rng = np.random.default_rng(seed)
    return np.where(np.arange(n)[:, None] % 2 == 0, rng.integers(3, 11, (n, 1)), 0)


def test_deviation_is_one_less_the_cosine():
    np.testing.assert_allclose(account.deviation(np.array([[0, 2, 3]]), np.array([[0, 0, 0]]), CODEBOOK), [[0, 0.2, 1]], atol=1e-12)
    with pytest.raises(ValueError, match="zero"):
        account.deviation(np.array([0]), np.array([0]), np.zeros((2, 3)))


def test_entropy_in_bits():
    tokens = np.array([[1, 1, 1], [1, 2, 2], [1, 1, 3], [1, 2, 4]])
    np.testing.assert_allclose(account.entropy(tokens), [0, 1, 2], atol=1e-12)


def test_regions_of_tokens():
    found = account.tokens("dog", pictures(scattered(0)), pictures(2, 20), CODEBOOK)
    assert found.compared == 20 and found.threshold == 0.5
    inside, outside = found.supervisor_inside, found.supervisor_outside
    assert inside.tokens == outside.tokens == 320
    assert inside.deviation.mean == pytest.approx(0.5) and inside.deviation.n == 40 and inside.beyond == 0.5
    assert outside.deviation.mean == outside.beyond == outside.entropy == outside.split.error == 0
    assert found.student_inside.deviation.mean == pytest.approx(0.2) and found.student_inside.beyond == 0
    assert account.tokens("dog", pictures(2), pictures(2), CODEBOOK, threshold=0.1).student_inside.beyond == 1
    assert inside.truth_entropy == found.student_inside.entropy == 0
    assert 2 < inside.entropy < np.log2(20)
    assert json.loads(json.dumps(found.to_dict()))["subject"] == "dog"


def test_entropies_are_of_as_many_pictures_and_weighted_by_area():
    rng = np.random.default_rng(0)
    side = Tokens(rng.integers(0, 11, (200, 16)), rng.integers(0, 11, (200, 16)), np.arange(16) < np.full((200, 1), 8))
    few = Tokens(side.pictures[:10], side.truth[:10], side.area[:10])
    found = account.tokens("dog", side, few, CODEBOOK)
    assert found.supervisor_inside.entropy == found.student_inside.entropy
    assert found.student_inside.entropy == pytest.approx(account.entropy(few.pictures)[:8].mean())
    assert found.student_outside.truth_entropy == pytest.approx(account.entropy(few.truth)[8:].mean())


def test_the_same_wrong_token_is_systematic():
    found = account.tokens("dog", pictures(2), pictures(2), CODEBOOK)
    split = found.supervisor_inside.split
    np.testing.assert_allclose((split.error, split.systematic, split.scattered, split.covered), (0.2, 0.2, 0, 1), atol=1e-12)
    assert found.repeated_inside == pytest.approx(0.2) and found.repeated_outside == 0


def test_an_error_all_over_one_picture_is_scattered():
    """The tokens of one picture are no independent witnesses: 8 places with the same error count as one picture's."""
    tokens = np.zeros((8, 8), int)
    tokens[:] = np.arange(3, 11)[:, None]  # each picture its own wrong token
    found = account.tokens("dog", pictures(tokens, 8), pictures(tokens, 8), CODEBOOK)
    # Errors e_i - e_0: two different pictures share the missing true token only, half of the error.
    np.testing.assert_allclose((found.supervisor_inside.split.systematic, found.supervisor_inside.split.scattered), (0.5, 0.5), atol=1e-12)


def test_a_true_token_of_one_picture_is_not_covered():
    side = pictures(2, 4)
    side.truth[0, :2] = 5
    found = account.tokens("dog", side, side, CODEBOOK)
    assert found.supervisor_inside.split.covered == 30 / 32 and found.supervisor_inside.split.error == pytest.approx(0.2)


def test_both_sides_are_compared_on_the_same_true_tokens_weighted_alike():
    """Token 0 is drawn as 2 (0.2), token 5 as another (1); the supervisor's pictures show 5 in one place of eight, the student's in seven."""
    few, many = pictures(2, 4), pictures(2, 4)
    for side, places in ((few, slice(0, 1)), (many, slice(1, 8))):
        side.truth[:, places], side.pictures[:, places] = 5, 6
    found = account.tokens("dog", few, many, CODEBOOK)
    splits = found.supervisor_inside.split, found.student_inside.split
    # Mean shares of both tokens: (7/8 + 1/8) / 2 each.
    assert [split.error for split in splits] == pytest.approx([0.5 * 0.2 + 0.5 * 1] * 2)
    assert found.supervisor_inside.deviation.mean == pytest.approx((7 * 0.2 + 1) / 8)
    without = pictures(2, 4)
    alone = account.tokens("dog", few, without, CODEBOOK)
    assert alone.supervisor_inside.split.error == pytest.approx(0.2)
    assert (alone.supervisor_inside.split.covered, alone.student_inside.split.covered) == pytest.approx((7 / 8, 1))
    # A third side that lacks the token takes it from the comparison of the two that have it.
    assert account.tokens("dog", few, many, CODEBOOK, others=[without]).student_inside.split.error == pytest.approx(0.2)


@pytest.mark.parametrize(("student", "slope"), [("copy", 1.0), ("filter", 0.0), ("noise", 0.0)])
def test_students_that_copy_filter_or_are_noise(student, slope):
    """The supervisor: token 2 for 0 always (bias), and on top scattered errors in the background's places."""
    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)

        def side(biased: bool, scatter: bool, rng=rng) -> Tokens:
            made = pictures(2 if biased else 0)
            noisy = rng.random((40, 8)) < (0.4 if scatter else 0.0)
            made.pictures[:, 8:] = np.where(noisy, rng.integers(3, 11, (40, 8)), 1)
            return made

        supervisor = side(True, True)
        students = {"copy": side(True, True), "filter": side(False, False), "noise": side(False, True)}
        found.append(account.tokens(f"subject{seed}", supervisor, students[student], CODEBOOK))
    summary = account.summarise_tokens(found)
    assert summary.inside.bias_slope == pytest.approx(slope, abs=1e-9)
    assert summary.inside.bias_slope_interval == pytest.approx((slope, slope), abs=1e-9)
    one = account.summarise_tokens(found[:1]).inside
    assert one.bias_slope == pytest.approx(slope, abs=1e-9) and one.bias_slope_interval is None
    for side in ("supervisor", "student"):
        parts = [getattr(getattr(summary.outside, name), side).mean for name in ("error", "systematic", "scattered", "covered")]
        assert parts[0] == pytest.approx(parts[1] + parts[2]) and parts[3] == 1
    assert summary.inside.systematic.student.mean == pytest.approx(0.2 * slope, abs=1e-9)
    assert summary.outside.scattered.supervisor.mean > 0.2
    difference = summary.outside.scattered.difference
    assert abs(difference.mean) < 0.05 if student != "filter" else difference.mean + difference.half_width < -0.2
    assert (summary.outside.entropy.difference.mean < -1) == (student == "filter")
    assert json.loads(json.dumps(summary.to_dict())).keys() == {"inside", "outside"}


def test_wrong_shapes_are_refused():
    side = pictures(2)
    with pytest.raises(ValueError, match=r"\[n, t\]"):
        Tokens(side.pictures, side.truth[:, :-1], side.area)
    with pytest.raises(ValueError, match="at least two"):
        Tokens(side.pictures[:1], side.truth[:1], side.area[:1])
    nowhere = Tokens(side.pictures, side.truth, np.zeros_like(side.area))
    elsewhere = Tokens(side.pictures, np.where(side.area, 5, side.truth), side.area)
    with pytest.raises(ValueError, match="dog: no true token inside"):
        account.tokens("dog", side, elsewhere, CODEBOOK)
    with pytest.raises(ValueError, match="no tokens inside"):
        account.tokens("dog", side, nowhere, CODEBOOK)
    with pytest.raises(ValueError, match="one a subject each"):
        account.paired([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="more than one picture"):
        of(["blue"], ["blue"])
