"""What a dog or a cat wears, and properties of any subject's surface; all drawn over it, in its own coordinates."""

import functools
from collections.abc import Callable, Sequence
from types import MappingProxyType

import skia

from proxy_jax.data.microworld.drawing import Anchors, Point, darker, ellipse, fill, line, mix, paint, patterned, polygon, rounded, star
from proxy_jax.data.microworld.looks import PALETTE, Colour, Identity

HAT_TOP = -1.25  # how far a hat may rise above the subject's own box
WHITE: Colour = (0.98, 0.98, 0.98)
GOLD: Colour = (0.98, 0.8, 0.2)
NAVY: Colour = (0.13, 0.19, 0.43)
RED: Colour = (0.84, 0.14, 0.14)
BLACK: Colour = (0.13, 0.12, 0.16)
PURPLE: Colour = (0.44, 0.2, 0.72)


def _on_head(canvas: skia.Canvas, anchors: Anchors, draw: Callable[[skia.Canvas], None], tall: float) -> None:
    """Draws a hat in its own coordinates: the head is from x = -1 to 1, the brim lies on y = 0, the hat's top is at y = -tall."""
    left, top, right, bottom = anchors.head
    brow = top + 0.22 * (bottom - top)
    half = (right - left) / 2
    canvas.save()
    canvas.translate((left + right) / 2, brow)
    canvas.scale(half, min(1.3 * half, (brow - HAT_TOP) / tall))
    draw(canvas)
    canvas.restore()


def _on_torso(canvas: skia.Canvas, anchors: Anchors, draw: Callable[[skia.Canvas], None]) -> None:
    """Draws clothes in their own coordinates: the torso is from x = -1 to 1 and from y = 0 (the neck) to 1."""
    left, top, right, bottom = anchors.torso
    canvas.save()
    canvas.translate((left + right) / 2, top)
    canvas.scale((right - left) / 2, bottom - top)
    draw(canvas)
    canvas.restore()


def _stars(canvas: skia.Canvas, places: Sequence[tuple[float, float, float]], colour: Colour, points: int = 5, inner: float = 0.42) -> None:
    """Stars at (x, y, radius)."""
    unit = star(0, 0, 1, points, inner)
    for x, y, radius in places:
        canvas.save()
        canvas.translate(x, y)
        canvas.scale(radius, radius)
        canvas.drawPath(unit, paint(colour))
        canvas.restore()


def _dome(half: float, height: float) -> skia.Path:
    path = skia.Path()
    path.moveTo(-half, 0)
    path.cubicTo(-half, -1.3 * height, half, -1.3 * height, half, 0)
    path.close()
    return path


@functools.cache
def _coat() -> skia.Path:
    """A coat or shirt with short sleeves on the torso."""
    path = skia.Path()
    path.moveTo(-0.5, -0.04)
    path.quadTo(0, 0.1, 0.5, -0.04)
    path.quadTo(0.95, 0.02, 1.16, 0.5)
    path.lineTo(0.94, 0.6)
    path.quadTo(0.98, 0.85, 0.94, 1.0)
    path.quadTo(0, 1.1, -0.94, 1.0)
    path.quadTo(-0.98, 0.85, -0.94, 0.6)
    path.lineTo(-1.16, 0.5)
    path.quadTo(-0.95, 0.02, -0.5, -0.04)
    path.close()
    return path


# --- hats ---


def _red_cap(canvas: skia.Canvas) -> None:
    fill(canvas, _dome(0.86, 0.95), RED)
    fill(canvas, rounded(-1.1, -0.16, 1.1, 0.12, 0.14), darker(RED, 0.15))
    canvas.drawPath(rounded(-0.84, -0.34, 0.84, -0.14, 0.02), paint(BLACK))


