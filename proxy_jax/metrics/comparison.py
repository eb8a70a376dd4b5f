"""Arms compared over subjects: means with intervals, and what each arm gains on a reference, subject by subject."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from proxy_jax.metrics.scores import interval


def compare(rows: Sequence[Mapping[str, Any]], scores: Sequence[str], *, reference: str) -> dict[str, Any]:
    """A JSON-able table of rows {"subject", "arm", <score>: number or None}: for each arm (in order of appearance) and score the mean,
    the half width of its 95 % interval over subjects, and against the `reference` arm, over the subjects both have, the mean
    difference, its interval and the number of subjects on which the arm is higher.

    A score that a subject's row lacks (None) is left out of that arm's figures. Raises ValueError if an arm has a subject twice.
    """
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        own = found.setdefault(row["arm"], {})
        if row["subject"] in own:
            raise ValueError(f"the arm {row['arm']} has the subject {row['subject']} twice")
        own[row["subject"]] = row
    return {
        "reference": reference,
        "subjects": list(dict.fromkeys(row["subject"] for row in rows)),
        "arms": [
            {"arm": arm, "subjects": len(own), "scores": {score: _figures(score, own, found.get(reference, {})) for score in scores}}
            for arm, own in found.items()
        ],
    }


def _figures(score: str, own: Mapping[str, Mapping], reference: Mapping[str, Mapping]) -> dict[str, Any] | None:
    values = {subject: row[score] for subject, row in own.items() if row[score] is not None}
    if not values:
        return None
    mean = interval(list(values.values()))
    figures = {"mean": mean.mean, "half_width": mean.half_width, "n": mean.n}
    gains = [value - reference[subject][score] for subject, value in values.items() if subject in reference and reference[subject][score] is not None]
    if not gains:
        return figures | {"gain": None}
    gain = interval(gains)
    return figures | {"gain": {"mean": gain.mean, "half_width": gain.half_width, "n": gain.n, "wins": int(np.sum(np.asarray(gains) > 0))}}


def markdown(content: Mapping[str, Any]) -> str:
    """The table as Markdown: mean ± half width; below it what each arm gains on the reference, with the subjects won."""
    scores = list(content["arms"][0]["scores"])
    lines = [
        f"{len(content['subjects'])} subjects; mean ± 95 % interval over them.",
        "",
        f"| arm | n | {' | '.join(scores)} |",
        "|---" * (len(scores) + 2) + "|",
    ]
    for arm in content["arms"]:
        cells = [_cell(arm["scores"][score]) for score in scores]
        lines.append(f"| {arm['arm']} | {arm['subjects']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Gain on {content['reference']}, subject by subject (subjects won):",
        "",
        f"| arm | {' | '.join(scores)} |",
        "|---" * (len(scores) + 1) + "|",
    ]
    for arm in content["arms"]:
        if arm["arm"] != content["reference"]:
            lines.append(f"| {arm['arm']} | {' | '.join(_gain(arm['scores'][score]) for score in scores)} |")
    return "\n".join(lines) + "\n"


def _plus_minus(figures: Mapping[str, Any], sign: str = "") -> str:
    half = "" if figures["half_width"] is None else f" ± {figures['half_width']:.3f}"
    return f"{figures['mean']:{sign}.3f}{half}"


def _cell(figures: Mapping[str, Any] | None) -> str:
    return "–" if figures is None else _plus_minus(figures)


def _gain(figures: Mapping[str, Any] | None) -> str:
    if figures is None or figures["gain"] is None:
        return "–"
    return f"{_plus_minus(figures['gain'], '+')} ({figures['gain']['wins']}/{figures['gain']['n']})"
