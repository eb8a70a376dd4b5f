"""The report of a run, from one plain dict: JSON for programs, Markdown for terminals, one self-contained HTML page for people.

All numbers in the three come from the same dict. Nothing is read but the image files that it names.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from proxy_jax.metrics import page
from proxy_jax.metrics.scores import METRICS

LABELS = {"dino": "DINO ↑", "clip_i": "CLIP-I ↑", "clip_t": "CLIP-T ↑"}
MEANINGS = {
    "dino": "Is it this very subject? Likeness to the photos in fine detail.",
    "clip_i": "Is it this kind of subject? Likeness to the photos in overall meaning.",
    "clip_t": "Does it show what the prompt asks for? Match of picture and prompt.",
}
SECTIONS = {
    "photos": "Photos",
    "supervisor": "Supervisor samples",
    "proxies": "Proxies",
    "samples": "Side by side",
    "scores": "Scores",
    "by-prompt": "Scores by prompt",
    "losses": "Loss curves",
    "times": "Time",
    "configuration": "Configuration and versions",
}
REAL, UNDEFINED = "Real photos", "–"
PROXIES_SHOWN, SUPERVISOR_SHOWN, SHOWN_PER_PROMPT = 24, 12, 4


class Picture(TypedDict):
    """An image file (path relative to the report's root) and its caption; of a generated image, its prompt."""

    path: str
    caption: str


class Row(TypedDict):
    """One arm of the comparison. scores: `Scores.to_dict()` (proxy_jax/metrics/scores.py)."""

    arm: str
    label: str
    scores: dict[str, Any]


class Curve(TypedDict):
    """A training stage's loss at the logged steps."""

    stage: str
    steps: list[int]
    losses: list[float]


class Timing(TypedDict):
    """A stage's wall-clock time in seconds."""

    stage: str
    seconds: float


class Report(TypedDict):
    """Everything a report shows; a plain dict that JSON can hold.

    subject: {"class_noun", "token"}. proxies: all of them, in order; empty if the student learned from the photos directly.
    samples: arm -> its images, those of one prompt with one caption. rows: the arms in the order to show, "supervisor" and
    "student" among them where they ran. ceiling: the real photos' scores (`scores.ceiling(...).to_dict()`).
    config: nested plain values. versions: name -> version. notes: sentences the reader should know.
    """

    title: str
    subject: dict[str, str]
    photos: list[Picture]
    proxies: list[Picture]
    samples: dict[str, list[Picture]]
    rows: list[Row]
    ceiling: dict[str, Any]
    curves: list[Curve]
    timings: list[Timing]
    config: dict[str, Any]
    versions: dict[str, str]
    notes: list[str]


class ReportError(ValueError):
    """A report that lacks a part, has one too many, or names an image that is not there."""


def check(report: Report) -> None:
    """Raises ReportError unless `report` has exactly the fields of `Report` and its parts fit together."""
    missing, unknown = sorted(Report.__required_keys__ - set(report)), sorted(set(report) - Report.__required_keys__)
    if missing or unknown:
        raise ReportError(f"a report lacks {missing} and has the unknown fields {unknown}")
    arms = [row["arm"] for row in report["rows"]]
    if len(set(arms)) < len(arms) or set(report["samples"]) - set(arms):
        raise ReportError(f"rows have the arms {arms}, samples {sorted(report['samples'])}: rows differ and cover the samples")
    for row in report["rows"]:
        lacking = [name for name in (*METRICS, "images", "per_prompt") if name not in row["scores"]]
        if lacking:
            raise ReportError(f"the scores of {row['arm']!r} lack {lacking}")
    for curve in report["curves"]:
        if len(curve["steps"]) != len(curve["losses"]):
            raise ReportError(f"the curve of {curve['stage']!r} has {len(curve['steps'])} steps and {len(curve['losses'])} losses")


def number(value: float | None) -> str:
    """A score as all outputs print it; a dash where it is undefined."""
    return UNDEFINED if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """ "42.0 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def stage_name(stage: str) -> str:
    """ "proxy_tuning" -> "Proxy tuning"."""
    return stage.replace("_", " ").capitalize()


def spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of `items`, evenly spread, the first included."""
    return list(items) if len(items) <= limit else [items[i * len(items) // limit] for i in range(limit)]


def by_prompt(report: Report) -> dict[str, dict[str, list[Picture]]]:
    """prompt -> arm -> its images, prompts in order of appearance, arms in the order of the rows."""
    prompts: dict[str, dict[str, list[Picture]]] = {}
    for row in report["rows"]:
        if row["arm"] in report["samples"]:
            for picture in report["samples"][row["arm"]]:
                prompts.setdefault(picture["caption"], {}).setdefault(row["arm"], []).append(picture)
    return prompts


def score_cells(scores: Sequence[Mapping[str, Any]], bold: str) -> list[list[str]]:
    """One row of cells for each of `scores`: the metrics, then the number of images. The best as printed are put into `bold`."""
    columns = []
    for metric in METRICS:
        values = [number(score[metric]) for score in scores]
        top = number(max((score[metric] for score in scores if score[metric] is not None), default=None))
        columns.append([bold.format(value) if value == top != UNDEFINED and len(scores) > 1 else value for value in values])
    columns.append([str(score["images"]) for score in scores])
    return [list(row) for row in zip(*columns, strict=True)]


def per_prompt(report: Report) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """prompt -> (arm's label, that prompt's scores), in the order of the rows."""
    prompts: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in report["rows"]:
        for scores in row["scores"]["per_prompt"]:
            prompts.setdefault(scores["prompt"], []).append((row["label"], scores))
    return prompts


def write_json(report: Report, path: Path) -> None:
    """Writes the report as it is. Raises ReportError if it is incomplete, ValueError on NaN or infinity."""
    check(report)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_markdown(report: Report, path: Path) -> None:
    """Writes the tables, losses, times and the images' paths (relative to the report's root) as Markdown."""
    check(report)
    subject, rows = report["subject"], report["rows"]
    cells = score_cells([row["scores"] for row in rows], "**{}**")
    table = [[REAL, *score_cells([report["ceiling"]], "{}")[0]], *([row["label"], *line] for row, line in zip(rows, cells, strict=True))]
    prompts = [
        [prompt, label, *line]
        for prompt, arms in per_prompt(report).items()
        for (label, _), line in zip(arms, score_cells([scores for _, scores in arms], "**{}**"), strict=True)
    ]
    pictures = [(REAL, report["photos"]), ("Proxies", report["proxies"])]
    pictures += [(row["label"], report["samples"][row["arm"]]) for row in rows if row["arm"] in report["samples"]]
    curves = [curve for curve in report["curves"] if curve["steps"]]
    lines = [
        f"# {report['title']}",
        f'\nSubject: {subject["class_noun"]}, called "{subject["token"]} {subject["class_noun"]}" in prompts.',
        "\n## Scores\n\nHigher is better, the best is bold.\n",
        *(f"- {LABELS[name]}: {MEANINGS[name]}" for name in METRICS),
        "",
        *_markdown_table(["", *LABELS.values(), "Images"], table),
        *([f"\n{REAL}: {report['ceiling']['note']}."] if report["ceiling"]["note"] else []),
        "\n## Scores by prompt\n",
        *_markdown_table(["Prompt", "", *LABELS.values(), "Images"], prompts),
        "\n## Training losses (lower is better)\n",
        *(
            f"- {stage_name(c['stage'])}: {c['losses'][0]:.4g} at step {c['steps'][0]}, {c['losses'][-1]:.4g} at step {c['steps'][-1]}"
            for c in curves
        ),
        "\n## Time\n",
        *(f"- {stage_name(timing['stage'])}: {duration(timing['seconds'])}" for timing in report["timings"]),
        "\n## Images\n",
        *(line for label, group in pictures for line in _markdown_pictures(label, group)),
        "\n## Versions\n",
        *(f"- {name} {version}" for name, version in report["versions"].items()),
        *(["\n## Notes\n"] if report["notes"] else []),
        *(f"- {note}" for note in report["notes"]),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _markdown_pictures(label: str, pictures: Sequence[Picture]) -> list[str]:
    return [f"- {label}: {len(pictures)}", *(f"  - `{picture['path']}` {picture['caption']}" for picture in pictures)]


def write_html(report: Report, root: Path, path: Path) -> None:
    """Writes one self-contained page: thumbnails, style and charts inside, no script. root: the folder that image paths are relative to.

    Raises ReportError if the report is incomplete or an image is missing.
    """
    check(report)
    parts = [
        _header(report),
        _photos(report, root),
        _supervisor(report, root),
        _proxies(report, root),
        _side_by_side(report, root),
        _scores(report),
        _scores_by_prompt(report),
        _losses(report),
        _times(report),
        _configuration(report),
    ]
    path.write_text(page.document(report["title"], "\n".join(parts)), encoding="utf-8")


def _file(root: Path, picture: Picture) -> Path:
    path = root / picture["path"]
    if Path(picture["path"]).is_absolute() or not path.is_file():
        raise ReportError(f"the report names the image {picture['path']!r}, which is not a file below {root}")
    return path


def _grid(root: Path, pictures: Sequence[Picture], kind: str) -> str:
    """The pictures with their captions; a caption that all share is printed once, below."""
    captions = {picture["caption"] for picture in pictures}
    shared = len(captions) == 1 and len(pictures) > 1
    items = [(_file(root, p), f"{kind} {i}: {p['caption']}", "" if shared else p["caption"]) for i, p in enumerate(pictures, 1)]
    return page.figures(items) + (_note(f"All: “{captions.pop()}”.") if shared else "")


def _header(report: Report) -> str:
    noun, token = (page.escape(report["subject"][name]) for name in ("class_noun", "token"))
    learning = (
        "An image generator that draws by diffusion, the <strong>supervisor</strong>, studied a few photos of one subject. It then drew "
        "practice pictures of it, the <strong>proxies</strong>. A second generator that draws piece by piece, the <strong>student</strong>, "
        "learned the subject from those alone and never saw the photos."
        if report["proxies"]
        else "An image generator that draws piece by piece, the <strong>student</strong>, learned one subject from its photos directly."
    )
    tiles = []
    for metric in METRICS:
        rows = [(REAL, report["ceiling"]), *((row["label"], row["scores"]) for row in report["rows"])]
        bars = page.bars([(label, scores[metric], number(scores[metric])) for label, scores in rows])
        tiles.append(f'<div class="card tile"><h3>{LABELS[metric]}</h3><p class="say">{MEANINGS[metric]}</p>{bars}</div>')
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in SECTIONS.items())
    return (
        f'<header><h1>{page.escape(report["title"])}</h1><p class="lead">{learning} Here the subject is one particular <strong>{noun}</strong>; '
        f"in prompts the word “{token}” stands for it.</p>"
        f'<div class="tiles">{"".join(tiles)}</div><nav aria-label="Sections">{links}</nav></header>'
    )


def _photos(report: Report, root: Path) -> str:
    say = "The real pictures of the subject. Everything below is measured by how well it keeps to them."
    return page.section("photos", SECTIONS["photos"], say, _grid(root, report["photos"], "Photo"))


def _supervisor(report: Report, root: Path) -> str:
    say = "What the supervisor draws after studying the photos, one picture a prompt. Good: clearly the same subject, in the scene asked for."
    samples = report["samples"]["supervisor"] if "supervisor" in report["samples"] else []
    first = list({picture["caption"]: picture for picture in reversed(samples)}.values())[::-1]
    body = _grid(root, spread(first, SUPERVISOR_SHOWN), "Supervisor sample") if first else _note("The supervisor drew no pictures in this run.")
    return page.section("supervisor", SECTIONS["supervisor"], say, body)


def _proxies(report: Report, root: Path) -> str:
    say = "The practice pictures, drawn by the supervisor, that the student learned from. Good: many poses and places, the same subject in all."
    shown = spread(report["proxies"], PROXIES_SHOWN)
    if not shown:
        return page.section("proxies", SECTIONS["proxies"], say, _note("This run has none: the student learned from the photos directly."))
    count = _note(f"{len(shown)} of {len(report['proxies'])} proxies, evenly picked.") if len(shown) < len(report["proxies"]) else ""
    return page.section("proxies", SECTIONS["proxies"], say, _grid(root, shown, "Proxy") + count)


def _side_by_side(report: Report, root: Path) -> str:
    say = "The same prompt drawn by each generator. Compare along a row: who keeps the subject, and who shows what the prompt says?"
    labels = {row["arm"]: row["label"] for row in report["rows"] if row["arm"] in report["samples"]}
    rows = []
    for prompt, arms in by_prompt(report).items():
        cells = []
        for arm, label in labels.items():
            pictures = arms[arm][:SHOWN_PER_PROMPT] if arm in arms else []
            thumbs = "".join(page.image(_file(root, p), f"{label}, picture {i}: {prompt}") for i, p in enumerate(pictures, 1))
            cells.append(f'<div class="arm"><p class="name">{page.escape(label)}</p><div class="thumbs">{thumbs}</div></div>')
        rows.append(f'<div class="card pair" style="--arms:{len(labels)}"><h3>{page.escape(prompt)}</h3>{"".join(cells)}</div>')
    body = f'<div class="prompts">{"".join(rows)}</div>' if rows else _note("No generator was sampled in this run.")
    return page.section("samples", SECTIONS["samples"], say, body)


def _scores(report: Report) -> str:
    say = "Averages over all pictures, at most 1. Higher is better, the best is bold. Real photos compared with each other are the mark to aim for."
    rows = report["rows"]
    cells = score_cells([row["scores"] for row in rows], "<strong>{}</strong>")
    lines = [("ceiling", [REAL, *score_cells([report["ceiling"]], "{}")[0]])]
    lines += [("", [page.escape(row["label"]), *line]) for row, line in zip(rows, cells, strict=True)]
    notes = [f"{row['label']}: {row['scores']['note']}." for row in [{"label": REAL, "scores": report["ceiling"]}, *rows] if row["scores"]["note"]]
    notes += report["notes"]
    meanings = "".join(f"<li><strong>{LABELS[name]}</strong> {MEANINGS[name]}</li>" for name in METRICS)
    body = page.table(["", *LABELS.values(), "Images"], lines, anchor="table") + f'<ul class="note">{meanings}</ul>'
    body += "".join(map(_note, notes))
    return page.section("scores", SECTIONS["scores"], say, body)


def _scores_by_prompt(report: Report) -> str:
    say = "The same scores for each prompt: which scenes work and which do not. Few pictures stand behind each number, so small gaps mean little."
    lines = []
    for prompt, arms in per_prompt(report).items():
        lines.append(("group", [page.escape(prompt)]))
        cells = score_cells([scores for _, scores in arms], "<strong>{}</strong>")
        lines += [("", [page.escape(label), *line]) for (label, _), line in zip(arms, cells, strict=True)]
    table = page.table(["", *LABELS.values(), "Images"], lines, anchor="prompt-table")
    return page.section("by-prompt", SECTIONS["by-prompt"], say, page.details("Show all prompts", table))


def _losses(report: Report) -> str:
    say = "The training error of each stage. Lower is better: a falling line means learning, a flat one that it has learned what it will."
    charts = []
    for curve in report["curves"]:
        if curve["steps"]:
            chart = page.line_chart(curve["steps"], curve["losses"], f"Loss of {stage_name(curve['stage'])}")
            charts.append(f'<div class="card"><h3>{page.escape(stage_name(curve["stage"]))}</h3>{chart}</div>')
    body = f'<div class="charts">{"".join(charts)}</div><p class="note">Faint: every logged step. Solid: running average.</p>'
    return page.section("losses", SECTIONS["losses"], say, body if charts else _note("Nothing was trained in this run."))


def _times(report: Report) -> str:
    say = "How long each stage took on this machine, start to end. Less is better."
    rows = [("", [page.escape(stage_name(timing["stage"])), duration(timing["seconds"])]) for timing in report["timings"]]
    rows.append(("total", ["Total", duration(sum(timing["seconds"] for timing in report["timings"]))]))
    return page.section("times", SECTIONS["times"], say, page.table(["Stage", "Time"], rows, anchor="time-table"))


def _configuration(report: Report) -> str:
    say = "Every setting and software version behind this page, for whoever wants to repeat it."
    versions = page.table(["Software", "Version"], [("", [page.escape(k), page.escape(v)]) for k, v in report["versions"].items()], anchor="versions")
    config = json.dumps(report["config"], indent=2, ensure_ascii=False, allow_nan=False)
    body = page.details("Software versions", versions)
    body += page.details("Configuration", f'<div class="card"><pre>{page.escape(config)}</pre></div>')
    return page.section("configuration", SECTIONS["configuration"], say, body)


def _note(text: str) -> str:
    return f'<p class="note">{page.escape(text)}</p>'
