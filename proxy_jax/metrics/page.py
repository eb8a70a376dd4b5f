"""The building blocks of the report's HTML page: style sheet, thumbnails, grids, tables, bars and line charts. No scripts, nothing external."""

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
:root{color-scheme:light dark;--bg:#fbfaf8;--card:#fff;--ink:#1d1f23;--soft:#626975;--line:#e6e3dd;--accent:#2f6fdb;--track:#ecebe6;--below:#c2513c}
@media(prefers-color-scheme:dark){
:root{--bg:#14161a;--card:#1b1e23;--ink:#e9eaec;--soft:#a0a7b4;--line:#2c3037;--accent:#7aa7ff;--track:#2a2e35;--below:#e08a76}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1280px;margin:0 auto;padding:3rem 1.25rem 5rem}
h1{font-size:clamp(1.7rem,4vw,2.4rem);line-height:1.2;margin:0 0 .75rem;letter-spacing:-.02em}
h2{font-size:1.35rem;margin:0 0 .25rem;letter-spacing:-.01em}
p{margin:.25rem 0 1.1rem;max-width:72ch;text-wrap:pretty}
.lead,.say{color:var(--soft)}
.lead{font-size:1.05rem}
.lead strong{color:var(--ink);font-weight:600}
.result{font-size:1.15rem;line-height:1.5;margin:1.1rem 0 0;padding-left:1rem;border-left:3px solid var(--accent)}
nav{display:flex;flex-wrap:wrap;gap:.4rem 1.25rem;margin:1.6rem 0 0;font-size:.9rem}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
section{margin-top:3.5rem;scroll-margin-top:1rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1rem 1.1rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(29%,8.4rem),1fr));gap:1rem .9rem}
.grid.large{grid-template-columns:repeat(auto-fill,minmax(min(44%,11.5rem),1fr))}
figure{margin:0;min-width:0}
img{display:block;width:100%;height:auto;border-radius:6px;background:var(--line)}
figcaption{font-size:.8rem;line-height:1.35;color:var(--soft);margin-top:.4rem;overflow-wrap:anywhere}
.study{display:grid;grid-template-columns:8rem minmax(0,1fr);gap:0 2rem}
.study aside{position:sticky;top:0;align-self:start;max-height:100vh;overflow-y:auto;scrollbar-width:none}
.stack{display:grid;gap:.45rem}
.heads,.arms{display:grid;grid-template-columns:repeat(var(--arms),minmax(0,1fr));gap:0 1.25rem}
.heads{position:sticky;top:0;z-index:1;background:var(--bg);border-bottom:1px solid var(--line)}
.heads p,.study aside p{margin:0;padding:.7rem 0 .6rem;font-size:.85rem;line-height:1.3;font-weight:600}
.prompt{padding:1.15rem 0 .35rem}
.prompt h3{margin:0 0 .5rem;font-size:1rem;font-weight:500;line-height:1.35;overflow-wrap:anywhere}
.arm{min-width:0}
.arm .name{display:none}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(120px,1fr));gap:.4rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;padding:.55rem .75rem;border-bottom:1px solid var(--line);vertical-align:top}
thead th{font-size:.9rem;font-weight:600}
thead tr.over th{font-size:.8rem;font-weight:500;color:var(--soft);border:0;padding-bottom:0}
thead small{display:block;margin-top:.2rem;font-size:.78rem;font-weight:400;line-height:1.35;color:var(--soft);text-wrap:pretty}
tbody th{font-weight:500;min-width:10.5rem}
tbody tr:last-child>*{border-bottom:0}
.num{font-variant-numeric:tabular-nums}
.track{display:block;height:4px;margin-top:.3rem;border-radius:2px;background:var(--track);overflow:hidden}
.track i{display:block;height:100%;background:var(--accent)}
.track .below{background:var(--below)}
tr.ceiling>*{color:var(--soft)}
tr.ceiling .track i{background:var(--soft)}
tr.group>*{font-weight:600;padding-top:1.1rem;border-bottom:0}
tr.total>*{font-weight:600}
td strong{color:var(--accent)}
details{margin-top:1rem}
summary{cursor:pointer;color:var(--accent);font-weight:500}
details[open]>summary{margin-bottom:.75rem}
pre{margin:0;font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
.charts h3{margin:0 0 .4rem;font-size:.95rem}
svg{display:block;width:100%;height:auto;max-width:40rem}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.rule{stroke:var(--line);stroke-width:1}
.raw{fill:none;stroke:var(--accent);stroke-width:1;opacity:.4}
.smooth{fill:none;stroke:var(--accent);stroke-width:2;stroke-linejoin:round}
.note{font-size:.88rem;color:var(--soft);margin:.75rem 0 0}
@media(max-width:800px){
.study,.arms{grid-template-columns:minmax(0,1fr)}.heads{display:none}.arm{margin-bottom:.8rem}
.study aside{position:static}.stack{grid-template-columns:repeat(5,minmax(0,1fr))}
.arm .name{display:block;margin:0 0 .3rem;font-size:.8rem;line-height:1.3;color:var(--soft)}
main{padding:1.75rem .9rem 3rem}.card{padding:.8rem}table{font-size:.85rem}th,td{padding:.45rem .4rem}thead small{min-width:6rem}}
@media print{main{max-width:none}.study aside,.heads{position:static}details>*{display:block}}
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
    """An <img> with the thumbnail of `path` inside it; small ones are enlarged smoothly, by the browser."""
    uri, width, height = thumbnail(path)
    return f'<img src="{uri}" width="{width}" height="{height}" alt="{escape(alt)}">'


def figures(pictures: Sequence[tuple[Path, str, str]], *, large: bool = False) -> str:
    """A grid of (path, alt, caption); an empty caption is left out."""
    captions = [f"<figcaption>{escape(caption)}</figcaption>" if caption else "" for _, _, caption in pictures]
    items = [f"<figure>{image(path, alt)}{caption}</figure>" for (path, alt, _), caption in zip(pictures, captions, strict=True)]
    return f'<div class="grid{" large" if large else ""}">{"".join(items)}</div>'


def study(reference: tuple[str, Sequence[str]], names: Sequence[str], rows: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """Rows of (heading, the images of each of `names`) beside a reference (its name, images), which stays in sight with the names.

    Images are <img> elements.
    """
    heads = "".join(f"<p>{escape(name)}</p>" for name in names)
    parts = []
    for heading, groups in rows:
        arms = [
            f'<div class="arm"><p class="name">{escape(name)}</p><div class="thumbs">{"".join(group)}</div></div>'
            for name, group in zip(names, groups, strict=True)
        ]
        parts.append(f'<div class="prompt"><h3>{escape(heading)}</h3><div class="arms">{"".join(arms)}</div></div>')
    aside = f'<aside><p>{escape(reference[0])}</p><div class="stack">{"".join(reference[1])}</div></aside>'
    return f'<div class="study" style="--arms:{len(names)}">{aside}<div><div class="heads">{heads}</div>{"".join(parts)}</div></div>'


def section(anchor: str, title: str, say: str, body: str) -> str:
    """A section with its one plain sentence `say`."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2><p class="say">{escape(say)}</p>{body}</section>'


def details(summary: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(
    head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, anchor: str, say: Sequence[str] = (), over: Sequence[tuple[str, int]] = ()
) -> str:
    """A table in a card: each row is (class, cells) with the cells as HTML; the first column names the row, the others are numbers.

    A row of one cell is a heading over the rows below it. say: a sentence under each column's name. over: (name, columns) above those.
    """
    says = [f"<small>{escape(text)}</small>" if text else "" for text in say or [""] * len(head)]
    heads = "".join(f'<th scope="col"{_num(i)}>{escape(text)}{says[i]}</th>' for i, text in enumerate(head))
    groups = "".join(f'<th scope="colgroup" colspan="{columns}">{escape(text)}</th>' for text, columns in over)
    body = []
    for kind, cells in rows:
        span = f' colspan="{len(head)}"' if len(cells) == 1 else ""
        tags = [f'<th scope="row"{span}>{cells[0]}</th>'] + [f"<td{_num(i)}>{cell}</td>" for i, cell in enumerate(cells[1:], 1)]
        body.append(f'<tr class="{kind}">{"".join(tags)}</tr>')
    top = f'<tr class="over">{groups}</tr>' if over else ""
    return f'<div class="card scroll"><table id="{anchor}"><thead>{top}<tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _num(column: int) -> str:
    return ' class="num"' if column else ""


def bar(value: float | None, full: float) -> str:
    """A bar of `value` on a scale from 0 to `full`, where it ends; below 0 it is as long, in another colour. None has no bar."""
    if value is None:
        return ""
    below = ' class="below"' if value < 0 else ""
    return f'<span class="track"><i{below} style="width:{100 * min(abs(value) / full, 1.0):.1f}%"></i></span>'


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
