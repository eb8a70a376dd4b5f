"""The report of a run, from one plain dict: JSON for programs, Markdown for terminals, one self-contained HTML page for people.

All numbers in the three come from the same dict. Nothing is read but the image files that it names.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from proxy_jax.metrics import page
from proxy_jax.metrics.scores import METRICS, PROBED

LABELS = {
    "dino": "DINO ↑",
    "clip_i": "CLIP-I ↑",
    "clip_t": "CLIP-T ↑",
    "identity": "Identity ↑",
    "context": "Context ↑",
    "identity_context": "Identity × context ↑",
    "right_class": "Class ↑",
}
MEANINGS = {
    "dino": "How like the photos in fine detail; higher is better.",
    "clip_i": "How like the photos in overall meaning; higher is better.",
    "clip_t": "How well picture and prompt agree; higher is better.",
    "identity": "How much of the subject's own colours, pattern and parts is there (0.2: another subject of its class); higher is better.",
    "context": "How much of what the prompt asks for is there; higher is better.",
    "identity_context": "Both at once, in the same picture; higher is better.",
    "right_class": "How many show the right kind of thing; higher is better.",
}
SECTIONS = {
    "photos": "Photos",
    "supervisor": "Supervisor samples",
    "proxies": "Proxies",
    "samples": "Student samples by prompt",
    "scores": "Scores",
    "losses": "Loss curves",
    "times": "Time",
    "configuration": "Configuration and versions",
}
REAL, UNDEFINED = "Real photos", "–"
PROXIES_SHOWN, SUPERVISOR_SHOWN, BESIDE_SHOWN = 24, 8, 5  # pictures of a kind on the page
ROW_SHOWN = 8  # pictures of one prompt side by side, over all arms
LEFT_OUT_NAMED = 10


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

    subject: {"class_noun", "token"}. left_out: names of files among the photos that are no readable picture. proxies: all of them, in
    order; empty if the student learned from the photos directly. samples: arm -> its images, those of one prompt with one caption.
    rows: the arms in the order to show, "supervisor" and "student" among them where they ran. ceiling: the real photos' scores
    (`scores.ceiling(...).to_dict()`). config: nested plain values. versions: name -> version. notes: sentences the reader should know.
    """

    title: str
    subject: dict[str, str]
    photos: list[Picture]
    left_out: list[str]
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
        lacking = [name for name in (*METRICS, *PROBED, "images", "per_prompt") if name not in row["scores"]]
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


def metrics(report: Report) -> list[str]:
    """The scores to show: DreamBench's always, a probe's where any arm has it."""
    return [*METRICS, *(name for name in PROBED if any(row["scores"][name] is not None for row in report["rows"]))]


def score_cells(shown: Sequence[str], scores: Sequence[Mapping[str, Any]], bold: str) -> list[list[str]]:
    """One row of cells for each of `scores`: the metrics `shown`, then the number of images. The best as printed are put into `bold`."""
    columns = []
    for metric in shown:
        values = [number(score[metric]) for score in scores]
        top = number(max((score[metric] for score in scores if score[metric] is not None), default=None))
        columns.append([bold.format(value) if value == top != UNDEFINED and len(scores) > 1 else value for value in values])
    columns.append([str(score["images"]) for score in scores])
    return [list(row) for row in zip(*columns, strict=True)]


