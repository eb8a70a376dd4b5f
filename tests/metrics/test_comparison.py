"""The table of arms: means, intervals, gains and wins by hand-made numbers; the accounts of several subjects in one."""

import json

import numpy as np
import pytest
from scipy import stats

from proxy_jax.metrics import account, comparison
from tests.metrics.made_accounts import told

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
    assert "Holm" not in text and "Caution" not in text and "trained with" not in text


def test_the_markdown_tells_what_differs_and_what_was_trained():
    budget = {"run": "proxy", "training": "proxy_tuning", "steps": 200, "batch_size": 16, "learning_rate": 1e-4}
    content = comparison.compare(ROWS, ("dino",), reference="supervisor") | {"differing": {"jax": ["0.8", "0.9"]}, "budgets": [budget]}
    text = comparison.markdown(content)
    assert "the same jax, but with 0.8 and 0.9" in text and "| proxy | proxy_tuning | 200 | 16 | 0.0001 |" in text


PAIRS = (("proxy", "lora"), ("proxy", "full"), ("full", "lora"))


def contrasts() -> dict:
    """Of four subjects: `proxy` is far above `lora`; `full` lacks a subject and is a little above some of them. Clip tells nothing."""
    rows = [{"subject": str(i), "arm": "lora", "dino": 0.1 * i, "clip": 0.5 + 0.1 * i} for i in range(4)]
    rows += [{"subject": str(i), "arm": "full", "dino": 0.45, "clip": 0.5} for i in range(1, 4)]
    rows += [{"subject": str(i), "arm": "proxy", "dino": 0.1 * i + 0.2 + 0.01 * (-1) ** i, "clip": 0.9 + 0.1 * i} for i in range(4)]
    pairs = (*PAIRS, ("proxy", "absent"))
    return comparison.compare(rows, ("dino", "clip"), reference="lora", main_score="dino", primary=PAIRS[:1], contrasts=pairs)


def test_contrasts_are_pairs_and_paired_by_subject():
    found = contrasts()["contrasts"]
    assert [(row["arm"], row["against"], row["primary"]) for row in found] == [(*pair, pair == PAIRS[0]) for pair in (*PAIRS, ("proxy", "absent"))]
    lora, full, _, absent = (row["scores"]["dino"] for row in found)
    # Subjects differ by far more than the gain does.
    assert (lora["n"], lora["wins"]) == (4, 4) and lora["mean"] == pytest.approx(0.2) and lora["half_width"] < 0.02
    assert (full["n"], full["wins"]) == (3, 1) and full["mean"] == pytest.approx(0.4 - 0.01 / 3 - 0.45)
    assert absent is None and found[3]["p_value"] is None


def test_the_primary_contrast_is_tested_alone_and_the_others_together():
    lora, full, others, _ = (row["p_value"] for row in contrasts()["contrasts"])
    ours, theirs, whole = np.array([0.21, 0.29, 0.41, 0.49]), 0.1 * np.arange(4), np.full(3, 0.45)
    assert lora == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    own = [stats.ttest_rel(a, b).pvalue for a, b in ((ours[1:], whole), (whole, theirs[1:]))]
    assert own[1] < own[0] and others == pytest.approx(2 * own[1]), "the least of two is doubled"
    assert full == pytest.approx(max(2 * own[1], own[0]))


def test_holm():
    found = comparison.holm({("a", "b"): 0.01, ("c", "d"): 0.04, ("e", "f"): 0.03, ("g", "h"): None, ("i", "j"): 0.9})
    assert list(found.values()) == pytest.approx([0.04, 0.09, 0.09, None, 0.9])
    assert comparison.holm({("a", "b"): 0.7, ("c", "d"): 0.8}) == {("a", "b"): 1.0, ("c", "d"): 1.0}


def test_holm_among_tests_that_are_not_known_is_never_more_lenient():
    known, unknown = {("a", "b"): 0.004, ("c", "d"): 0.03}, ("e", "f")
    found = comparison.holm(known, 1)
    assert list(found.values()) == pytest.approx([3 * 0.004, 2 * 0.03])
    for p in (0.001, 0.0039, 0.004, 0.01, 0.0299, 0.2):
        whole = comparison.holm(known | {unknown: p})
        assert all(found[pair] >= whole[pair] for pair in known)


def test_nothing_is_tested_on_one_subject_or_without_any_difference():
    assert comparison.p_value([0.3]) is None and comparison.p_value([]) is None and comparison.p_value([0.25, 0.25]) is None
    assert comparison.p_value([0.1, -0.1]) == pytest.approx(1.0)


def test_the_primary_contrasts_alone_are_marked_and_on_the_main_score_alone():
    content = contrasts()
    text = comparison.markdown(content)
    p = f"{content['contrasts'][0]['p_value']:.2g}"
    assert f"| proxy | lora | primary | {p} | **+0.200 ± 0.018 (4/4)** | +0.400 ± 0.000 (4/4) |" in text
    assert text.count("**") == 2 and "| proxy | absent | Holm | – | – | – |" in text
    content["contrasts"][0]["scores"]["dino"]["half_width"] = 0.3
    assert "**" not in comparison.markdown(content)


