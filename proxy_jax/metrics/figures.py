"""The comparison's figures as SVG, in the report's colours (page.py): readable as images on light and on dark pages, nothing external.

Every mark with a whisker or a band is a mean with its 95 % interval over subjects.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from proxy_jax.metrics.page import escape, ticks

LIGHT = dict(card="#ffffff", ink="#1d1f23", soft="#626975", line="#e6e3dd", first="#2f6fdb", second="#c2513c", third="#2b8a67", other="#8b919c")
DARK = dict(card="#1b1e23", ink="#e9eaec", soft="#a0a7b4", line="#2c3037", first="#7aa7ff", second="#e08a76", third="#63c3a0", other="#858c99")
WIDTH, TOP = 720, 46  # of a figure; where what it shows begins, below its title
LETTER = 6.6  # the width of a letter, about
RATES_TITLE = "Wrong attributes (dotted: as often as in the proxies, dashed: a majority filter)"
NAMES = {
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "identity": "Identity (share of the subject's attributes that are right; by chance 0.2)",
    "context": "Context (share of what the prompt asks for)",
    "identity_context": "Identity × context",
}


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean and the half width of its interval, 0 where there is none."""

    mean: float
    half: float

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> "Mean":
        """From an Interval as a dict."""
        return cls(figures["mean"], figures["half_width"] or 0.0)

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.mean + self.half


Bar = tuple[str, str, Mean]  # a name, its colour's class and what is shown


@dataclasses.dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on the pixels from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * ((value - low) / (high - low) if high > low else 0.5)