def _santa(canvas: skia.Canvas) -> None:
    cone = skia.Path()
    cone.moveTo(-0.9, 0)
    cone.cubicTo(-0.7, -0.7, -0.3, -1.15, 0.2, -1.05)
    cone.cubicTo(0.7, -1.0, 1.0, -0.7, 1.12, -0.3)
    cone.cubicTo(0.95, -0.45, 0.8, -0.5, 0.75, -0.45)
    cone.lineTo(0.9, 0)
    cone.close()
    fill(canvas, cone, RED)
    fill(canvas, ellipse(1.1, -0.22, 0.26), WHITE)
    fill(canvas, rounded(-1.08, -0.2, 1.02, 0.16, 0.18), WHITE)


def _top_hat(canvas: skia.Canvas) -> None:
    fill(canvas, polygon([(-0.66, 0), (-0.74, -1.05), (0.74, -1.05), (0.66, 0)]), BLACK)
    canvas.drawPath(polygon([(-0.67, -0.1), (-0.69, -0.36), (0.69, -0.36), (0.67, -0.1)]), paint((0.72, 0.12, 0.2)))
    fill(canvas, rounded(-1.14, -0.12, 1.14, 0.1, 0.11), BLACK)


def _toque(canvas: skia.Canvas) -> None:
    puff = skia.Path()
    for x, y, radius in ((-0.6, -0.68, 0.4), (0.6, -0.68, 0.4), (0, -0.76, 0.46)):
        fill(canvas, ellipse(x, y, radius), WHITE)
        puff.addPath(ellipse(x, y, radius - 0.05))
    canvas.drawPath(puff, paint(WHITE))
    fill(canvas, polygon([(-0.78, 0.08), (-0.72, -0.55), (0.72, -0.55), (0.78, 0.08)]), WHITE)
    for x in (-0.38, 0, 0.38):
        line(canvas, [(x, -0.35), (x, -0.1)], (0.74, 0.76, 0.82), 0.06)


def _helmet(canvas: skia.Canvas) -> None:
    fill(canvas, _dome(0.9, 0.95), RED)
    canvas.drawPath(rounded(-0.08, -0.98, 0.08, -0.2, 0.08), paint(darker(RED, 0.3)))
    fill(canvas, rounded(-1.2, -0.16, 1.2, 0.12, 0.14), RED)
    fill(canvas, polygon([(-0.32, -0.72), (0, -0.84), (0.32, -0.72), (0.26, -0.2), (0, -0.04), (-0.26, -0.2)]), GOLD)


def _police_cap(canvas: skia.Canvas) -> None:
    fill(canvas, polygon([(-0.8, -0.2), (-1.12, -0.62), (-0.5, -0.92), (0.5, -0.92), (1.12, -0.62), (0.8, -0.2)]), NAVY)
    canvas.drawPath(rounded(-0.82, -0.34, 0.82, -0.06, 0.04), paint(darker(NAVY, 0.5)))
    line(canvas, [(-0.78, -0.12), (0.78, -0.12)], GOLD, 0.07)
    fill(canvas, ellipse(0, 0, 0.84, 0.15), BLACK)
    _stars(canvas, [(0, -0.5, 0.32)], GOLD)


def _wizard_hat(canvas: skia.Canvas) -> None:
    fill(canvas, polygon([(-0.78, 0), (0.12, -1.4), (0.78, 0)]), PURPLE)
    fill(canvas, ellipse(0, 0.02, 1.2, 0.17), darker(PURPLE, 0.1))
    _stars(canvas, [(-0.28, -0.3, 0.24), (0.3, -0.34, 0.2), (0.06, -0.8, 0.2)], GOLD)


# --- clothes ---


def _buttoned(canvas: skia.Canvas, colour: Colour, buttons: Colour, columns: Sequence[float]) -> None:
    """A coat with columns of buttons and an open collar."""
    fill(canvas, _coat(), colour)
    for x in columns:
        for y in (0.36, 0.6, 0.84):
            canvas.drawPath(ellipse(x, y, 0.08, 0.05), paint(buttons))


