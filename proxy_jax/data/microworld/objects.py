"""The things of the micro-world: one drawing function per class, all with their front or their toes to the right."""

import functools
import math
from collections.abc import Callable, Sequence

import skia

from proxy_jax.data.microworld.drawing import (
    GROUND,
    OUTLINE,
    STRETCH,
    Point,
    accessory,
    circles,
    curve,
    darker,
    ellipse,
    fill,
    lighter,
    line,
    mix,
    paint,
    patterned,
    polygon,
    rounded,
)
from proxy_jax.data.microworld.looks import PALETTE, Colour, Identity

Drawing = Callable[[skia.Canvas, Identity], None]

SIZE = 0.97  # of a thing of usual proportions, against the numbers below
CREAM: Colour = (0.99, 0.98, 0.95)
INK: Colour = (0.16, 0.15, 0.2)
STEEL: Colour = (0.76, 0.79, 0.83)
GOLD: Colour = (0.98, 0.8, 0.3)
FLAME: Colour = (1.0, 0.6, 0.12)
LEAF: Colour = (0.27, 0.58, 0.29)
GLINT: Colour = (1.0, 1.0, 1.0)


def _proportioned(draw: Drawing) -> Drawing:
    """Stretches a drawing by the identity's proportions, its foot staying on the ground."""

    @functools.wraps(draw)
    def drawn(canvas: skia.Canvas, identity: Identity) -> None:
        canvas.save()
        canvas.translate(0, GROUND)
        canvas.scale(SIZE * (1 + STRETCH * identity.width), SIZE * (1 + STRETCH * identity.height))
        canvas.translate(0, -GROUND)
        draw(canvas, identity)
        canvas.restore()

    return drawn


@functools.cache
def _outline(*points: Point, closed: bool = True) -> skia.Path:
    """A path of cubic curves: a start, then two controls and an end for each curve."""
    path = skia.Path()
    path.moveTo(*points[0])
    for i in range(1, len(points), 3):
        path.cubicTo(*points[i], *points[i + 1], *points[i + 2])
    if closed:
        path.close()
    return path


@functools.cache
def _turned(*points: Point) -> skia.Path:
    """The closed outline of a turned thing, such as a vase, from the cubic curves of its right half."""
    path = skia.Path(_outline(*points, closed=False))
    back = [(-x, y) for x, y in reversed(points)]
    path.lineTo(*back[0])
    for i in range(1, len(back), 3):
        path.cubicTo(*back[i], *back[i + 1], *back[i + 2])
    path.close()
    return path


def _tube(canvas: skia.Canvas, path: skia.Path, colour: Colour, width: float) -> None:
    """Draws an open path as an outlined tube."""
    canvas.drawPath(path, paint(darker(colour, 0.55), stroke=width + OUTLINE))
    canvas.drawPath(path, paint(colour, stroke=width - OUTLINE))


def _glint(canvas: skia.Canvas, start: Point, control: Point, end: Point, width: float = 0.07) -> None:
    """A soft highlight along a curve."""
    path = skia.Path()
    path.moveTo(*start)
    path.quadTo(*control, *end)
    canvas.drawPath(path, paint(GLINT, 0.5, stroke=width))


def _cloud(canvas: skia.Canvas, centres: Sequence[Point], radius: float, colour: Colour) -> None:
    """Circles grown together, with one outline around them all."""
    canvas.drawPath(circles([(x, y, radius + OUTLINE) for x, y in centres]), paint(darker(colour, 0.55)))
    canvas.drawPath(circles([(x, y, radius) for x, y in centres]), paint(colour))


