"""Arms compared over subjects: means with intervals, what an arm gains on another subject by subject, and the account of weak-to-strong.

Every interval is a 95 % one over subjects (scores.interval). A gain's interval is that of the differences on the same subject, so what
makes a subject easy or hard for all arms does not widen it. What is tested is named before there are results: pairs of arms on the main
score. The primary ones are claimed together or not at all, so each is tested at 5 % without a correction; the p-values of the others are
Holm's. All other intervals describe.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr

from proxy_jax.metrics import account
from proxy_jax.metrics.account import AttributeAccount, TokenAccount
from proxy_jax.metrics.scores import interval

Row = Mapping[str, Any]
Pair = tuple[str, str]  # an arm, and the one it is held against
Table = Mapping[str, Mapping[str, Row]]  # arm -> subject -> row
NONE = "–"
PLACES = ("inside", "outside")
ACCOUNTS = {
    "account": "What survives of the supervisor's errors: students draw without guidance",
    "account_guided": "The same, drawn with the evaluation's guidance",
}
TOKEN_MEASURES = {
    "deviation": "deviation",
    "covered": "share compared",
    "error": "deviation of those",
    "systematic": "systematic",
    "scattered": "scattered",
    "beyond": "beyond the threshold",
    "entropy": "entropy (bits)",
    "truth_entropy": "entropy of the truth (bits)",
}


def compare(
    rows: Sequence[Row],
    scores: Sequence[str],
    *,
    reference: str,
    main_score: str = "",
    primary: Sequence[Pair] = (),
    contrasts: Sequence[Pair] = (),
    further_tests: int = 0,
) -> dict[str, Any]:
    """A JSON-able table of rows {"subject", "arm", <score>: number or None}: for each arm (in order of appearance) and score the mean,
    the half width of its interval, and its gain on the arm `reference`.

    A gain is over the subjects that both have: the mean difference, its interval and the number of subjects on which the arm is higher.
    A score that a subject's row lacks (None) is left out of that arm's figures. "contrasts" has the pairs (arm, the arm it is held against),
    those of `primary` first, with the arm's gains and, on `main_score`, "p_value" of the paired t-test, two-sided; of the others by Holm's
    method, as if there were `further_tests` more. Raises ValueError if an arm has a subject twice.
    """
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        own = found.setdefault(row["arm"], {})
        if row["subject"] in own:
            raise ValueError(f"the arm {row['arm']} has the subject {row['subject']} twice")
        own[row["subject"]] = row
    others = [pair for pair in contrasts if pair not in primary]
    tested = {pair: p_value(_gains(found, *pair, main_score)) for pair in (*primary, *others)}
    tested |= holm({pair: tested[pair] for pair in others}, further_tests)
    return {
        "reference": reference,
        "main_score": main_score,
        "further_tests": further_tests,
        "subjects": list(dict.fromkeys(row["subject"] for row in rows)),
        "arms": [
            {"arm": name, "subjects": len(own), "scores": {score: _figures(found, name, reference, score) for score in scores}}
            for name, own in found.items()
        ],
        "contrasts": [
            {"arm": arm, "against": other, "primary": (arm, other) in primary, "p_value": p}
            | {"scores": {score: _gain(found, arm, other, score) for score in scores}}
            for (arm, other), p in tested.items()
        ],
    }


def p_value(gains: Sequence[float]) -> float | None:
    """Of Student's t-test that the mean of paired differences is 0, two-sided; None for fewer than two, or if they do not differ at all."""
    if len(gains) < 2 or (deviation := np.std(gains, ddof=1)) == 0:
        return None
    return float(2 * stdtr(len(gains) - 1, -abs(np.mean(gains)) / (deviation / np.sqrt(len(gains)))))


def holm(p_values: Mapping[Pair, float | None], further: int = 0) -> dict[Pair, float | None]:
    """The p-values of several tests adjusted for their number (Holm 1979): below a level, together they err at that level at most.

    further: tests that belong to them and whose p-values are not known here, taken as greater, which makes none of these smaller.
    """
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted, least = dict(p_values), 0.0
    for place, (p, name) in enumerate(known):
        least = max(least, min(1.0, (len(known) + further - place) * p))
        adjusted[name] = least
    return adjusted


def _values(table: Table, arm: str, score: str) -> dict[str, float]:
    return {subject: row[score] for subject, row in table[arm].items() if row[score] is not None} if arm in table else {}


def _figures(table: Table, arm: str, reference: str, score: str) -> dict[str, Any] | None:
    values = list(_values(table, arm, score).values())
    return dataclasses.asdict(interval(values)) | {"gain": _gain(table, arm, reference, score)} if values else None


def _gains(table: Table, arm: str, other: str, score: str) -> list[float]:
    ours, theirs = _values(table, arm, score), _values(table, other, score)
    return [value - theirs[subject] for subject, value in ours.items() if subject in theirs]


def _gain(table: Table, arm: str, other: str, score: str) -> dict[str, Any] | None:
    gains = _gains(table, arm, other, score)
    return dataclasses.asdict(interval(gains)) | {"wins": int(np.sum(np.asarray(gains) > 0))} if gains else None