def summary(most_misread: float = 0.5, **fields) -> dict:
    """Of four subjects: proxies wrong in 4, 8, 12, 16 of 20 pictures, the student in half of them, the control in two more."""
    results = [told(str(i), 4 * i, {"proxy": 2 * i, "control": 4 * i + 2}, **fields) for i in range(1, 5)]
    found = comparison.accounts(results, ("proxy", "control"), most_misread)
    return found | {"by_name": {arm["arm"]: arm for arm in found["arms"]}}


def test_accounts_over_subjects():
    found = summary()
    proxy, control = found["by_name"].values()
    assert proxy["attributes"]["line"]["slope"] == pytest.approx(0.5) and control["attributes"]["line"]["slope"] > 1
    # The colour alone is ever wrong: half of the mean over both attributes.
    assert proxy["attributes"]["error"]["supervisor"]["mean"] == pytest.approx(np.mean([0.2, 0.4, 0.6, 0.8]) / 2)
    assert proxy["attributes"]["error"]["difference"]["mean"] == pytest.approx(-0.25 / 2)
    assert proxy["tokens"]["inside"]["deviation"]["student"]["mean"] == pytest.approx(0.25)
    assert proxy["tokens"]["outside"]["deviation"]["student"]["mean"] == 0
    colours = [point for point in proxy["points"] if point["attribute"] == "primary"]
    assert [(point["supervisor"], point["student"]) for point in colours] == [(0.2, 0.1), (0.4, 0.2), (0.6, 0.3), (0.8, 0.4)]
    floor = found["floor"]["tokens"]["inside"]["deviation"]
    assert (floor["supervisor"]["mean"], floor["student"]["mean"], floor["student"]["n"]) == pytest.approx((0.1, 0.05, 4))
    assert found["pictures"] == 20


def test_the_guided_account_is_of_the_guided_pictures():
    results = [told(str(i), 4 * i, {"proxy": 2 * i, "control": 4 * i + 2}) for i in range(1, 5)]
    found = comparison.accounts(results, ("proxy", "control"), 0.5, drawn="guided")["arms"][0]
    colours = [point["student"] for point in found["points"] if point["attribute"] == "primary"]
    assert colours == pytest.approx([(2 * i - 1) / 20 for i in range(1, 5)])


def test_the_first_arm_is_held_against_the_others_of_the_same_proxies():
    found = summary()["by_name"]
    assert "first_less_own" not in found["proxy"]
    own = found["control"]["first_less_own"]
    rates = 0.1 * np.arange(1, 5) - (0.2 * np.arange(1, 5) + 0.1)
    assert own["attributes: wrong"]["difference"]["mean"] == pytest.approx(rates.mean() / 2)
    assert own["tokens inside: deviation"]["difference"]["mean"] == pytest.approx(rates.mean())
    assert own["tokens inside: deviation"]["supervisor"] == found["control"]["tokens"]["inside"]["deviation"]["student"]


def test_what_the_probe_cannot_read_is_left_out_of_the_means():
    found = summary(most_misread=0.1, misread=3)
    assert found["by_name"]["proxy"]["attributes"]["left_out"] == tuple(f"{i}: primary" for i in range(1, 5))
    assert found["by_name"]["proxy"]["attributes"]["error"]["supervisor"]["mean"] == 0
    assert {point["attribute"] for point in found["by_name"]["proxy"]["points"] if point["left_out"]} == {"primary"}


def test_accounts_are_read_back_from_json():
    content = json.loads(json.dumps(told("a", 8, {"proxy": 4})))["arms"]["proxy"]
    assert account.TokenAccount.from_dict(content["tokens"]).to_dict() == content["tokens"]
    first = account.AttributeAccount.from_dict(content["attributes"][0])
    assert first.supervisor.split.error == pytest.approx(0.4) and first.to_dict() == content["attributes"][0]


def test_the_markdown_tells_the_account():
    content = comparison.compare(ROWS, ("dino",), reference="supervisor") | {"account": summary()}
    text = comparison.markdown(content)
    assert "What survives" not in comparison.markdown(comparison.compare(ROWS, ("dino",), reference="supervisor"))
    assert "| attributes: wrong | 0.250 ± 0.205 | 0.125 ± 0.103 | -0.125 ± 0.103 |" in text
    assert "slope 0.50 [0.50, 0.50], intercept 0.00 [0.00, 0.00]; with an intercept for each attribute, slope 0.50 [0.50, 0.50]." in text
    assert "| tokens inside: deviation | 0.100 ± 0.000 | 0.050 ± 0.000 |" in text  # of the floor
    assert "Error rate of proxy less that of control, by that of the proxies: slope -0.64 [" in text
    assert "proxy less control, of the same proxies:" in text