def _flower(canvas: skia.Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    """A daisy of five petals."""
    angles = [2 * math.pi * i / 5 for i in range(5)]
    _cloud(canvas, [(x + math.sin(angle) * size * 0.55, y - math.cos(angle) * size * 0.55) for angle in angles], size * 0.48, colour)
    heart = GOLD if colour != PALETTE["yellow"] else FLAME
    canvas.drawPath(ellipse(x, y, size * 0.44), paint(darker(heart, 0.45)))
    canvas.drawPath(ellipse(x, y, size * 0.36), paint(heart))


def _tulip(canvas: skia.Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    left, right, top = x - size * 0.8, x + size * 0.8, y - size
    cup = skia.Path()
    cup.moveTo(left, top)
    for corner in ((x - size * 0.4, y - size * 0.4), (x, top - size * 0.15), (x + size * 0.4, y - size * 0.4), (right, top)):
        cup.lineTo(*corner)
    cup.cubicTo(right + size * 0.2, y + size, left - size * 0.2, y + size, left, top)
    cup.close()
    fill(canvas, cup, colour)


def _flame(canvas: skia.Canvas, x: float, bottom: float, size: float) -> None:
    """A flame `size` high on a wick."""
    canvas.drawPath(ellipse(x, bottom - size * 0.42, size * 0.55, size * 0.6), paint((1.0, 0.85, 0.4), 0.35))
    line(canvas, [(x, bottom + 0.1), (x, bottom - size * 0.2)], INK, 0.06)
    for share, colour in ((1.0, FLAME), (0.55, (1.0, 0.92, 0.5))):
        half, top = size * 0.36 * share, bottom - size * share
        drop = ((x, top), (x + half * 0.5, top + size * share * 0.35), (x + half * 2.0, bottom), (x, bottom))
        path = _outline(*drop, (x - half * 2.0, bottom), (x - half * 0.5, top + size * share * 0.35), (x, top))
        fill(canvas, path, colour, outline=share == 1.0)


@_proportioned
def backpack(canvas: skia.Canvas, identity: Identity) -> None:
    """A school bag seen from the front. Variants: zip pocket with side pockets; flap with buckles; bedroll on top."""
    primary, secondary = PALETTE[identity.primary], PALETTE[identity.secondary]
    _tube(canvas, _outline((-0.24, -0.5), (-0.26, -0.84), (0.26, -0.84), (0.24, -0.5), closed=False), secondary, 0.13)
    for side in (-1, 1):  # the straps, behind
        _tube(canvas, _outline((side * 0.5, -0.35), (side * 0.98, -0.2), (side * 0.82, 0.6), (side * 0.55, 0.8), closed=False), secondary, 0.15)
    if identity.variant == 0:
        for left in (-0.86, 0.54):
            fill(canvas, rounded(left, 0.35, left + 0.32, 0.9, 0.12), darker(secondary, 0.15))
    body = _turned((0, -0.62), (0.5, -0.62), (0.66, -0.4), (0.68, 0.1), (0.74, 0.8), (0.72, 0.95), (0.5, 0.95))
    patterned(canvas, body, identity)
    if identity.variant == 1:
        flap = _turned((0, -0.62), (0.5, -0.62), (0.68, -0.4), (0.7, -0.1), (0.7, 0.06), (0.4, 0.14), (0, 0.14))
        fill(canvas, flap, secondary)
        for x in (-0.34, 0.34):
            fill(canvas, rounded(x - 0.08, -0.02, x + 0.08, 0.36, 0.05), darker(primary, 0.45))
            fill(canvas, rounded(x - 0.11, 0.14, x + 0.11, 0.32, 0.04), GOLD)
    else:
        fill(canvas, rounded(-0.44, 0.38, 0.44, 0.86, 0.16), secondary)
        line(canvas, [(-0.32, 0.52), (0.32, 0.52)], darker(secondary, 0.5), 0.05)
        fill(canvas, rounded(0.16, 0.5, 0.26, 0.68, 0.04), GOLD)
    if identity.variant == 2:
        fill(canvas, rounded(-0.82, -0.74, 0.82, -0.34, 0.2), secondary)
        for x in (-0.4, 0.4):
            line(canvas, [(x, -0.72), (x, -0.36)], darker(primary, 0.45), 0.1)
    accessory(canvas, identity, 0, -0.18 if identity.variant == 1 else 0.06, 0.5)


BOWLS = (
    ((0.86, -0.12), (0.9, 0.4), (0.62, 0.84), (0.3, 0.84)),  # round, on a foot
    ((0.87, -0.12), (0.68, 0.0), (0.62, 0.84), (0.34, 0.84)),  # flared
    ((0.82, -0.12), (0.86, 0.3), (0.88, 0.82), (0.5, 0.82)),  # deep, on balls
)


@_proportioned
def bowl(canvas: skia.Canvas, identity: Identity) -> None:
    """An empty bowl seen a little from above. Variants: round on a foot; flared on a wide foot; deep on three balls."""
    secondary, side = PALETTE[identity.secondary], BOWLS[identity.variant]
    if identity.variant == 2:
        for x in (-0.48, 0.48, 0):
            fill(canvas, ellipse(x, 0.8 if x else 0.82, 0.13), secondary)
    else:
        foot = 0.36 if identity.variant == 0 else 0.5
        fill(canvas, polygon([(-0.28, 0.74), (0.28, 0.74), (foot, GROUND), (-foot, GROUND)]), secondary)
    patterned(canvas, _turned(*side), identity)
    rim = side[0][0]
    fill(canvas, ellipse(0, -0.12, rim, 0.27), lighter(secondary, 0.15))
    canvas.drawPath(ellipse(0, -0.08, rim - 0.12, 0.19), paint(darker(secondary, 0.38)))
    canvas.drawPath(ellipse(0, -0.02, rim - 0.26, 0.12), paint(darker(secondary, 0.22)))
    accessory(canvas, identity, 0, 0.42, 0.52)


CAN = ((0, -0.24), (0.3, -0.24), (0.58, -0.28), (0.58, -0.34), (0.58, 0.2), (0.58, 0.4), (0.58, 0.72), (0.58, 0.8), (0.3, 0.84), (0, 0.84))


@_proportioned
def can(canvas: skia.Canvas, identity: Identity) -> None:
    """A drink can. Variants: ring-pull up; a straw in it; a round label."""
    secondary = PALETTE[identity.secondary]
    fill(canvas, _turned((0.54, 0.7), (0.54, 0.84), (0.46, 0.95), (0, 0.95)), darker(STEEL, 0.12))
    shoulder = _turned((0, -0.62), (0.3, -0.62), (0.44, -0.6), (0.44, -0.56), (0.46, -0.46), (0.58, -0.42), (0.58, -0.2))
    fill(canvas, shoulder, secondary)
    patterned(canvas, _turned(*CAN), identity)
    fill(canvas, ellipse(0, -0.56, 0.47, 0.15), STEEL)
    canvas.drawPath(ellipse(0, -0.54, 0.36, 0.09), paint(darker(STEEL, 0.35)))
    if identity.variant == 1:
        straw = skia.Path()
        straw.moveTo(0.02, -0.52)
        straw.lineTo(0.16, -0.72)
        straw.lineTo(0.46, -0.72)
        _tube(canvas, straw, secondary, 0.13)
    else:
        canvas.drawPath(ellipse(0.06, -0.64, 0.17, 0.09), paint(darker(STEEL, 0.6), stroke=0.12))
        canvas.drawPath(ellipse(0.06, -0.64, 0.17, 0.09), paint(lighter(STEEL, 0.4), stroke=0.06))
    if identity.variant == 2:
        fill(canvas, ellipse(0, 0.28, 0.34), secondary)
    _glint(canvas, (-0.44, -0.16), (-0.44, 0.2), (-0.44, 0.66), 0.08)
    accessory(canvas, identity, 0, 0.28, 0.5)


def _pillar(canvas: skia.Canvas, identity: Identity, x: float, half: float, top: float, flame: float) -> None:
    """A lit pillar of wax with drips from its pool, standing in a dish."""
    patterned(canvas, rounded(x - half, top, x + half, 0.86), identity)
    wax = lighter(PALETTE[identity.primary], 0.55)
    drips = skia.Path()
    for place, length in ((-0.66, 0.18), (0.1, 0.12), (0.7, 0.22)):
        drips.moveTo(x + place * half, top + 0.06)
        drips.lineTo(x + place * half, top + length)
    canvas.drawPath(drips, paint(wax, stroke=0.16))
    fill(canvas, ellipse(x, top, half + 0.02, 0.12), wax)
    _flame(canvas, x, top - 0.05, flame)


@_proportioned
def candle(canvas: skia.Canvas, identity: Identity) -> None:
    """Thick candles, lit. Variants: a dish with a ring handle; a footed stand; two candles on a tray."""
    secondary = PALETTE[identity.secondary]
    if identity.variant == 0:
        canvas.drawPath(ellipse(0.72, 0.6, 0.13, 0.16), paint(darker(secondary, 0.55), stroke=0.14))
        canvas.drawPath(ellipse(0.72, 0.6, 0.13, 0.16), paint(secondary, stroke=0.08))
        _pillar(canvas, identity, -0.04, 0.54, -0.2, 0.52)
        fill(canvas, _turned((0.86, 0.74), (0.84, 0.9), (0.66, 0.95), (0.4, 0.95)), secondary)
    elif identity.variant == 1:
        fill(canvas, _turned((0.2, 0.7), (0.16, 0.86), (0.62, 0.84), (0.68, 0.95)), secondary)
        _pillar(canvas, identity, 0, 0.54, -0.24, 0.5)
        fill(canvas, _turned((0.8, 0.54), (0.74, 0.8), (0.4, 0.84), (0.1, 0.84)), secondary)
    else:
        _pillar(canvas, identity, -0.38, 0.42, -0.2, 0.52)
        _pillar(canvas, identity, 0.46, 0.36, 0.16, 0.42)
        fill(canvas, rounded(-0.88, 0.78, 0.88, GROUND, 0.08), secondary)
    accessory(canvas, identity, (-0.04, 0, -0.38)[identity.variant], (0.34, 0.22, 0.34)[identity.variant], 0.46)


@functools.cache
def _clock_body(variant: int) -> skia.Path:
    if variant == 1:
        return rounded(-0.76, -0.5, 0.76, 0.84, 0.3)
    return ellipse(0, 0.16, 0.74, 0.7)


def _dial(canvas: skia.Canvas, x: float, y: float, radius: float, secondary: Colour) -> None:
    """A white face with four marks and its hands at ten past ten."""
    fill(canvas, ellipse(x, y, radius), CREAM)
    for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0)):
        line(canvas, [(x + dx * radius * 0.78, y + dy * radius * 0.78), (x + dx * radius * 0.74, y + dy * radius * 0.74)], INK, 0.07)
    line(canvas, [(x - radius * 0.42, y - radius * 0.3), (x, y), (x + radius * 0.34, y - radius * 0.58)], INK, 0.085)
    canvas.drawPath(ellipse(x, y, 0.07), paint(darker(secondary, 0.1)))


