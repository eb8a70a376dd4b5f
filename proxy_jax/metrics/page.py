"""The building blocks of the report's HTML page: style sheet, thumbnails, grids, tables and line charts. No scripts, nothing external."""

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

THUMBNAIL_SIDE = 256
PNG_SIDE = 96  # images up to this side are kept exactly: JPEG would blur what little they have

STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf8;--card:#fff;--ink:#1d1f23;--soft:#5f6672;--line:#e4e2dd;--accent:#2f6fdb;--bar:#dbe6fa}
@media(prefers-color-scheme:dark){
:root{--bg:#14161a;--card:#1c1f25;--ink:#e9eaec;--soft:#a0a7b4;--line:#30343c;--accent:#7aa7ff;--bar:#2a3a58}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.2;margin:0 0 .5rem;letter-spacing:-.02em}
h2{font-size:1.3rem;margin:0 0 .25rem;letter-spacing:-.01em}
p{margin:.25rem 0 1rem;max-width:72ch;text-wrap:pretty}
.lead,.say{color:var(--soft)}
.lead{font-size:1.05rem}
.lead strong{color:var(--ink);font-weight:600}
nav{display:flex;flex-wrap:wrap;gap:.4rem 1.1rem;margin:1.25rem 0 0;font-size:.9rem}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
section{margin-top:2.75rem;scroll-margin-top:1rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1rem 1.1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:1rem;margin-top:1.5rem}
.tile h3{margin:0;font-size:1rem}
.tile p{margin:0 0 .6rem;font-size:.85rem;line-height:1.4}
.bar{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:.15rem .75rem;font-size:.85rem;line-height:1.35;margin-top:.55rem}
.track{grid-column:1/-1;height:.45rem;border-radius:.25rem;background:var(--bar);overflow:hidden}
.track div{height:100%;background:var(--accent)}
.real .track div{background:var(--soft)}
.value{font-variant-numeric:tabular-nums}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(29%,8.5rem),1fr));gap:.9rem}
figure{margin:0;min-width:0}
img{display:block;width:100%;height:auto;border-radius:8px;background:var(--line)}
img.tiny{image-rendering:pixelated;border-radius:4px}
figcaption{font-size:.8rem;line-height:1.35;color:var(--soft);margin-top:.35rem;overflow-wrap:anywhere}
.prompts{display:grid;gap:.75rem}
.pair{display:grid;gap:.8rem 1.1rem;grid-template-columns:minmax(8rem,12rem) repeat(var(--arms),minmax(0,1fr));align-items:end}
.pair h3{margin:0;align-self:start;font-size:.95rem;font-weight:600;line-height:1.35;overflow-wrap:anywhere}
.arm{min-width:0}
.arm .name{margin:0 0 .35rem;font-size:.8rem;line-height:1.3;color:var(--soft)}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(46%,5.5rem),1fr));gap:.4rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;padding:.5rem .75rem;border-bottom:1px solid var(--line);vertical-align:top}
thead th{font-size:.85rem;color:var(--soft);font-weight:600;white-space:nowrap}
tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.ceiling>*{color:var(--soft);font-style:italic}
tr.group>*{font-weight:600;padding-top:1rem;border-bottom:0}
tr.total>*{font-weight:600}
td strong{color:var(--accent)}
details{margin-top:.75rem}
summary{cursor:pointer;color:var(--accent);font-weight:500}
details[open]>summary{margin-bottom:.75rem}
pre{margin:0;font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
.charts h3{margin:0 0 .4rem;font-size:.95rem}
svg{display:block;width:100%;height:auto;max-width:40rem}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.rule{stroke:var(--line);stroke-width:1}
.raw{fill:none;stroke:var(--accent);stroke-width:1;opacity:.5}
.smooth{fill:none;stroke:var(--accent);stroke-width:2;stroke-linejoin:round}
.note{font-size:.9rem;color:var(--soft);margin:.75rem 0 0}
ul.note{padding-left:1.2rem}
@media(max-width:700px){
.pair{grid-template-columns:repeat(2,minmax(0,1fr))}.pair h3{grid-column:1/-1}
main{padding:1.5rem .9rem 3rem}.card{padding:.8rem}table{font-size:.82rem}thead th{font-size:.75rem}th,td{padding:.45rem .3rem}}
@media print{main{max-width:none}details>*{display:block}}
"""


def escape(text: object) -> str:
    """`text` safe inside HTML elements and quoted attributes."""
    return html.escape(str(text), quote=True)


def thumbnail(path: Path) -> tuple[str, int, int]:
    """(data URI, width, height) of the image at `path`, at most 256 pixels a side: PNG up to 96 pixels, else JPEG."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    kind, options = ("png", {"optimize": True}) if max(picture.size) <= PNG_SIDE else ("jpeg", {"quality": 85, "optimize": True})
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *picture.size


def image(path: Path, alt: str) -> str:
    """An <img> with the thumbnail of `path` inside it; very small images are enlarged without blur."""
    uri, width, height = thumbnail(path)
    tiny = ' class="tiny"' if max(width, height) <= PNG_SIDE else ""
    return f'<img{tiny} src="{uri}" width="{width}" height="{height}" alt="{escape(alt)}">'


def figures(pictures: Sequence[tuple[Path, str, str]]) -> str:
    """A grid of (path, alt, caption); an empty caption is left out."""
    captions = [f"<figcaption>{escape(caption)}</figcaption>" if caption else "" for _, _, caption in pictures]
    items = [f"<figure>{image(path, alt)}{caption}</figure>" for (path, alt, _), caption in zip(pictures, captions, strict=True)]
    return f'<div class="grid">{"".join(items)}</div>'


def section(anchor: str, title: str, say: str, body: str) -> str:
    """A section with its one plain sentence `say`."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2><p class="say">{escape(say)}</p>{body}</section>'


def details(summary: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, anchor: str) -> str:
    """A table in a card: each row is (class, cells) with the cells as HTML; the first column names the row, the others are numbers.

    A row of one cell is a heading over the rows below it.
    """
    heads = "".join(f'<th scope="col"{_num(i)}>{escape(text)}</th>' for i, text in enumerate(head))
    body = []
    for kind, cells in rows:
        span = f' colspan="{len(head)}"' if len(cells) == 1 else ""
        tags = [f'<th scope="row"{span}>{cells[0]}</th>'] + [f"<td{_num(i)}>{cell}</td>" for i, cell in enumerate(cells[1:], 1)]
        body.append(f'<tr class="{kind}">{"".join(tags)}</tr>')
    return f'<div class="card scroll"><table id="{anchor}"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _num(column: int) -> str:
    return ' class="num"' if column else ""


def bars(rows: Sequence[tuple[str, float | None, str]]) -> str:
    """Horizontal bars of (label, value, text) from 0 to the largest value; None has no bar. The first row is drawn as the reference."""
    top = max([value for _, value, _ in rows if value is not None], default=1.0)
    items = []
    for number, (label, value, text) in enumerate(rows):
        width = 0.0 if value is None or top <= 0 else 100 * max(value, 0.0) / top
        kind = "bar" if number else "bar real"
        track = "" if value is None else f'<div class="track"><div style="width:{width:.1f}%"></div></div>'
        items.append(f'<div class="{kind}"><span>{escape(label)}</span><span class="value">{text}</span>{track}</div>')
    return "".join(items)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `count` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and the window - 1 before it (fewer at the start)."""
    means = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - window) : end]
        means.append(sum(part) / len(part))
    return means


def line_chart(steps: Sequence[int], values: Sequence[float], label: str) -> str:
    """An SVG of values over steps: every value faint, their running mean over a twentieth of the run solid."""
    width, height, left, right, top, bottom = 420, 210, 46, 18, 8, 34
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return left + (width - left - right) * ((step - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    def line(kind: str, points: Sequence[float]) -> str:
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, points, strict=True))
        return f'<polyline class="{kind}" points="{path}"/>'

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    for tick in ticks(low, high):
        at = y(tick)
        parts.append(f'<line class="rule" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(first, last):
        parts.append(f'<text x="{x(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle">training step</text>')
    parts += [line("raw", values), line("smooth", running_mean(values, max(1, len(values) // 20))), "</svg>"]
    return "".join(parts)


def document(title: str, body: str) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