def accounts(results: Sequence[Mapping[str, Any]], arms: Sequence[str], most_misread: float, drawn: str = "arms") -> dict[str, Any]:
    """The accounts of several subjects in one JSON-able summary.

    results: a subject each, {"pictures", "floor": an account, <drawn>: arm -> an account}, an account being {"attributes": AttributeAccounts
    as dicts, "tokens": a TokenAccount as one}. most_misread: of account.summarise_attributes, for its line and means.
    Of the floor and of each of `arms`: both summaries, and of arms the points of the line. Of each arm but the first also "excess"
    (account.excess of the first over it) and "first_less_own": the same figures with this arm in the supervisor's place and the first in
    the student's, whose difference says what is the first arm's own.
    """

    def read(accounts: Sequence[Mapping[str, Any]]) -> tuple[list[AttributeAccount], list[TokenAccount]]:
        attributes = [AttributeAccount.from_dict(content) for own in accounts for content in own["attributes"]]
        return attributes, [TokenAccount.from_dict(own["tokens"]) for own in accounts]

    found: list[dict[str, Any]] = []
    firsts: tuple[list[AttributeAccount], list[TokenAccount]] | None = None
    for arm in arms:
        attributes, tokens = read([result[drawn][arm] for result in results])
        found.append({"arm": arm, "points": [_point(own, most_misread) for own in attributes]} | _summaries(attributes, tokens, most_misread))
        if firsts is None:
            firsts = attributes, tokens
            continue
        ours = [dataclasses.replace(first, supervisor=own.student) for first, own in zip(firsts[0], attributes, strict=True)]
        places = [{f"supervisor_{place}": getattr(own, f"student_{place}") for place in PLACES} for own in tokens]
        theirs = [dataclasses.replace(first, **place) for first, place in zip(firsts[1], places, strict=True)]
        found[-1]["first_less_own"] = _measures(_summaries(ours, theirs, most_misread))
        excess = account.excess(firsts[0], attributes, most_misread)
        found[-1]["excess"] = excess and dataclasses.asdict(excess)
    floor = _summaries(*read([result["floor"] for result in results]), most_misread)
    return {"pictures": min(result["pictures"] for result in results), "most_misread": most_misread, "floor": floor, "arms": found}


def _summaries(attributes: Sequence[AttributeAccount], tokens: Sequence[TokenAccount], most_misread: float) -> dict[str, Any]:
    return {"attributes": account.summarise_attributes(attributes, most_misread).to_dict(), "tokens": account.summarise_tokens(tokens).to_dict()}


def _point(found: AttributeAccount, most_misread: float) -> dict[str, Any]:
    sides = {"supervisor": found.supervisor.wrong.rate, "student": found.student.wrong.rate}
    return {"subject": found.subject, "attribute": found.attribute, "left_out": (found.misread or 0.0) > most_misread} | sides


def _measures(summaries: Mapping[str, Any]) -> dict[str, Any]:
    """What both sides have, by name: figures of supervisor, student and difference."""
    attributes, tokens = summaries["attributes"], summaries["tokens"]
    found = {
        "attributes: wrong": attributes["error"],
        "attributes: systematic": attributes["systematic"],
        "attributes: scattered": attributes["scattered"],
    }
    for place in PLACES:
        found |= {f"tokens {place}: {label}": tokens[place][name] for name, label in TOKEN_MEASURES.items()}
    return found


def markdown(content: Mapping[str, Any]) -> str:
    """The tables as Markdown: mean ± half width; contrasts, the primary ones bold where their interval on the main score leaves out 0.

    Gains are shown with the subjects won. If they are there, also "unfinished", "differing" and "budgets" (of stages/experiment.py), and the
    account.
    """
    scores = list(content["arms"][0]["scores"])
    lines = [f"{len(content['subjects'])} subjects; mean ± 95 % interval over them."]
    if content.get("unfinished"):
        lines += ["", f"**Unfinished**: {', '.join(content['unfinished'])} are still to come."]
    for name, values in content.get("differing", {}).items():
        lines += ["", f"**Caution**: the results were not all made with the same {name}, but with {' and '.join(values)}."]
    lines += _table(["arm", "n", *scores], [[arm["arm"], arm["subjects"], *map(_cell, arm["scores"].values())] for arm in content["arms"]])
    if content["contrasts"]:
        lines += _contrasts(content, scores)
    lines += ["", f"Gain on {content['reference']}, subject by subject (subjects won). These intervals describe; nothing is tested by them."]
    gains = {arm["arm"]: [figures and figures["gain"] for figures in arm["scores"].values()] for arm in content["arms"]}
    lines += _table(["arm", *scores], [[arm, *map(_gain_cell, own)] for arm, own in gains.items() if arm != content["reference"]])
    if "budgets" in content:
        lines += ["", "What each run of a subject was trained with:"]
        names = ("run", "training", "steps", "batch_size", "learning_rate")
        rows = [[f"{row[name]:g}" if name == "learning_rate" else row[name] for name in names] for row in content["budgets"]]
        lines += _table(["run", "training", "steps", "batch size", "learning rate"], rows)
    for part, title in ACCOUNTS.items():
        lines += ["", f"## {title}", "", *_account(content[part])] if part in content else []
    return "\n".join(lines) + "\n"