@_proportioned
def clock(canvas: skia.Canvas, identity: Identity) -> None:
    """An alarm clock. Variants: two bells; square with a carrying handle; one big bell on a broad base."""
    secondary = PALETTE[identity.secondary]
    if identity.variant == 0:
        for side in (-1, 1):
            _tube(canvas, _outline((side * 0.42, 0.7), (side * 0.46, 0.76), (side * 0.5, 0.8), (side * 0.56, 0.88), closed=False), secondary, 0.15)
            canvas.save()
            canvas.translate(side * 0.46, -0.48)
            canvas.rotate(side * 36)
            fill(canvas, _turned((0, -0.25), (0.28, -0.25), (0.32, -0.05), (0.33, 0.08)), secondary)
            canvas.restore()
        line(canvas, [(0, -0.5), (0, -0.68)], INK, 0.09)
        fill(canvas, ellipse(0, -0.68, 0.09), STEEL)
    elif identity.variant == 1:
        _tube(canvas, _outline((-0.42, -0.45), (-0.42, -0.84), (0.42, -0.84), (0.42, -0.45), closed=False), secondary, 0.17)
        for left in (-0.66, 0.34):
            fill(canvas, rounded(left, 0.74, left + 0.32, GROUND, 0.08), secondary)
    else:
        fill(canvas, _turned((0, -0.76), (0.3, -0.76), (0.48, -0.6), (0.5, -0.34)), secondary)
        fill(canvas, _turned((0.4, 0.6), (0.45, 0.8), (0.7, 0.8), (0.74, GROUND)), secondary)
    patterned(canvas, _clock_body(identity.variant), identity)
    _dial(canvas, 0, 0.16, 0.42, secondary)
    accessory(canvas, identity, 0, 0.72, 0.46)