def around(values: Sequence[float], begin: float, end: float) -> Scale:
    """A scale that shows all values with some air."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - margin, high + margin, begin, end)


def figure(title: str, height: float, parts: Sequence[str]) -> str:
    """A whole SVG file."""
    rules = [
        *("svg{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}", ".title{font-size:14px;font-weight:600}"),
        ".strong{font-weight:600}",
        *(".line,.band,.diagonal{stroke-width:1}", ".band{opacity:.18}", ".faint{opacity:.55}", ".thick{stroke-width:2;fill:none}"),
        *(
            ".whisker{stroke-width:1.5}",
            ".diagonal{stroke-dasharray:3 4}",
            ".majority{stroke-width:1.5;stroke-dasharray:7 4;fill:none}",
            ".hollow{fill-opacity:0;stroke-width:1.2}",
        ),
    ]
    style = "".join([*rules, _coloured(LIGHT), "@media(prefers-color-scheme:dark){", _coloured(DARK), "}"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n"
        f'<rect class="card" width="{WIDTH}" height="{height:g}" rx="12"/>\n{_text(20, 27, title, kind="title")}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _coloured(colours: Mapping[str, str]) -> str:
    own = "".join(f".{name}{{fill:{colours[name]};stroke:{colours[name]}}}" for name in ("first", "second", "third", "other"))
    texts = f"text{{fill:{colours['soft']};stroke:none}}.title,.strong{{fill:{colours['ink']}}}"
    lines = f".line{{stroke:{colours['line']}}}.diagonal,.majority{{stroke:{colours['soft']}}}"
    return f".card{{fill:{colours['card']}}}{lines}{own}.thick{{fill:none}}{texts}"


def _text(x: float, y: float, content: str, *, anchor: str = "start", kind: str = "", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(content)}</text>'


def _segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(x: float, y: float, kind: str, radius: float = 4.5) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def _path(points: Sequence[tuple[float, float]], kind: str, tag: str = "polyline") -> str:
    return f'<{tag} class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _x_axis(scale: Scale, top: float, bottom: float, label: str, at: Sequence[float] = (), count: int = 5) -> Iterator[str]:
    for tick in at or ticks(scale.low, scale.high, count):
        yield _segment(scale(tick), top, scale(tick), bottom, "line")
        yield _text(scale(tick), bottom + 16, f"{tick:g}", anchor="middle")
    yield _text((scale.begin + scale.end) / 2, bottom + 34, label, anchor="middle")


def _y_axis(scale: Scale, left: float, right: float, label: str) -> Iterator[str]:
    for tick in ticks(scale.low, scale.high, 5):
        yield _segment(left, scale(tick), right, scale(tick), "line")
        yield _text(left - 7, scale(tick) + 4, f"{tick:g}", anchor="end")
    yield _text(left - 44, (scale.begin + scale.end) / 2, label, anchor="middle", turned=True)


def intervals(rows: Sequence[Bar], *, title: str, label: str) -> str:
    """A row each of (name, its colour's class, mean): a dot with its interval, and the mean as a number."""
    left, step = 30 + LETTER * max(len(name) for name, _, _ in rows), 25
    bottom = TOP + step * len(rows)
    x = around([end for _, _, mean in rows for end in (mean.low, mean.high)], left, WIDTH - 70)
    parts = list(_x_axis(x, TOP, bottom, label))
    for number, (name, kind, mean) in enumerate(rows):
        y = TOP + step * (number + 0.5)
        parts.append(_text(left - 12, y + 4, name, anchor="end", kind="" if kind == "other" else "strong"))
        parts.append(_segment(x(mean.low), y, x(mean.high), y, f"{kind} whisker"))
        parts.append(_dot(x(mean.mean), y, kind))
        parts.append(_text(WIDTH - 20, y + 4, f"{mean.mean:.3f}", anchor="end"))
    return figure(title, bottom + 48, parts)


def scatter(points: Sequence[tuple[str, str, Mean, Mean]], *, title: str, x_label: str, y_label: str) -> str:
    """A cross each of (name, its colour's class, x, y), with its name beside it where there is room."""
    left, right, bottom = 74, WIDTH - 30, 470
    x = around([end for _, _, mean, _ in points for end in (mean.low, mean.high)], left, right)
    y = around([end for _, _, _, mean in points for end in (mean.low, mean.high)], bottom, TOP)
    parts = [*_x_axis(x, TOP, bottom, x_label), *_y_axis(y, left, right, y_label)]
    taken = [(x(a.mean) - 5, y(b.mean) - 5, x(a.mean) + 5, y(b.mean) + 5) for _, _, a, b in points]
    for _, kind, a, b in points:
        parts.append(_segment(x(a.low), y(b.mean), x(a.high), y(b.mean), f"{kind} whisker faint"))
        parts.append(_segment(x(a.mean), y(b.low), x(a.mean), y(b.high), f"{kind} whisker faint"))
        parts.append(_dot(x(a.mean), y(b.mean), kind))
    for name, kind, a, b in points:
        at_x, at_y, box = _free(x(a.mean), y(b.mean), LETTER * len(name), taken, left, right)
        taken.append(box)
        parts.append(_text(at_x, at_y, name, kind="" if kind == "other" else "strong"))
    return figure(title, bottom + 48, parts)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _free(x: float, y: float, width: float, taken: Sequence[Box], left: float, right: float) -> tuple[float, float, Box]:
    """Where a name of a width stands near a dot (its baseline's begin) so that it covers the least of what is there, and its box."""
    places = [(x + side, y + 4 + lift) for lift in (-9, 9, 0, -22, 22, -35, 35) for side in (8, -8 - width)]
    boxes = [(begin, base - 10, begin + width, base + 3) for begin, base in places]

    def covered(box: Box) -> float:
        outside = max(0.0, left - box[0]) + max(0.0, box[2] - right)
        return 100 * outside + sum(
            max(0.0, min(box[2], other[2]) - max(box[0], other[0])) * max(0.0, min(box[3], other[3]) - max(box[1], other[1])) for other in taken
        )

    best = min(range(len(boxes)), key=lambda i: covered(boxes[i]))
    return *places[best], boxes[best]


def curve(points: Sequence[tuple[int, Mean]], levels: Sequence[tuple[str, str, float]], *, title: str, x_label: str, y_label: str) -> str:
    """Means with their band over a logarithmic axis, and level lines of (name, its colour's class, value) to compare with."""
    left, bottom = 74, 330
    right = WIDTH - 30 - LETTER * max((len(name) for name, _, _ in levels), default=0)
    counts = [count for count, _ in points]
    x = Scale(min(counts), max(counts), left + 16, right - 16, log=True)
    y = around([*(end for _, mean in points for end in (mean.low, mean.high)), *(value for _, _, value in levels)], bottom, TOP)
    parts = [*_x_axis(x, TOP, bottom, x_label, at=counts), *_y_axis(y, left, right, y_label)]
    last = -math.inf
    for name, kind, value in sorted(levels, key=lambda level: -level[2]):
        parts.append(_segment(left, y(value), right, y(value), f"{kind} whisker"))
        last = max(y(value) + 4, last + 14)
        parts.append(_text(right + 8, last, name, kind="strong"))
    parts.append(_path([*((x(n), y(m.low)) for n, m in points), *((x(n), y(m.high)) for n, m in reversed(points))], "first band", "polygon"))
    parts.append(_path([(x(n), y(m.mean)) for n, m in points], "first thick"))
    parts += [_dot(x(n), y(m.mean), "first") for n, m in points]
    return figure(title, bottom + 48, parts)


def lines(panels: Sequence[tuple[str, str, Sequence[Mapping[str, Any]], Mapping[str, Any] | None]], *, title: str, x_label: str) -> str:
    """Side by side a panel each of (name, its colour's class, points, fitted line): rates of the student's errors by its supervisor's.

    points: {"supervisor", "student", "left_out"}, the latter hollow; line: an account.Line as a dict. Dotted: where both are the same.
    Dashed: what a filter would do that draws each attribute's likeliest value: wrong never up to 1/2, above it (of one wrong value) always.
    """
    gap, left = 64, 66
    side = (WIDTH - 24 - left - gap * (len(panels) - 1)) / max(len(panels), 2)
    top, bottom = TOP + 22, TOP + 22 + side
    most = max(point[name] for _, _, points, _ in panels for point in points for name in ("supervisor", "student"))
    high = 1.06 if most > 0.5 else 1.06 * most or 1.0
    majority = [(0, 0), (0.5, 0), (0.5, 1), (1, 1)] if most > 0.5 else [(0, 0), (high, 0)]
    parts = []
    for number, (name, kind, points, line) in enumerate(panels):
        begin = left + number * (side + gap)
        x, y = Scale(0, high, begin, begin + side), Scale(0, high, bottom, top)
        parts += [*_x_axis(x, top, bottom, x_label), *_y_axis(y, begin, begin + side, f"error rate of {name}")]
        parts.append(_segment(x(0), y(0), x(x.high), y(y.high), "diagonal"))
        parts.append(_path([(x(at), y(rate)) for at, rate in majority], "majority"))
        parts += [_dot(x(p["supervisor"]), y(p["student"]), f"{kind} {'hollow' if p['left_out'] else 'faint'}", 3.5) for p in points]
        if line is None:
            continue
        ends = "" if line["slope_interval"] is None else " [{:.2f}, {:.2f}]".format(*line["slope_interval"])
        parts.append(_text(begin, TOP + 12, f"slope {line['slope']:.2f}{ends}", kind="strong"))
        parts.append(_path(_inside(line["slope"], line["intercept"], x.high, x, y), f"{kind} thick"))
    return figure(title, bottom + 48, parts)


def _inside(slope: float, intercept: float, high: float, x: Scale, y: Scale) -> list[tuple[float, float]]:
    """The part of a line inside the square from 0 to `high`: its two ends, or nothing."""
    crossings = [0.0, high, *([-intercept / slope, (high - intercept) / slope] if slope else [])]
    inside = [at for at in crossings if 0 <= at <= high and -1e-9 <= slope * at + intercept <= high + 1e-9]
    return [(x(at), y(slope * at + intercept)) for at in (min(inside), max(inside))] if inside else []


def bars(panels: Sequence[tuple[str, Sequence[tuple[str, Sequence[Bar]]]]], *, title: str) -> str:
    """Side by side a panel each of (name, groups); a group is (name, bars), a bar (name, its colour's class, mean). All have the same groups."""
    names = [name for _, groups in panels for _, own in groups for name, _, _ in own]
    left, gap, step = 32 + LETTER * max(map(len, names)), 26, 22
    width = (WIDTH - 24 - left - gap * (len(panels) - 1)) / len(panels)
    parts, bottom = [], 0.0
    for number, (name, groups) in enumerate(panels):
        begin = left + number * (width + gap)
        everything = [mean for _, own in groups for _, _, mean in own]
        low, high = min(0.0, *(mean.low for mean in everything)), max(mean.high for mean in everything)
        x, y, marks = Scale(low, 1.05 * high if high > 0 else 1.0, begin, begin + width), TOP + 24.0, []
        for group, own in groups:
            if number == 0:
                marks.append(_text(left - 12, y + 13, group, anchor="end", kind="strong"))
            y += step
            for bar, kind, mean in own:
                if number == 0:
                    marks.append(_text(left - 12, y + 14, bar, anchor="end"))
                edge, end = sorted((x(0), x(mean.mean)))
                marks.append(f'<rect class="{kind} faint" x="{edge:.1f}" y="{y + 4:.1f}" width="{end - edge:.1f}" height="{step - 10}"/>')
                marks.append(_segment(x(mean.low), y + step / 2 - 1, x(mean.high), y + step / 2 - 1, f"{kind} whisker"))
                y += step
            y += 6
        bottom = y
        parts += [_text(begin, TOP + 12, name, kind="strong"), *_x_axis(x, TOP + 22, bottom, "", count=3), *marks]
    return figure(title, bottom + 30, parts)


def draw(content: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a comparison (comparison.compare, with "account" where there is one and "curve": [{"proxies", "arm"}]): name -> SVG."""
    means = {arm["arm"]: {score: Mean.of(figures) for score, figures in arm["scores"].items() if figures is not None} for arm in content["arms"]}
    means = {arm: own for arm, own in means.items() if {"identity", "context", "identity_context"} <= own.keys()}
    subjects, colours, both = f"{len(content['subjects'])} subjects", _colours(content), NAMES["identity_context"]
    found = {}
    if means:
        ranked = sorted(means.items(), key=lambda item: -item[1]["identity_context"].mean)
        rows = [(_shown(arm), colours[arm], own["identity_context"]) for arm, own in ranked]
        found["identity_context"] = intervals(rows, title=f"{both} by arm, {subjects}", label=both)
        points = [(_shown(arm), colours[arm], own["context"], own["identity"]) for arm, own in ranked]
        title = f"Is it the subject, and is it what was asked for? {subjects}"
        found["identity_by_context"] = scatter(points, title=title, x_label=NAMES["context"], y_label=NAMES["identity"])
    counts = sorted((point["proxies"], means[point["arm"]]["identity_context"]) for point in content["curve"] if point["arm"] in means)
    if len(counts) > 1:
        levels = [(_shown(arm), colours[arm], means[arm]["identity_context"].mean) for arm in (content["reference"],) if arm in means]
        title = f"How many proxies the student needs, {subjects}"
        found["few_proxies"] = curve(counts, levels, title=title, x_label="proxies it learned from", y_label=both)
    return found | (_account(content["account"], colours) if "account" in content else {})


def _colours(content: Mapping[str, Any]) -> dict[str, str]:
    """Each arm's class of colour: those that the figures are about have their own."""
    found = {arm["arm"]: "other" for arm in content["arms"]} | {content["reference"]: "second"}
    if "account" in content:
        first, *others = (arm["arm"] for arm in content["account"]["arms"])
        found |= {first: "first", **dict.fromkeys(others, "third")}
    return found | {row["arm"]: "first" for row in content["contrasts"] if row["primary"]}


def _shown(arm: str) -> str:
    return arm.replace("_", " ")


def _account(content: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, str]:
    arms = {found["arm"]: found for found in content["arms"]}
    panels = [(_shown(arm), colours[arm], found["points"], found["attributes"]["line"]) for arm, found in arms.items()]

    def group(part: str, *path: str) -> tuple[str, list[Bar]]:
        own = {arm: functools.reduce(lambda found, name: found[name], (*path, part), found) for arm, found in arms.items()}
        drawn = [(_shown(arm), colours[arm], Mean.of(figures["student"])) for arm, figures in own.items()]
        return part, [("proxies", "second", Mean.of(next(iter(own.values()))["supervisor"])), *drawn]

    regions = {"attributes": ("attributes",), "tokens on the subject": ("tokens", "inside"), "tokens around it": ("tokens", "outside")}
    split = [(region, [group(part, *path) for part in ("systematic", "scattered")]) for region, path in regions.items()]
    return {
        "error_rates": lines(panels, title=RATES_TITLE, x_label="error rate of the proxies"),
        "errors": bars(split, title="Errors that are the same in every picture, and those that differ"),
    }
