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
Box = tuple[float, float, float, float]  # left, top, right, bottom
OUTLINE = 0.035  # width of outlines in subject units
GROUND = 0.95  # y that subjects stand on
STRETCH = 0.12  # share by which identity.width and identity.height change a subject


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Where a subject wears things, in its own coordinates."""

    head: Box  # for hats
    eyes: tuple[Point, Point]  # for glasses: centres of left and right eye
    neck: tuple[float, float, float]  # for scarves: x, y, half width
    torso: Box  # for shirts


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` of `b`."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


def lighter(colour: Colour, share: float = 0.35) -> Colour:
    """The colour with a share of white."""
    return mix(colour, (1.0, 1.0, 1.0), share)


def darker(colour: Colour, share: float = 0.35) -> Colour:
    """The colour with a share of near black."""
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
    """An ellipse around (x, y), a circle without `ry`."""
    ry = rx if ry is None else ry
    path = skia.Path()
    path.addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry))
    return path


def rounded(left: float, top: float, right: float, bottom: float, radius: float = 0.1) -> skia.Path:
    """A box with rounded corners."""
    path = skia.Path()
    path.addRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), radius, radius)
    return path


def polygon(points: Sequence[Point]) -> skia.Path:
    """A closed polygon."""
    path = skia.Path()
    path.addPoly([skia.Point(*point) for point in points], True)
    return path


def boxes(places: Sequence[Box]) -> skia.Path:
    """Boxes (left, top, right, bottom) as one path."""
    path = skia.Path()
    for place in places:
        path.addRect(skia.Rect.MakeLTRB(*place))
    return path


def circles(places: Sequence[tuple[float, float, float]]) -> skia.Path:
    """One path of many circles (x, y, radius)."""
    path = skia.Path()
    for place in places:
        path.addCircle(*place)
    return path


def star(x: float, y: float, radius: float, points: int, inner: float) -> skia.Path:
    """A star with one point upwards; inner: the radius of its inner corners, as a share of the outer one."""
    radii = [radius, radius * inner] * points
    return polygon([(x + r * math.sin(i * math.pi / points), y - r * math.cos(i * math.pi / points)) for i, r in enumerate(radii)])


def smooth(points: Sequence[Point]) -> skia.Path:
    """A closed smooth curve through the middles of the sides of a polygon, bent towards its corners."""
    path, count = skia.Path(), len(points)
    middles = [((points[i][0] + points[(i + 1) % count][0]) / 2, (points[i][1] + points[(i + 1) % count][1]) / 2) for i in range(count)]
    path.moveTo(*middles[-1])
    for point, middle in zip(points, middles, strict=True):
        path.quadTo(*point, *middle)
    path.close()
    return path


def _lit(path: skia.Path, stops: Sequence[tuple[float, float, float, float]], middle: float) -> skia.Paint:
    """A gradient over a path in the direction of the light, which falls from above left, of three colours (red, green, blue, alpha)."""
    box, made = path.getBounds(), skia.Paint(AntiAlias=True)
    ends = [skia.Point(box.left(), box.top()), skia.Point(box.left() + 0.35 * box.width(), box.bottom())]
    colours = [skia.Color4f(*stop).toColor() for stop in stops]
    made.setShader(skia.GradientShader.MakeLinear(ends, colours, [0.0, middle, 1.0]))
    return made


def fill(canvas: skia.Canvas, path: skia.Path, colour: Colour, *, outline: bool = True) -> None:
    """Fills a path with a soft gradient of the colour, light from above left, and a darker outline."""
    canvas.drawPath(path, _lit(path, [(*shade, 1.0) for shade in (lighter(colour, 0.22), colour, darker(colour, 0.25))], 0.45))
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
    """A round-ended line from start to end, bent towards `control`."""
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
    # Light over both, so that the pattern is shaded too.
    canvas.drawPath(path, _lit(path, [(1, 1, 1, 0.16), (1, 1, 1, 0.0), (0, 0, 0.05, 0.22)], 0.4))
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
        fill(canvas, star(x, y, size / 2, 5, 0.45), colour)