def _chef_jacket(canvas: skia.Canvas) -> None:
    _buttoned(canvas, WHITE, (0.2, 0.2, 0.26), (-0.22, 0.22))
    fill(canvas, polygon([(-0.5, -0.06), (0.5, -0.06), (0.0, 0.24)]), RED, outline=False)


def _fire_coat(canvas: skia.Canvas) -> None:
    fill(canvas, _coat(), (0.25, 0.22, 0.22))
    yellow = (0.96, 0.92, 0.2)
    canvas.save()
    canvas.clipPath(_coat(), doAntiAlias=True)
    for side in (-1, 1):
        line(canvas, [(side * 0.5, -0.1), (side * 0.5, 1.1)], yellow, 0.2)
    line(canvas, [(-1.3, 0.64), (1.3, 0.64)], yellow, 0.24)
    line(canvas, [(-1.3, 0.64), (1.3, 0.64)], (0.9, 0.92, 0.95), 0.08)
    canvas.restore()


def _police_shirt(canvas: skia.Canvas) -> None:
    _buttoned(canvas, NAVY, GOLD, (0.0,))
    fill(canvas, polygon([(-0.5, -0.06), (-0.04, 0.04), (-0.3, 0.24)]), mix(NAVY, WHITE, 0.3), outline=False)
    fill(canvas, polygon([(0.5, -0.06), (0.04, 0.04), (0.3, 0.24)]), mix(NAVY, WHITE, 0.3), outline=False)
    _stars(canvas, [(0.5, 0.48, 0.26)], GOLD)


def _yellow_shirt(canvas: skia.Canvas) -> None:
    yellow = (1.0, 0.84, 0.12)
    fill(canvas, _coat(), yellow)
    canvas.drawPath(polygon([(-0.5, -0.06), (0.5, -0.06), (0.28, 0.12), (-0.28, 0.12)]), paint(darker(yellow, 0.25)))
    for side in (-1, 1):
        line(canvas, [(side * 0.82, 0.34), (side * 0.92, 0.66)], darker(yellow, 0.35), 0.05)


def _robe(canvas: skia.Canvas) -> None:
    fill(canvas, polygon([(-0.5, -0.04), (0.5, -0.04), (0.95, 0.2), (1.2, 1.06), (-1.2, 1.06), (-0.95, 0.2)]), PURPLE)
    line(canvas, [(-1.1, 1.0), (1.1, 1.0)], GOLD, 0.1)
    _stars(canvas, [(-0.56, 0.52, 0.27), (0.56, 0.52, 0.27), (0.0, 0.62, 0.2)], GOLD)


# --- whole outfits ---