UPPER = ((-0.82, 0.72), (-0.9, 0.4), (-0.9, 0.1), (-0.82, -0.3), (-0.66, -0.08), (-0.4, -0.08), (-0.2, -0.28))
TONGUE = ((-0.42, 0.1), (-0.4, -0.2), (-0.42, -0.42), (-0.3, -0.5), (-0.12, -0.58), (-0.02, -0.2), (0.06, 0.06))
VAMP = ((-0.02, 0.0), (0.2, 0.14), (0.46, 0.22), (0.78, 0.3), (0.88, 0.48), (0.85, 0.72))
TOE_CAP = ((0.48, 0.72), (0.38, 0.52), (0.4, 0.34), (0.5, 0.23), (0.8, 0.32), (0.88, 0.48), (0.85, 0.72))
INSTEP = ((-0.08, -0.2), (0.08, 0.0), (0.27, 0.12))  # where laces leave the tongue


def _laces(canvas: skia.Canvas, places: tuple[Point, ...], across: Point, colour: Colour, width: float) -> None:
    for x, y in places:
        ends = _outline((x, y), (x, y), (x + across[0], y + across[1]), (x + across[0], y + across[1]), closed=False)
        _tube(canvas, ends, colour, width)


@_proportioned
def sneaker(canvas: skia.Canvas, identity: Identity) -> None:
    """A low sports shoe. Variants: toe cap and flat sole; side wave and wedge sole; two straps and a ridged sole."""
    secondary = PALETTE[identity.secondary]
    fill(canvas, _outline(*TONGUE), secondary)
    patterned(canvas, _outline(*UPPER, *VAMP), identity)
    if identity.variant == 0:
        fill(canvas, _outline(*TOE_CAP), secondary)
        fill(canvas, rounded(-0.87, 0.64, 0.88, GROUND, 0.13), secondary)
        line(canvas, [(-0.78, 0.79), (0.78, 0.79)], CREAM if identity.secondary != "white" else PALETTE[identity.primary], 0.07)
    elif identity.variant == 1:
        wave = ((-0.5, 0.1), (-0.5, 0.56), (-0.1, 0.5), (0.52, 0.28), (0.2, 0.62), (-0.3, 0.86), (-0.58, 0.6), (-0.7, 0.44), (-0.6, 0.2), (-0.5, 0.1))
        fill(canvas, _outline(*wave), secondary)
        sole = ((-0.87, 0.5), (-0.5, 0.62), (0.1, 0.74), (0.87, 0.64), (0.92, 0.8), (0.8, 0.92), (0.66, GROUND), (0.2, GROUND))
        fill(canvas, _outline(*sole, (-0.4, GROUND), (-0.78, GROUND), (-0.9, GROUND), (-0.92, 0.7), (-0.87, 0.5)), CREAM)
        fill(canvas, _outline((-0.87, 0.74), (-0.4, 0.86), (0.3, 0.86), (0.84, 0.8), (0.8, 0.98), (-0.84, 0.98), (-0.87, 0.74)), secondary)
    else:
        fill(canvas, rounded(-0.87, 0.56, 0.88, GROUND, 0.1), secondary)
        for x in (-0.58, -0.2, 0.18, 0.56):
            line(canvas, [(x, 0.76), (x, 0.88)], darker(secondary, 0.5), 0.08)
        _laces(canvas, (INSTEP[0], (0.22, 0.1)), (-0.26, 0.3), secondary, 0.2)
    if identity.variant != 2:
        _laces(canvas, INSTEP, (-0.15, 0.19), CREAM, 0.12)
    accessory(canvas, identity, -0.58, 0.24, 0.46)