def result(report: Report) -> str:
    """The student's scores in one sentence; empty without a student, and of random weights, whose scores mean nothing."""
    scores = {row["arm"]: row["scores"] for row in report["rows"]}
    if "student" not in scores or "random_weights" in report["config"]:
        return ""

    def others(metric: str, form: str) -> str:
        names = {"supervisor": "the supervisor's", "untuned_student": "its own before tuning"}
        known = [f"{name} {scores[arm][metric]:{form}}" for arm, name in names.items() if arm in scores]
        known += [f"real photos {report['ceiling'][metric]:{form}}"] if report["ceiling"][metric] is not None else []
        return f" ({', '.join(known)})" if known else ""

    student, noun = scores["student"], report["subject"]["class_noun"]
    if student["identity"] is None:
        return f"Likeness to the photos, by DINO (1 is the most): the student's pictures {student['dino']:.2f}{others('dino', '.2f')}."
    return (
        f"The student's pictures show {student['identity']:.0%} of what makes this {noun} itself{others('identity', '.0%')} "
        f"and {student['context']:.0%} of what the prompts ask for{others('context', '.0%')}."
    )


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
    subject, rows, shown = report["subject"], report["rows"], metrics(report)
    cells = score_cells(shown, [row["scores"] for row in rows], "**{}**")
    table = [[REAL, *score_cells(shown, [report["ceiling"]], "{}")[0]], *([row["label"], *line] for row, line in zip(rows, cells, strict=True))]
    prompts = [
        [prompt, label, *line]
        for prompt, arms in per_prompt(report).items()
        for (label, _), line in zip(arms, score_cells(shown, [scores for _, scores in arms], "**{}**"), strict=True)
    ]
    pictures = [(REAL, report["photos"]), ("Proxies", report["proxies"])]
    pictures += [(row["label"], report["samples"][row["arm"]]) for row in rows if row["arm"] in report["samples"]]
    curves = [curve for curve in report["curves"] if curve["steps"]]
    head = ["", *(LABELS[name] for name in shown), "Images"]
    lines = [
        f"# {report['title']}",
        f'\nSubject: {subject["class_noun"]}, called "{subject["token"]} {subject["class_noun"]}" in prompts.',
        *([f"\n{result(report)}"] if result(report) else []),
        "\n## Scores\n\nThe best is bold.\n",
        *(f"- {LABELS[name]}: {MEANINGS[name]}" for name in shown),
        "",
        *_markdown_table(head, table),
        *([f"\n{REAL}: {report['ceiling']['note']}."] if report["ceiling"]["note"] else []),
        "\n## Scores by prompt\n",
        *_markdown_table(["Prompt", *head], prompts),
        "\n## Training losses (lower is better)\n",
        *(
            f"- {stage_name(c['stage'])}: {c['losses'][0]:.4g} at step {c['steps'][0]}, {c['losses'][-1]:.4g} at step {c['steps'][-1]}"
            for c in curves
        ),
        "\n## Time\n",
        *(f"- {stage_name(timing['stage'])}: {duration(timing['seconds'])}" for timing in report["timings"]),
        "\n## Images\n",
        *(line for label, group in pictures for line in _markdown_pictures(label, group)),
        *([f"\n{left_out(report)}"] if report["left_out"] else []),
        "\n## Versions\n",
        *(f"- {name} {version}" for name, version in report["versions"].items()),
        *(["\n## Notes\n"] if report["notes"] else []),
        *(f"- {note}" for note in report["notes"]),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def left_out(report: Report) -> str:
    """The sentence about files among the photos that are no readable pictures."""
    names, more = report["left_out"][:LEFT_OUT_NAMED], len(report["left_out"]) - LEFT_OUT_NAMED
    return f"Left out, because they are no pictures that can be read: {', '.join(names)}{f' and {more} more' if more > 0 else ''}."


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
        _by_prompt(report, root),
        _scores(report),
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


def _grid(root: Path, pictures: Sequence[Picture], kind: str, *, large: bool = False) -> str:
    """The pictures with their captions; a caption that all share is left to the text around."""
    shared = _shared_caption(pictures)
    items = [(_file(root, p), f"{kind} {i}: {p['caption']}", "" if shared else p["caption"]) for i, p in enumerate(pictures, 1)]
    return page.figures(items, large=large)


def _shared_caption(pictures: Sequence[Picture]) -> str:
    captions = {picture["caption"] for picture in pictures}
    return captions.pop() if len(captions) == 1 and len(pictures) > 1 else ""


def _header(report: Report) -> str:
    noun, token = (page.escape(report["subject"][name]) for name in ("class_noun", "token"))
    learning = (
        "An image generator that draws by diffusion, the <strong>supervisor</strong>, studied a few photos of one subject. It then drew "
        "practice pictures of it, the <strong>proxies</strong>. A second generator that draws piece by piece, the <strong>student</strong>, "
        "learned the subject from those alone and never saw the photos."
        if report["proxies"]
        else "An image generator that draws piece by piece, the <strong>student</strong>, learned one subject from its photos directly."
    )
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in SECTIONS.items())
    sentence = f'<p class="result">{page.escape(result(report))}</p>' if result(report) else ""
    return (
        f'<header><h1>{page.escape(report["title"])}</h1><p class="lead">{learning} Here the subject is one particular <strong>{noun}</strong>; '
        f"in prompts the word “{token}” stands for it.</p>{sentence}"
        f'<nav aria-label="Sections">{links}</nav></header>'
    )