def red_hat(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A red hat with a black band."""
    _on_head(canvas, anchors, _red_cap, 0.95)


def santa_hat(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A Santa Claus hat."""
    _on_head(canvas, anchors, _santa, 1.05)


RAINBOW: tuple[Colour, ...] = tuple(PALETTE[name] for name in ("red", "orange", "yellow", "green", "blue", "purple"))


def rainbow_scarf(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A scarf of rainbow stripes round the neck, one end hanging down."""
    x, y, half = anchors.neck
    round_neck = rounded(x - 1.25 * half, y - 0.14, x + 1.25 * half, y + 0.18, 0.16)
    end = polygon([(x + 0.2 * half, y + 0.1), (x + 0.95 * half, y + 0.06), (x + 1.15 * half, y + 0.66), (x + 0.4 * half, y + 0.7)])
    _striped(canvas, end, (y + 0.06, y + 0.7), upright=False)
    _striped(canvas, round_neck, (x - 1.25 * half, x + 1.25 * half), upright=True)


def _striped(canvas: skia.Canvas, path: skia.Path, span: tuple[float, float], *, upright: bool) -> None:
    canvas.save()
    canvas.clipPath(path, doAntiAlias=True)
    width = (span[1] - span[0]) / len(RAINBOW)
    for i, colour in enumerate(RAINBOW):
        start, end = span[0] + i * width, span[0] + (i + 1) * width
        box = skia.Rect.MakeLTRB(start, -2, end, 2) if upright else skia.Rect.MakeLTRB(-2, start, 2, end)
        canvas.drawRect(box, paint(colour))
    canvas.restore()
    canvas.drawPath(path, paint((0.25, 0.15, 0.3), stroke=0.035))


def top_hat(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A black top hat and a golden monocle on a chain."""
    _on_head(canvas, anchors, _top_hat, 1.05)
    (left, _), (x, y) = anchors.eyes
    radius = max(0.17, 0.36 * (x - left))
    line(canvas, [(x + radius * 0.8, y + radius * 0.6), (x + radius * 1.2, y + radius * 2.6)], GOLD, 0.05)
    canvas.drawPath(ellipse(x, y, radius), paint((0.85, 0.95, 1.0), 0.35))
    canvas.drawPath(ellipse(x, y, radius), paint(darker(GOLD, 0.5), stroke=0.1))
    canvas.drawPath(ellipse(x, y, radius), paint(GOLD, stroke=0.065))


def chef(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A white chef's hat and jacket."""
    _on_torso(canvas, anchors, _chef_jacket)
    _on_head(canvas, anchors, _toque, 1.22)


def firefighter(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A red helmet with a yellow badge and a dark coat with reflective bands."""
    _on_torso(canvas, anchors, _fire_coat)
    _on_head(canvas, anchors, _helmet, 0.97)


def police(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A navy cap and shirt with golden badges."""
    _on_torso(canvas, anchors, _police_shirt)
    _on_head(canvas, anchors, _police_cap, 0.92)


def pink_glasses(canvas: skia.Canvas, anchors: Anchors) -> None:
    """Big pink glasses with clear lenses."""
    pink: Colour = (1.0, 0.2, 0.58)
    (left, left_y), (right, right_y) = anchors.eyes
    radius = 0.43 * (right - left)
    edge = radius * 1.9
    line(canvas, [(left - edge, left_y - 0.06), (left - radius, left_y)], pink, 0.09)
    line(canvas, [(right + edge, right_y - 0.06), (right + radius, right_y)], pink, 0.09)
    line(canvas, [(left + radius, left_y), (right - radius, right_y)], pink, 0.09)
    for x, y in anchors.eyes:
        canvas.drawPath(ellipse(x, y, radius), paint((1.0, 0.75, 0.9), 0.35))
        canvas.drawPath(ellipse(x, y, radius), paint(darker(pink, 0.4), stroke=0.13))
        canvas.drawPath(ellipse(x, y, radius), paint(pink, stroke=0.095))


def yellow_shirt(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A yellow shirt."""
    _on_torso(canvas, anchors, _yellow_shirt)


def wizard(canvas: skia.Canvas, anchors: Anchors) -> None:
    """A purple pointed hat and robe with yellow stars."""
    _on_torso(canvas, anchors, _robe)
    _on_head(canvas, anchors, _wizard_hat, 1.4)


OUTFITS: MappingProxyType[str, Callable[[skia.Canvas, Anchors], None]] = MappingProxyType(
    {
        "red_hat": red_hat,
        "santa_hat": santa_hat,
        "rainbow_scarf": rainbow_scarf,
        "top_hat": top_hat,
        "chef": chef,
        "firefighter": firefighter,
        "police": police,
        "pink_glasses": pink_glasses,
        "yellow_shirt": yellow_shirt,
        "wizard": wizard,
    }
)


# --- surfaces ---


@functools.cache
def _glints() -> skia.Path:
    """Diagonal streaks in the middle of the subject."""
    path = skia.Path()
    for x, width in ((-0.5, 0.26), (-0.14, 0.1), (0.42, 0.16)):
        path.addPoly([skia.Point(*point) for point in ((x + 0.6, -1), (x + width + 0.6, -1), (x + width - 0.6, 1), (x - 0.6, 1))], True)
    return skia.Op(path, ellipse(0, 0.14, 0.62, 0.72), skia.PathOp.kIntersect_PathOp)


def shiny(canvas: skia.Canvas) -> None:
    """White diagonal glints and sparkles."""
    canvas.drawPath(_glints(), paint(WHITE, 0.6))
    places = [(0.52, -0.5, 0.36), (-0.6, 0.12, 0.28), (0.3, 0.5, 0.24), (-0.55, -0.72, 0.2)]
    _stars(canvas, [(x, y, 1.25 * radius) for x, y, radius in places], (0.55, 0.7, 0.95), 4, 0.3)
    _stars(canvas, places, (1.0, 1.0, 1.0), 4, 0.26)


@functools.cache
def _drops() -> skia.Path:
    """Drops, some running down."""
    path = skia.Path()
    for x, y, size in (
        (-0.56, -0.36, 0.12),
        (0.56, -0.44, 0.12),
        (0.02, -0.36, 0.11),
        (-0.6, 0.34, 0.13),
        (0.62, 0.26, 0.13),
        (-0.2, 0.66, 0.12),
        (0.26, 0.58, 0.13),
    ):
        path.moveTo(x, y - 2.4 * size)
        path.cubicTo(x + 0.3 * size, y - 1.2 * size, x + size, y - 0.7 * size, x + size, y)
        path.arcTo(skia.Rect.MakeLTRB(x - size, y - size, x + size, y + size), 0, 180, False)
        path.cubicTo(x - size, y - 0.7 * size, x - 0.3 * size, y - 1.2 * size, x, y - 2.4 * size)
        path.close()
    return path


def wet(canvas: skia.Canvas) -> None:
    """Drops on it and running down, and a puddle at its feet."""
    canvas.drawPath(ellipse(0, 0.9, 0.95, 0.13), paint((0.3, 0.62, 0.92), 0.75))
    canvas.drawPath(ellipse(-0.1, 0.88, 0.6, 0.05), paint((0.85, 0.96, 1.0), 0.8))
    canvas.drawPath(_drops(), paint((0.12, 0.4, 0.78), stroke=0.06))
    canvas.drawPath(_drops(), paint((0.62, 0.86, 1.0)))


SURFACES: MappingProxyType[str, Callable[[skia.Canvas], None]] = MappingProxyType({"shiny": shiny, "wet": wet})


# --- the cube ---

CUBE_FRONT = (-0.85, -0.55, 0.65, 0.95)  # box of its front face, centred at (-0.1, 0.2)
_DEPTH: Point = (0.32, -0.4)


def cube(canvas: skia.Canvas, identity: Identity) -> None:
    """A cube in the subject's colours and pattern, seen a little from above and the right; a pale disc on its front is for the subject itself."""
    left, top, right, bottom = CUBE_FRONT
    dx, dy = _DEPTH
    body, edge = PALETTE[identity.primary], PALETTE[identity.secondary]
    patterned(canvas, polygon([(left, top), (right, top), (right, bottom), (left, bottom)]), identity)
    fill(canvas, polygon([(left, top), (left + dx, top + dy), (right + dx, top + dy), (right, top)]), mix(body, WHITE, 0.4))
    fill(canvas, polygon([(right, top), (right + dx, top + dy), (right + dx, bottom + dy), (right, bottom)]), darker(body, 0.35))
    line(canvas, [(left, top), (right, top), (right, bottom)], edge, 0.09)
    line(canvas, [(right, top), (right + dx, top + dy)], edge, 0.09)
    canvas.drawPath(ellipse((left + right) / 2, (top + bottom) / 2, 0.66), paint(mix(body, WHITE, 0.9), 0.85))