COWBOY_HEEL = ((-0.6, 0.2), (-0.54, -0.1), (-0.68, -0.74))
SHAFTS = (  # rubber, winter, cowboy
    ((-0.62, -0.66), (-0.4, -0.66), (0.0, -0.66), (0.12, -0.66), (0.1, -0.2), (0.08, 0.06), (0.24, 0.16)),
    ((-0.62, -0.5), (-0.4, -0.5), (0.0, -0.5), (0.16, -0.5), (0.16, -0.2), (0.16, 0.0), (0.3, 0.1)),
    ((-0.68, -0.74), (-0.5, -0.62), (-0.36, -0.36), (-0.24, -0.36), (-0.12, -0.36), (0.02, -0.62), (0.2, -0.74)),
)
FEET = (
    ((0.5, 0.26), (0.8, 0.3), (0.8, 0.76), (0.3, 0.76), (-0.2, 0.76), (-0.62, 0.76), (-0.66, 0.3), (-0.54, -0.1), (-0.62, -0.66)),
    ((0.56, 0.16), (0.86, 0.3), (0.82, 0.76), (0.3, 0.76), (-0.2, 0.76), (-0.64, 0.76), (-0.7, 0.3), (-0.58, -0.1), (-0.62, -0.5)),
    ((0.12, -0.2), (0.06, 0.1), (0.26, 0.24), (0.5, 0.36), (0.8, 0.5), (0.87, 0.8), (0.5, 0.82), (0.0, 0.76), (-0.56, 0.66), *COWBOY_HEEL),
)
FLUFF = ((-0.62, -0.56), (-0.36, -0.6), (-0.1, -0.6), (0.14, -0.56), (-0.5, -0.44), (-0.22, -0.42), (0.04, -0.44))


