"""Drawing with skia: filled, shaded and patterned shapes, and what a drawn subject tells the things it wears.

Coordinates: x to the right, y down. A subject is drawn around the origin, within [-1, 1] both ways, standing on y = 0.95.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import skia

from proxy_jax.data.microworld.looks import PALETTE, Colour, Identity

Point = tuple[float, float]
OUTLINE = 0.035  # width of outlines in subject units


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Where things are put on a subject, in its own coordinates. Boxes are (left, top, right, bottom)."""

    head: tuple[float, float, float, float]  # for hats: the head's box
    eyes: tuple[Point, Point]  # for glasses: centres of left and right eye
    neck: tuple[float, float, float]  # for scarves: x, y, half width
    torso: tuple[float, float, float, float]  # for shirts


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` of `b`."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


def lighter(colour: Colour, share: float = 0.35) -> Colour:
    return mix(colour, (1.0, 1.0, 1.0), share)


def darker(colour: Colour, share: float = 0.35) -> Colour:
    return mix(colour, (0.0, 0.0, 0.05), share)


def paint(colour: Colour, alpha: float = 1.0, stroke: float | None = None) -> skia.Paint:
    """An anti-aliased paint; stroke: a line's width, None: filled."""
    made = skia.Paint(AntiAlias=True, Color=skia.Color4f(*colour, alpha).toColor())
    if stroke is not None:
        made.setStyle(skia.Paint.kStroke_Style)
        made.setStrokeWidth(stroke)
        made.setStrokeCap(skia.Paint.kRound_Cap)
        made.setStrokeJoin(skia.Paint.kRound_Join)
    return made


def ellipse(x: float, y: float, rx: float, ry: float | None = None) -> skia.Path:
    ry = rx if ry is None else ry
    path = skia.Path()
    path.addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry))
    return path


def rounded(left: float, top: float, right: float, bottom: float, radius: float = 0.1) -> skia.Path:
    path = skia.Path()
    path.addRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), radius, radius)
    return path


def polygon(points: Sequence[Point]) -> skia.Path:
    path = skia.Path()
    path.addPoly([skia.Point(*point) for point in points], True)
    return path


def smooth(points: Sequence[Point]) -> skia.Path:
    """A closed smooth curve through the middles of the sides of a polygon, bent towards its corners."""
    path, count = skia.Path(), len(points)
    middles = [((points[i][0] + points[(i + 1) % count][0]) / 2, (points[i][1] + points[(i + 1) % count][1]) / 2) for i in range(count)]
    path.moveTo(*middles[-1])
    for point, middle in zip(points, middles, strict=True):
        path.quadTo(*point, *middle)
    path.close()
    return path


def fill(canvas: skia.Canvas, path: skia.Path, colour: Colour, *, outline: bool = True) -> None:
    """Fills a path with a soft gradient of the colour, light from above left, and a darker outline."""
    box = path.getBounds()
    shaded = paint(colour)
    stops = [skia.Color4f(*c, 1.0).toColor() for c in (lighter(colour, 0.22), colour, darker(colour, 0.25))]
    corners = [skia.Point(box.left(), box.top()), skia.Point(box.left() + 0.35 * box.width(), box.bottom())]
    shaded.setShader(skia.GradientShader.MakeLinear(corners, stops, [0.0, 0.45, 1.0]))
    canvas.drawPath(path, shaded)
    if outline:
        canvas.drawPath(path, paint(darker(colour, 0.55), stroke=OUTLINE))


def line(canvas: skia.Canvas, points: Sequence[Point], colour: Colour, width: float) -> None:
    """A round-ended line through points."""
    path = skia.Path()
    path.moveTo(*points[0])
    for point in points[1:]:
        path.lineTo(*point)
    canvas.drawPath(path, paint(colour, stroke=width))


def curve(canvas: skia.Canvas, start: Point, control: Point, end: Point, colour: Colour, width: float) -> None:
    path = skia.Path()
    path.moveTo(*start)
    path.quadTo(*control, *end)
    canvas.drawPath(path, paint(colour, stroke=width))


def patterned(canvas: skia.Canvas, path: skia.Path, identity: Identity) -> None:
    """Fills a path of the body with the identity's primary colour and, clipped to it, its pattern in the secondary colour.

    The pattern is scaled to the path: four or five stripes across it, three or four spots, ... coarse enough for 48 pixels.
    """
    primary, secondary = PALETTE[identity.primary], PALETTE[identity.secondary]
    fill(canvas, path, primary, outline=False)
    if identity.pattern != "plain":
        canvas.save()
        canvas.clipPath(path, doAntiAlias=True)
        box = path.getBounds()
        canvas.translate(box.left(), box.top())
        canvas.scale(box.width(), box.height())
        canvas.drawPath(_pattern(identity.pattern), paint(secondary))
        canvas.restore()
    # the same light on the pattern as on the body
    box = path.getBounds()
    shade = skia.Paint(AntiAlias=True)
    stops = [skia.Color4f(1, 1, 1, 0.16).toColor(), skia.Color4f(1, 1, 1, 0.0).toColor(), skia.Color4f(0, 0, 0.05, 0.22).toColor()]
    corners = [skia.Point(box.left(), box.top()), skia.Point(box.left() + 0.35 * box.width(), box.bottom())]
    shade.setShader(skia.GradientShader.MakeLinear(corners, stops, [0.0, 0.4, 1.0]))
    canvas.drawPath(path, shade)
    canvas.drawPath(path, paint(darker(primary, 0.55), stroke=OUTLINE))


@functools.cache
def _pattern(name: str) -> skia.Path:
    """A pattern in the unit square."""
    path = skia.Path()
    if name == "stripes":
        for left in (0.1, 0.42, 0.74):
            path.addPoly([skia.Point(*p) for p in ((left, 0), (left + 0.17, 0), (left + 0.17, 1), (left, 1))], True)
    elif name == "spots":
        for x, y in ((0.22, 0.25), (0.7, 0.2), (0.46, 0.55), (0.16, 0.78), (0.8, 0.72)):
            path.addCircle(x, y, 0.12)
    elif name == "patches":
        path.addOval(skia.Rect.MakeLTRB(-0.15, -0.2, 0.48, 0.5))
        path.addOval(skia.Rect.MakeLTRB(0.55, 0.5, 1.2, 1.15))
    elif name == "checks":
        for row in range(4):
            for column in range(row % 2, 4, 2):
                path.addRect(skia.Rect.MakeXYWH(column / 4, row / 4, 0.25, 0.25))
    elif name == "band":
        path.addRect(skia.Rect.MakeLTRB(0, 0.4, 1, 0.7))
    return path


def accessory(canvas: skia.Canvas, identity: Identity, x: float, y: float, size: float) -> None:
    """The identity's accessory in its accent colour, centred at (x, y), about `size` wide; nothing for "none"."""
    colour = PALETTE[identity.accent]
    if identity.accessory == "bow":
        wing, half = size / 2, size * 0.36
        for side in (-1, 1):
            fill(canvas, polygon([(x, y), (x + side * wing, y - half), (x + side * wing, y + half)]), colour)
        fill(canvas, ellipse(x, y, size * 0.14), darker(colour, 0.2))
    elif identity.accessory == "star":
        radius = size / 2
        points = [
            (
                x + math.sin(i * math.pi / 5) * radius * (1 if i % 2 == 0 else 0.45),
                y - math.cos(i * math.pi / 5) * radius * (1 if i % 2 == 0 else 0.45),
            )
            for i in range(10)
        ]
        fill(canvas, polygon(points), colour)


def eye(canvas: skia.Canvas, x: float, y: float, radius: float) -> None:
    """A round eye with a white rim, a dark pupil and a highlight."""
    canvas.drawPath(ellipse(x, y, radius), paint((0.98, 0.98, 0.98)))
    canvas.drawPath(ellipse(x, y, radius * 0.72), paint((0.1, 0.09, 0.12)))
    canvas.drawPath(ellipse(x - radius * 0.25, y - radius * 0.28, radius * 0.24), paint((1.0, 1.0, 1.0)))
