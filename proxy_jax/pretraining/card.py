"""The model card of a micro checkpoint: what it was trained on, how, how its losses fell, and its scores."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

CURVE_POINTS, ROWS = 100, 12
LICENCE = "Apache 2.0; trained from nothing on pictures drawn by this project. Class nouns and prompts are DreamBench's (CC BY 4.0)."


def losses(folder: Path) -> dict[str, dict[str, list]]:
    """The loss curve of every training whose metrics.jsonl lies in `folder` or one level below: its folder's name ("" for its own) ->
    first steps and mean losses of up to about CURVE_POINTS stretches.
    """
    found = {}
    for file in sorted([*folder.glob("metrics.jsonl"), *folder.glob("*/metrics.jsonl")]):
        values = [json.loads(line)["loss"] for line in file.read_text().splitlines()]
        every = max(1, len(values) // CURVE_POINTS)
        starts = range(0, len(values), every)
        means = [round(sum(values[start : start + every]) / len(values[start : start + every]), 5) for start in starts]
        name = file.parent.name if file.parent != folder else ""
        found[name] = {"last_step": len(values), "steps": [start + 1 for start in starts], "means": means}
    return found


def hardware() -> str:
    """Devices and processor, in words."""
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind} ({jax.default_backend()}), {os.cpu_count()} cores {platform.machine()}"


def text(card: Mapping[str, Any]) -> str:
    """The card in Markdown."""
    attempts = " (without attempts that were killed)" if card["resumed"] else ""
    lines = [
        f"# Micro checkpoint: {card['recipe']}",
        "",
        f"Trained from seed {card['seed']} on {card['pictures']} pictures of the micro-world at {card['resolution']} px,",
        "none of which shows a held-out subject.",
        f"{card['hours']} hours{attempts} on {card['hardware']}, jax {card['versions']['jax']}.",
        f"Licence: {LICENCE}",
        "",
        "| on held-out subjects | |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in card["scores"].items()),
    ]
    for name, curve in card["losses"].items():
        points = list(zip(curve["steps"], curve["means"], strict=True))
        lines += ["", f"| from step{f' ({name})' if name else ''} | mean loss |", "|---|---|"]
        lines += [f"| {step} | {mean:.4f} |" for step, mean in points[:: max(1, len(points) // ROWS)]]
        lines.append(f"{curve['last_step']} steps.")
    return "\n".join([*lines, ""])