@_proportioned
def boot(canvas: skia.Canvas, identity: Identity) -> None:
    """A tall boot. Variants: a rubber boot with a band; a winter boot with a fluffy cuff and laces; a cowboy boot."""
    secondary = PALETTE[identity.secondary]
    patterned(canvas, _outline(*SHAFTS[identity.variant], *FEET[identity.variant]), identity)
    if identity.variant == 0:
        fill(canvas, rounded(-0.68, -0.76, 0.18, -0.5, 0.08), secondary)
        fill(canvas, _outline((0.46, 0.76), (0.4, 0.56), (0.46, 0.36), (0.58, 0.3), (0.76, 0.4), (0.8, 0.6), (0.8, 0.76)), secondary)
        fill(canvas, rounded(-0.68, 0.7, -0.14, GROUND, 0.06), secondary)
        fill(canvas, rounded(-0.68, 0.7, 0.86, 0.88, 0.08), secondary)
    elif identity.variant == 1:
        _laces(canvas, ((0.1, -0.16), (0.14, 0.04), (0.3, 0.2)), (-0.2, 0.06), CREAM, 0.12)
        fill(canvas, rounded(-0.72, 0.66, 0.87, GROUND, 0.12), secondary)
        for x in (-0.5, -0.14, 0.22, 0.58):
            line(canvas, [(x, 0.84), (x, 0.9)], darker(secondary, 0.5), 0.09)
        _cloud(canvas, FLUFF, 0.17, secondary)
        canvas.drawPath(ellipse(-0.3, -0.62, 0.3, 0.07), paint(GLINT, 0.3))
    else:
        fill(canvas, polygon([(-0.6, 0.62), (-0.06, 0.7), (-0.2, GROUND), (-0.56, GROUND)]), darker(secondary, 0.15))
        toe = ((0.36, 0.78), (0.24, 0.6), (0.3, 0.44), (0.42, 0.32), (0.66, 0.42), (0.82, 0.54), (0.87, 0.8))
        fill(canvas, _outline(*toe), secondary)
        _tube(canvas, _outline((-0.55, 0.68), (-0.1, 0.7), (0.1, 0.86), (0.82, 0.88), closed=False), secondary, 0.15)
        hem = ((-0.64, -0.66), (-0.48, -0.54), (-0.36, -0.28), (-0.24, -0.28), (-0.12, -0.28), (0.0, -0.54), (0.16, -0.66))
        _tube(canvas, _outline(*hem, closed=False), secondary, 0.15)
    accessory(canvas, identity, -0.24, -0.1 if identity.variant == 2 else -0.2, 0.46)