def _contrasts(content: Mapping[str, Any], scores: Sequence[str]) -> list[str]:
    main, rows = content["main_score"], []
    for row in content["contrasts"]:
        cells = {score: _gain_cell(row["scores"][score]) for score in scores}
        if row["primary"] and main in cells and _leaves_out_zero(row["scores"][main]):
            cells[main] = f"**{cells[main]}**"
        p = NONE if row["p_value"] is None else f"{row['p_value']:.2g}"
        rows.append([row["arm"], row["against"], "primary" if row["primary"] else "Holm", p, *cells.values()])
    text = f"Gain of one arm on another, subject by subject (subjects won). p: of {main}, without a correction for the primary contrasts, of which"
    further = content["further_tests"]
    counted = f", as if there were {further} more: those of another experiment on the same subjects" if further else ""
    lines = ["", f"{text} each must hold (bold: its interval leaves out 0), by Holm's method for the others{counted}."]
    return [*lines, *_table(["arm", "against", "tested as", "p", *scores], rows)]


def _account(content: Mapping[str, Any]) -> list[str]:
    lines = [f"Errors of {content['pictures']} proxies a subject, and of as many pictures that each arm drew for their prompt."]
    lines += ["", "The floor, without any generator's error: renderings of the truth that went through the codec of either side."]
    floor = [[name, _cell(own["supervisor"]), _cell(own["student"])] for name, own in _measures(content["floor"]).items()]
    lines += _table(["", "the supervisor's codec", "the student's"], floor)
    lines += ["", f"Share of the first's systematic token error that the second repeats: {_slopes(content['floor']['tokens'])}."]
    for found in content["arms"]:
        arm = found["arm"]
        lines += _table(
            ["", "proxies", arm, "difference"],
            [[name, _cell(own["supervisor"]), _cell(own["student"]), _difference(own["difference"])] for name, own in _measures(found).items()],
        )
        attributes, tokens = found["attributes"], found["tokens"]
        line, modes = attributes["line"], attributes["modes"]
        if line is not None:
            slope, intercept = (_estimate(line[name], line[f"{name}_interval"]) for name in ("slope", "intercept"))
            lines += ["", f"Error rate of {arm} by that of the proxies, {line['points']} attributes of {line['subjects']} subjects: "]
            lines[-1] += f"slope {slope}, intercept {intercept}"
            within = attributes["within"]
            lines[-1] += f"; with an intercept for each attribute, slope {_estimate(within['slope'], within['slope_interval'])}." if within else "."
        shares = ", ".join(f"{name.replace('_', ' ')} {_cell(attributes[name])}" for name in ("overlap", "supervisor_only", "student_only"))
        lines += ["", f"Wrong values: {shares}. Likeliest values: {', '.join(f'{name} {count}' for name, count in modes.items())}."]
        lines.append(f"Share of the proxies' systematic token error that {arm} repeats: {_slopes(tokens)}.")
        if attributes["left_out"]:
            lines.append(f"Left out, as the probe misreads more than {content['most_misread']:.0%} of their renderings: ")
            lines[-1] += f"{', '.join(attributes['left_out'])}."
    first, *others = content["arms"]
    for found in others:
        rows = [[name, _difference(own["difference"])] for name, own in found["first_less_own"].items()]
        lines += ["", f"{first['arm']} less {found['arm']}, of the same proxies:", *_table(["", "difference"], rows)]
        if found["excess"] is not None:
            slope = _estimate(found["excess"]["slope"], found["excess"]["slope_interval"])
            lines += ["", f"Error rate of {first['arm']} less that of {found['arm']}, by that of the proxies: slope {slope}."]
    return lines


def _slopes(tokens: Mapping[str, Any]) -> str:
    own = [(place, tokens[place]["bias_slope"], tokens[place]["bias_slope_interval"]) for place in PLACES]
    return ", ".join(f"{place} {NONE if slope is None else _estimate(slope, ends)}" for place, slope, ends in own)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    head_line, *lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return ["", head_line, "|---" * len(head) + "|", *lines]


def _estimate(value: float, ends: Sequence[float] | None) -> str:
    return f"{value:.2f}" + ("" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]")


def _plus_minus(figures: Mapping[str, Any], sign: str = "") -> str:
    half = "" if figures["half_width"] is None else f" ± {figures['half_width']:.3f}"
    return f"{figures['mean']:{sign}.3f}{half}"


def _cell(figures: Mapping[str, Any] | None) -> str:
    return NONE if figures is None else _plus_minus(figures)


def _leaves_out_zero(figures: Mapping[str, Any] | None) -> bool:
    return figures is not None and figures["half_width"] is not None and abs(figures["mean"]) > figures["half_width"]


def _difference(figures: Mapping[str, Any]) -> str:
    return _plus_minus(figures, "+")


def _gain_cell(gain: Mapping[str, Any] | None) -> str:
    return NONE if gain is None else f"{_difference(gain)} ({gain['wins']}/{gain['n']})"