def _photos(report: Report, root: Path) -> str:
    say = "The real pictures of the subject: all that anyone was shown of it. Likeness, in the scores below, is likeness to these."
    body = _grid(root, report["photos"], "Photo", large=True) + (_note(left_out(report)) if report["left_out"] else "")
    return page.section("photos", SECTIONS["photos"], say, body)


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
    shared, count = _shared_caption(shown), f"{len(shown)} of {len(report['proxies'])} proxies, evenly picked" * (len(shown) < len(report["proxies"]))
    note = "; ".join(filter(None, (count, f"the prompt of each is “{shared}”" if shared else "")))
    return page.section("proxies", SECTIONS["proxies"], say, _grid(root, shown, "Proxy") + (_note(f"{note[0].upper()}{note[1:]}.") if note else ""))


def _by_prompt(report: Report, root: Path) -> str:
    labels = {row["arm"]: row["label"] for row in report["rows"] if row["arm"] in report["samples"]}
    prompts, noun = by_prompt(report), report["subject"]["class_noun"]
    if not prompts:
        return page.section("samples", SECTIONS["samples"], "", _note("No generator was sampled in this run."))
    say = f"Look for two things: is it the {noun} of the photos, and is it as the heading says? Each generator was asked for a "
    say += f"“{report['subject']['token']} {noun}”."
    limit, drawn = max(1, ROW_SHOWN // len(labels)), max(len(pictures) for arms in prompts.values() for pictures in arms.values())
    if drawn > limit:
        say += f" The first {limit} of {drawn} pictures a prompt are shown; all count in the scores."
    rows = []
    for prompt, arms in prompts.items():
        groups = []
        for arm, label in labels.items():
            pictures = arms[arm][:limit] if arm in arms else []
            groups.append([page.image(_file(root, p), f"{label}, picture {i}: {prompt}") for i, p in enumerate(pictures, 1)])
        rows.append((prompt, groups))
    beside = [page.image(_file(root, p), f"Photo {i}, to compare") for i, p in enumerate(spread(report["photos"], BESIDE_SHOWN), 1)]
    return page.section("samples", SECTIONS["samples"], say, page.study(("Photos", beside), list(labels.values()), rows))


def _scores(report: Report) -> str:
    say = "Averages over all pictures; the best is bold. A full bar is the score of the real photos, or 1 where photos have none."
    rows, shown = report["rows"], metrics(report)
    cells = score_cells(shown, [row["scores"] for row in rows], "<strong>{}</strong>")
    cells = [score_cells(shown, [report["ceiling"]], "{}")[0], *cells]
    everyone = [("ceiling", REAL, report["ceiling"]), *(("", row["label"], row["scores"]) for row in rows)]
    lines = []
    for (kind, label, scores), line in zip(everyone, cells, strict=True):
        bars = [page.bar(scores[name], _full(report["ceiling"][name])) for name in shown]
        lines.append((kind, [page.escape(label), *map("".join, zip(line, [*bars, ""], strict=True))]))
    head, probed = ["", *(LABELS[name] for name in shown), "Images"], len(shown) - len(METRICS)
    over = [("", 1), ("DreamBench's scores", len(METRICS)), ("Read from the pictures by a probe that knows this world", probed), ("", 1)]
    meanings = ["", *(MEANINGS[name] for name in shown), ""]
    body = page.table(head, lines, anchor="table", say=meanings, over=over if probed else ())
    notes = [f"{label}: {scores['note']}." for _, label, scores in everyone if scores["note"]]
    body += "".join(map(_note, notes + report["notes"]))
    return page.section("scores", SECTIONS["scores"], say, body + _scores_by_prompt(report))


def _full(ceiling: float | None) -> float:
    """Where a score's bar ends: at the real photos' score, or at 1, the most that a score can be."""
    return ceiling if ceiling is not None and ceiling > 0 else 1.0


def _scores_by_prompt(report: Report) -> str:
    lines, shown = [], metrics(report)
    for prompt, arms in per_prompt(report).items():
        lines.append(("group", [page.escape(prompt)]))
        cells = score_cells(shown, [scores for _, scores in arms], "<strong>{}</strong>")
        lines += [("", [page.escape(label), *line]) for (label, _), line in zip(arms, cells, strict=True)]
    table = page.table(["", *(LABELS[name] for name in shown), "Images"], lines, anchor="prompt-table")
    return page.details("Scores by prompt", _note("Few pictures stand behind each number, so small gaps mean little.") + table)


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