FRAMES = (  # the outer outline of the right half; the lens
    (((0, 0.16), (0.06, 0.16), (0.06, -0.06), (0.44, -0.06), (0.74, -0.06), (0.88, 0.16), (0.88, 0.44)), (0.47, 0.44, 0.24, 0.3, 0.3)),
    (((0, 0.02), (0.2, 0.0), (0.5, -0.04), (0.88, -0.04), (0.88, 0.1), (0.88, 0.2), (0.87, 0.34)), (0.47, 0.42, 0.25, 0.27, 0.12)),
    (((0, 0.2), (0.1, 0.12), (0.5, 0.12), (0.9, -0.24), (0.9, 0.0), (0.92, 0.26), (0.86, 0.5)), (0.46, 0.46, 0.26, 0.25, 0.2)),
)
LOWER = (
    ((0.88, 0.72), (0.7, 0.94), (0.44, 0.94), (0.24, 0.94), (0.1, 0.76), (0.07, 0.5), (0.05, 0.44), (0.02, 0.42), (0, 0.42)),
    ((0.86, 0.7), (0.8, 0.9), (0.56, 0.9), (0.3, 0.9), (0.12, 0.86), (0.08, 0.5), (0.06, 0.36), (0.03, 0.34), (0, 0.34)),
    ((0.82, 0.74), (0.66, 0.9), (0.44, 0.9), (0.24, 0.9), (0.1, 0.76), (0.08, 0.6), (0.06, 0.5), (0.03, 0.48), (0, 0.48)),
)


@_proportioned
def glasses(canvas: skia.Canvas, identity: Identity) -> None:
    """Sunglasses with thick frames. Variants: round; square; cat's eyes."""
    primary, secondary = PALETTE[identity.primary], PALETTE[identity.secondary]
    upper, (x, y, rx, ry, corner) = FRAMES[identity.variant]
    for side in (-1, 1):  # the temples, behind
        temple = ((side * 0.8, 0.2), (side * 0.76, -0.2), (side * 0.62, -0.42), (side * 0.46, -0.4))
        _tube(canvas, _outline(*temple, closed=False), darker(mix(primary, secondary, 0.15), 0.2), 0.13)
    patterned(canvas, _turned(*upper, *LOWER[identity.variant]), identity)
    for side in (-1, 1):
        lens = rounded(side * x - rx, y - ry, side * x + rx, y + ry, corner)
        fill(canvas, lens, darker(secondary, 0.12))
        _glint(canvas, (side * x - rx * 0.5, y + ry * 0.1), (side * x - rx * 0.4, y - ry * 0.4), (side * x + rx * 0.1, y - ry * 0.6), 0.08)
    accessory(canvas, identity, 0, 0.14, 0.44)


TEAPOTS = (
    ((0, -0.2), (0.4, -0.2), (0.62, 0.1), (0.62, 0.42), (0.62, 0.74), (0.4, 0.9), (0.26, 0.9)),  # round
    ((0, -0.3), (0.2, -0.3), (0.36, -0.3), (0.38, -0.2), (0.44, 0.2), (0.56, 0.5), (0.6, 0.9)),  # tapered
    ((0, 0.0), (0.5, 0.0), (0.64, 0.2), (0.64, 0.46), (0.64, 0.74), (0.5, 0.9), (0.32, 0.9)),  # squat, under a hoop
)


