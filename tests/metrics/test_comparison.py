"""The table of arms: means, intervals, gains and wins by hand-made numbers."""

import numpy as np
import pytest
from scipy import stats

from proxy_jax.metrics import comparison

ROWS = [
    {"subject": subject, "arm": arm, "dino": dino, "identity": identity}
    for subject, arm, dino, identity in (
        ("a", "supervisor", 0.5, 0.6),
        ("b", "supervisor", 0.7, 0.8),
        ("c", "supervisor", 0.6, None),
        ("a", "proxy", 0.6, 0.7),
        ("b", "proxy", 0.65, 0.9),
        ("d", "proxy", 0.9, 0.9),
    )
]


def table() -> dict:
    content = comparison.compare(ROWS, ("dino", "identity"), reference="supervisor")
    return {arm["arm"]: arm for arm in content["arms"]}


def test_means_and_intervals_are_over_the_subjects_that_have_the_score():
    supervisor = table()["supervisor"]["scores"]
    assert supervisor["dino"]["mean"] == pytest.approx(0.6)
    low, high = stats.t.interval(0.95, 2, loc=0.6, scale=stats.sem([0.5, 0.7, 0.6]))
    assert supervisor["dino"]["half_width"] == pytest.approx((high - low) / 2)
    assert supervisor["identity"]["n"] == 2 and supervisor["identity"]["mean"] == pytest.approx(0.7)


def test_gains_are_paired_by_subject():
    gain = table()["proxy"]["scores"]["dino"]["gain"]
    assert gain["n"] == 2 and gain["wins"] == 1 and gain["mean"] == pytest.approx(np.mean([0.1, -0.05]))
    assert table()["proxy"]["scores"]["identity"]["gain"]["wins"] == 2


def test_an_arm_without_a_score_or_without_the_reference_has_none():
    rows = [{"subject": "a", "arm": "x", "dino": None}, {"subject": "a", "arm": "y", "dino": 0.5}]
    arms = {arm["arm"]: arm for arm in comparison.compare(rows, ("dino",), reference="z")["arms"]}
    assert arms["x"]["scores"]["dino"] is None
    assert arms["y"]["scores"]["dino"]["gain"] is None and arms["y"]["scores"]["dino"]["half_width"] is None


def test_a_subject_twice_in_an_arm_is_refused():
    with pytest.raises(ValueError, match="a twice"):
        comparison.compare([ROWS[0], ROWS[0]], ("dino",), reference="supervisor")


def test_the_markdown_has_every_arm_and_number():
    text = comparison.markdown(comparison.compare(ROWS, ("dino", "identity"), reference="supervisor"))
    lines = text.splitlines()
    assert "| supervisor | 3 | 0.600 ± 0.248 | 0.700 ± 1.271 |" in lines
    assert "| proxy | +0.025 ± 0.953 (1/2) | +0.100 ± 0.000 (2/2) |" in lines
    assert sum(line.startswith("| supervisor") for line in lines) == 1, "the reference gains nothing on itself"