@_proportioned
def teapot(canvas: skia.Canvas, identity: Identity) -> None:
    """A teapot, spout to the right. Variants: round with a loop handle; tall and tapered; squat under a hoop handle."""
    secondary, top = PALETTE[identity.secondary], TEAPOTS[identity.variant][0][1]
    if identity.variant == 2:
        _tube(canvas, _outline((-0.52, 0.2), (-0.56, -0.94), (0.56, -0.94), (0.52, 0.2), closed=False), secondary, 0.16)
    else:
        _tube(canvas, _outline((-0.46, 0.02), (-0.91, -0.14), (-0.92, 0.7), (-0.5, 0.64), closed=False), secondary, 0.17)
    spout = ((0.4, 0.3), (0.62, 0.3), (0.62, 0.0), (0.72, -0.18), (0.78, -0.2), (0.84, -0.18), (0.88, -0.14))
    fill(canvas, _outline(*spout, (0.82, 0.1), (0.86, 0.6), (0.4, 0.74)), secondary)
    fill(canvas, rounded(-0.4, 0.8, 0.4, GROUND, 0.06), secondary)
    patterned(canvas, _turned(*TEAPOTS[identity.variant]), identity)
    fill(canvas, ellipse(0, top - 0.26, 0.11), secondary)
    lid = ((0, top - 0.22), (0.2, top - 0.22), (0.36, top - 0.12), (0.4, top + 0.06), (0.3, top + 0.12), (0.1, top + 0.13), (0, top + 0.13))
    fill(canvas, _turned(*lid), secondary)
    _glint(canvas, (-0.44, 0.3), (-0.5, 0.5), (-0.4, 0.68))
    accessory(canvas, identity, 0.02, 0.46, 0.52)


VASES = (
    ((0.3, -0.1), (0.2, 0.14), (0.66, 0.2), (0.62, 0.54), (0.6, 0.8), (0.4, 0.92), (0.34, 0.92)),  # bulbous
    ((0.36, -0.7), (0.1, -0.46), (0.22, -0.3), (0.46, -0.14), (0.88, 0.16), (0.4, 0.7), (0.3, 0.92)),  # amphora
    ((0.52, -0.2), (0.36, 0.0), (0.34, 0.3), (0.34, 0.46), (0.34, 0.66), (0.4, 0.8), (0.46, 0.92)),  # trumpet
)


@_proportioned
def vase(canvas: skia.Canvas, identity: Identity) -> None:
    """A vase. Variants: bulbous with daisies; an empty amphora; a trumpet with tulips."""
    secondary, side = PALETTE[identity.secondary], VASES[identity.variant]
    rim, top = side[0]
    blooms = {0: ((-0.48, -0.34), (0.48, -0.34), (0, -0.52)), 1: (), 2: ((-0.5, -0.46), (0.5, -0.46), (0, -0.52))}[identity.variant]
    for x, y in blooms:
        curve(canvas, (x * 0.2, 0.0), (x * 0.5, -0.1), (x, y), LEAF, 0.09)
    if identity.variant == 1:
        for way in (-1, 1):
            _tube(canvas, _outline((way * 0.26, -0.5), (way * 0.86, -0.62), (way * 0.8, -0.1), (way * 0.5, 0.06), closed=False), secondary, 0.14)
    else:
        fill(canvas, ellipse(0, top, rim, 0.1), darker(secondary, 0.4))
    fill(canvas, rounded(-0.42, 0.82, 0.42, GROUND, 0.06), secondary)
    patterned(canvas, _turned(*side), identity)
    fill(canvas, rounded(-rim - 0.05, top - 0.06, rim + 0.05, top + 0.06, 0.06), secondary)
    for x, y in blooms:
        (_flower if identity.variant == 0 else _tulip)(canvas, x, y, 0.24, secondary)
    accessory(canvas, identity, 0, 0.5 if identity.variant == 0 else 0.28, 0.5)


OBJECTS = {
    "backpack": backpack,
    "bowl": bowl,
    "can": can,
    "candle": candle,
    "clock": clock,
    "sneaker": sneaker,
    "boot": boot,
    "glasses": glasses,
    "teapot": teapot,
    "vase": vase,
}
