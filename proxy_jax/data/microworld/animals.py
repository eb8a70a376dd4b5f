"""Subjects with a face: the dog, the cat, the stuffed animal, the toy and the cartoon."""

import functools
import math
from collections.abc import Callable

import skia

from proxy_jax.data.microworld.drawing import (
    GROUND,
    OUTLINE,
    STRETCH,
    Anchors,
    Point,
    accessory,
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
    smooth,
)
from proxy_jax.data.microworld.looks import PALETTE, Colour, Identity

Drawing = Callable[[skia.Canvas, Identity], Anchors | None]

INK = (0.13, 0.11, 0.14)
CREAM = (0.99, 0.95, 0.87)
WHITE = (0.99, 0.99, 0.98)
TONGUE = (0.94, 0.42, 0.48)
NOSE_PINK = (0.96, 0.52, 0.58)
BRASS = (0.93, 0.76, 0.30)
GLASS = (0.72, 0.89, 0.97)
TYRE = (0.22, 0.21, 0.25)
BILL = (0.98, 0.60, 0.14)
LAMP = (1.0, 0.91, 0.45)
IRISES = ((0.62, 0.86, 0.30), (0.98, 0.82, 0.25), (0.42, 0.80, 0.92))  # of the cat, by variant


def _proportioned(draw: Drawing) -> Drawing:
    """A drawing function stretched by the identity's proportions, its feet on the ground; so are its anchors, if it has them."""

    @functools.wraps(draw)
    def stretched(canvas: skia.Canvas, identity: Identity) -> Anchors | None:
        wide, tall = 1 + STRETCH * identity.width, 1 + STRETCH * identity.height
        canvas.save()
        canvas.translate(0, GROUND * (1 - tall))
        canvas.scale(wide, tall)
        anchors = draw(canvas, identity)
        canvas.restore()
        if anchors is None:
            return None

        def moved(x: float, y: float) -> Point:
            return x * wide, GROUND + (y - GROUND) * tall

        (left, right), (x, y, half) = anchors.eyes, anchors.neck
        head, torso = ((*moved(*box[:2]), *moved(*box[2:])) for box in (anchors.head, anchors.torso))
        return Anchors(head=head, eyes=(moved(*left), moved(*right)), neck=(*moved(x, y), half * wide), torso=torso)

    return stretched


def _colours(identity: Identity) -> tuple[Colour, Colour]:
    return PALETTE[identity.primary], PALETTE[identity.secondary]


def _limb(canvas: skia.Canvas, start: Point, control: Point, end: Point, colour: Colour, width: float) -> None:
    """A thick outlined curve: a tail, an arm, a leg."""
    curve(canvas, start, control, end, darker(colour, 0.55), width + 1.6 * OUTLINE)
    curve(canvas, start, control, end, colour, width)


def _mirrored(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple((-x, y) for x, y in points)


@functools.cache
def _both(points: tuple[Point, ...]) -> skia.Path:
    """A smooth shape on the right and its mirror image on the left."""
    path = smooth(points)
    path.addPath(smooth(_mirrored(points)))
    return path


@functools.cache
def _discs(*places: tuple[float, float, float, float]) -> skia.Path:
    """Ellipses (x, y, rx, ry), each with its mirror image where it is off the middle."""
    path = skia.Path()
    for x, y, rx, ry in places:
        for centre in (x, -x) if x else (x,):
            path.addOval(skia.Rect.MakeLTRB(centre - rx, y - ry, centre + rx, y + ry))
    return path


@functools.cache
def _box(left: float, top: float, right: float, bottom: float, radius: float) -> skia.Path:
    return rounded(left, top, right, bottom, radius)


@functools.cache
def _strokes(*lines: tuple[Point, ...]) -> skia.Path:
    """Lines through two points, curves through three (start, control, end)."""
    path = skia.Path()
    for start, *rest in lines:
        path.moveTo(*start)
        if len(rest) == 1:
            path.lineTo(*rest[0])
        else:
            path.quadTo(*rest[0], *rest[1])
    return path


def _two_eyes(canvas: skia.Canvas, x: float, y: float, radius: float) -> None:
    """Dark eyes with white rims and highlights, at x and at -x."""
    canvas.drawPath(_discs((x, y, radius, radius)), paint(WHITE))
    canvas.drawPath(_discs((x, y, radius * 0.76, radius * 0.76)), paint(INK))
    canvas.drawPath(_strokes(*(((side * x - radius * 0.25, y - radius * 0.28),) * 2 for side in (-1, 1))), paint(WHITE, stroke=radius * 0.48))


@functools.cache
def _sitting_body() -> skia.Path:
    """The body of a sitting dog or cat, from the neck to the ground."""
    return smooth(((-0.2, 0.1), (0.2, 0.1), (0.42, 0.3), (0.62, 0.72), (0.5, 0.96), (0, 0.94), (-0.5, 0.96), (-0.62, 0.72), (-0.42, 0.3)))


def _paws(canvas: skia.Canvas, coat: Colour, paw: Colour) -> None:
    """Two legs and four paws in front of a sitting body."""
    line(canvas, [(0, 0.68), (0, 0.86)], darker(coat, 0.5), 0.035)
    fill(canvas, _discs((0.46, 0.86, 0.15, 0.09), (0.15, 0.86, 0.14, 0.09)), paw)


# --- dog ---

DOG_EARS: tuple[tuple[Point, ...], ...] = (
    ((0.3, -0.62), (0.62, -0.62), (0.84, -0.2), (0.9, 0.3), (0.62, 0.4), (0.52, 0.02), (0.46, -0.3)),  # floppy
    ((0.1, -0.4), (0.3, -0.62), (0.58, -0.79), (0.7, -0.8), (0.72, -0.4), (0.62, -0.14), (0.3, -0.3)),  # pointed
    ((0.14, -0.4), (0.3, -0.66), (0.56, -0.78), (0.74, -0.62), (0.66, -0.3), (0.5, -0.2), (0.3, -0.3)),  # half-folded
)
DOG_MOUTH = (((0, 0.08), (0, 0.22)), ((-0.16, 0.2), (-0.08, 0.3), (0, 0.22)), ((0, 0.22), (0.08, 0.3), (0.16, 0.2)))
DOG_FLAP = ((0.34, -0.72), (0.66, -0.86), (0.92, -0.6), (0.9, -0.18), (0.72, -0.26), (0.56, -0.5))


@functools.cache
def _dog_head() -> skia.Path:
    return smooth(((-0.34, -0.56), (0.34, -0.56), (0.62, -0.36), (0.62, 0.14), (0.36, 0.38), (-0.36, 0.38), (-0.62, 0.14), (-0.62, -0.36)))


def _dog_face(canvas: skia.Canvas, coat: Colour, variant: int) -> None:
    """Eyes, a big muzzle and a tongue; a little to the left, where the dog looks."""
    width, tongue, hang = ((0.3, -0.04, 0.5), (0.28, -0.02, 0.48), (0.28, 0.08, 0.5))[variant]
    canvas.drawPath(_box(tongue - 0.1, 0.2, tongue + 0.1, hang, 0.1), paint(TONGUE))
    canvas.drawPath(_box(tongue - 0.1, 0.2, tongue + 0.1, hang, 0.1), paint(darker(TONGUE, 0.55), stroke=OUTLINE))
    canvas.save()
    canvas.translate(-0.04, 0)
    fill(canvas, _discs((0, 0.13, width, 0.21)), mix(lighter(coat, 0.6), CREAM, 0.5))
    canvas.drawPath(_strokes(*DOG_MOUTH), paint(INK, stroke=0.035))
    canvas.drawPath(_discs((0, 0.02, 0.14, 0.1)), paint(INK))
    canvas.drawPath(_discs((0, -0.03, 0.05, 0.02)), paint(WHITE, 0.7))
    _two_eyes(canvas, 0.25, -0.17, 0.14)
    canvas.restore()


@_proportioned
def dog(canvas: skia.Canvas, identity: Identity) -> Anchors:
    """A sitting dog with a muzzle and a tongue; its variant is the shape of its ears: floppy, pointed, half-folded."""
    coat, second = _colours(identity)
    _limb(canvas, (0.4, 0.8), (0.8, 0.8), (0.76, 0.5), coat, 0.15)
    fill(canvas, ellipse(0.76, 0.46, 0.1, 0.13), second)
    patterned(canvas, _sitting_body(), identity)
    _paws(canvas, coat, second)
    if identity.variant != 0:
        fill(canvas, _both(DOG_EARS[identity.variant]), second)
    patterned(canvas, _dog_head(), identity)
    if identity.variant == 0:
        fill(canvas, _both(DOG_EARS[0]), second)
    elif identity.variant == 2:
        fill(canvas, _both(DOG_FLAP), darker(second, 0.15))
    _dog_face(canvas, coat, identity.variant)
    accessory(canvas, identity, 0.5, -0.46, 0.46)
    return Anchors(head=(-0.55, -0.56, 0.55, 0.36), eyes=((-0.29, -0.17), (0.21, -0.17)), neck=(0.0, 0.42, 0.4), torso=(-0.46, 0.34, 0.46, 0.8))


# --- cat ---

CAT_EARS: tuple[tuple[Point, ...], ...] = (
    ((0.12, -0.42), (0.56, -0.78), (0.64, -0.08)),  # straight
    ((0.2, -0.4), (0.76, -0.74), (0.62, -0.02)),  # turned outwards
    ((0.08, -0.42), (0.4, -0.76), (0.6, -0.1)),  # close together
)


@functools.cache
def _cat_head(variant: int) -> skia.Path:
    """Round; with fur on the cheeks, in one point a side; or in two."""
    if variant == 0:
        return smooth(((-0.4, -0.46), (0.4, -0.46), (0.72, -0.14), (0.68, 0.24), (0.34, 0.4), (-0.34, 0.4), (-0.68, 0.24), (-0.72, -0.14)))
    right = {
        1: ((0.4, -0.46), (0.62, -0.28), (0.62, -0.02), (0.86, 0.14), (0.86, 0.14), (0.56, 0.4)),
        2: ((0.4, -0.46), (0.66, -0.26), (0.6, -0.1), (0.78, -0.06), (0.78, -0.06), (0.66, 0.1), (0.78, 0.24), (0.78, 0.24), (0.5, 0.4)),
    }[variant]
    return smooth((*right, *reversed(_mirrored(right))))


def _cat_tail(canvas: skia.Canvas, coat: Colour, tip: Colour, variant: int) -> None:
    """A long thin tail: raised, hooked, or bushy."""
    end, width = ((0.78, 0.14), (0.62, 0.36), (0.76, 0.34))[variant], (0.11, 0.11, 0.2)[variant]
    bend = ((0.9, 0.9), (1.1, 0.72), (0.88, 0.9))[variant]
    _limb(canvas, (0.36, 0.84), bend, end, coat, width)
    middle = ((end[0] + bend[0]) / 2 - 0.03, (end[1] * 0.7 + bend[1] * 0.3))
    curve(canvas, middle, middle, end, tip, width)


def _cat_face(canvas: skia.Canvas, coat: Colour, variant: int) -> None:
    """Eyes with upright pupils, a small pink nose and whiskers; a little to the left, where the cat looks."""
    canvas.save()
    canvas.translate(-0.04, 0)
    fill(canvas, _discs((0.27, -0.1, 0.16, 0.17)), IRISES[variant])
    canvas.drawPath(_discs((0.27, -0.1, 0.05, 0.14)), paint(INK))
    canvas.drawPath(_discs((0.25, -0.17, 0.035, 0.035)), paint(WHITE))
    canvas.drawPath(_discs((0.1, 0.2, 0.13, 0.1)), paint(mix(lighter(coat, 0.6), CREAM, 0.5)))
    canvas.drawPath(_both(((-0.1, 0.06), (0.1, 0.06), (0, 0.2))), paint(NOSE_PINK))
    canvas.drawPath(_strokes(((-0.14, 0.23), (-0.05, 0.29), (0, 0.17)), ((0, 0.17), (0.05, 0.29), (0.14, 0.23))), paint(INK, stroke=0.032))
    whiskers = _strokes(*(((side * 0.26, start), (side * 0.8, end)) for start, end in ((0.13, 0.06), (0.21, 0.26)) for side in (-1, 1)))
    canvas.drawPath(whiskers, paint(INK, stroke=0.055))
    canvas.drawPath(whiskers, paint(WHITE, stroke=0.028))
    canvas.restore()


@functools.cache
def _cat_ears(variant: int, share: float) -> skia.Path:
    """Both ears, shrunk around their middles to a share of their size."""
    points = CAT_EARS[variant]
    x, y = (sum(values) / 3 for values in zip(*points, strict=True))
    ear = tuple((x + share * (px - x), y + share * (py - y)) for px, py in points)
    path = polygon(ear)
    path.addPath(polygon(_mirrored(ear)))
    return path


@_proportioned
def cat(canvas: skia.Canvas, identity: Identity) -> Anchors:
    """A sitting cat with whiskers and upright pupils; its variant is the shape of its ears, tail and cheeks."""
    coat, second = _colours(identity)
    _cat_tail(canvas, coat, second, identity.variant)
    patterned(canvas, _sitting_body(), identity)
    _paws(canvas, coat, second)
    fill(canvas, _cat_ears(identity.variant, 1.0), second)
    canvas.drawPath(_cat_ears(identity.variant, 0.5), paint(NOSE_PINK))
    patterned(canvas, _cat_head(identity.variant), identity)
    _cat_face(canvas, coat, identity.variant)
    accessory(canvas, identity, 0.48, -0.4, 0.46)
    return Anchors(head=(-0.58, -0.45, 0.58, 0.38), eyes=((-0.31, -0.1), (0.23, -0.1)), neck=(0.0, 0.42, 0.4), torso=(-0.46, 0.34, 0.46, 0.8))


# --- stuffed animal ---


@functools.cache
def _seams() -> skia.Path:
    """Stitches down the forehead and round the patch on the belly."""
    dashes, count = [((0, -0.53), (0, -0.46)), ((0, -0.38), (0, -0.31))], 9
    for i in range(count):
        start, end = (2 * math.pi * (i + share) / count for share in (0, 0.5))
        dashes.append(tuple((0.16 * math.sin(angle), 0.56 - 0.16 * math.cos(angle)) for angle in (start, end)))
    return _strokes(*dashes)


def _plush_ears(canvas: skia.Canvas, plush: Colour, lining: Colour, variant: int) -> None:
    """Of a bear, round; of a rabbit, long; of a koala, big."""
    x, y, rx, ry = ((0.42, -0.5, 0.22, 0.22), (0.24, -0.5, 0.15, 0.25), (0.58, -0.28, 0.28, 0.27))[variant]
    fill(canvas, _discs((x, y, rx, ry)), plush)
    canvas.drawPath(_discs((x, y + 0.01, rx * 0.62, ry * 0.66)), paint(lining))


def _plush_face(canvas: skia.Canvas) -> None:
    """Button eyes and a stitched nose on a pale patch."""
    fill(canvas, _discs((0, 0.07, 0.24, 0.18)), CREAM)
    canvas.drawPath(_both(((-0.14, -0.06), (0.14, -0.06), (0.05, 0.08), (-0.05, 0.08))), paint(INK))
    canvas.drawPath(_strokes(((0, 0.0), (0, 0.12)), ((-0.13, 0.1), (0, 0.24), (0.13, 0.1))), paint(INK, stroke=0.035))
    _two_eyes(canvas, 0.26, -0.12, 0.115)


@functools.cache
def _plush_arms() -> skia.Path:
    return _both(((0.3, 0.22), (0.56, 0.24), (0.9, 0.42), (0.86, 0.62), (0.64, 0.6), (0.36, 0.5)))


@_proportioned
def stuffed_animal(canvas: skia.Canvas, identity: Identity) -> None:
    """A sitting plush animal with seams and a patch on its belly; its variant is the shape of its ears."""
    plush, second = _colours(identity)
    fill(canvas, _plush_arms(), plush)
    patterned(canvas, _discs((0, 0.54, 0.5, 0.41)), identity)
    fill(canvas, _discs((0, 0.56, 0.21, 0.21)), lighter(second, 0.3))
    fill(canvas, _discs((0.58, 0.75, 0.25, 0.2)), plush)
    fill(canvas, _discs((0.6, 0.76, 0.15, 0.12)), second)
    _plush_ears(canvas, plush, second, identity.variant)
    patterned(canvas, _discs((0, -0.12, 0.52, 0.42)), identity)
    canvas.drawPath(_seams(), paint(darker(second, 0.6), stroke=0.04))
    _plush_face(canvas)
    accessory(canvas, identity, 0.42, -0.42, 0.46)


# --- toy ---


def _wheels(canvas: skia.Canvas, x: float, radius: float, hub: Colour) -> None:
    """Two wheels on the ground."""
    canvas.drawPath(_discs((x, GROUND - radius, radius, radius)), paint(TYRE))
    fill(canvas, _discs((x, GROUND - radius, radius * 0.56, radius * 0.56)), hub)


def _key(canvas: skia.Canvas, x: float, y: float) -> None:
    """A wind-up key: a stem down to (x, y) and two rings on it."""
    canvas.save()
    canvas.translate(x, y)
    line(canvas, [(0, 0), (0, -0.22)], darker(BRASS, 0.4), 0.09)
    canvas.drawPath(_discs((0.12, -0.22, 0.1, 0.1)), paint(darker(BRASS, 0.5), stroke=0.11))
    canvas.drawPath(_discs((0.12, -0.22, 0.1, 0.1)), paint(BRASS, stroke=0.065))
    canvas.restore()


def _eye(canvas: skia.Canvas, x: float, y: float, radius: float) -> None:
    """A round eye with a white rim, a dark pupil and a highlight."""
    canvas.drawPath(ellipse(x, y, radius), paint((0.98, 0.98, 0.98)))
    canvas.drawPath(ellipse(x, y, radius * 0.72), paint((0.1, 0.09, 0.12)))
    canvas.drawPath(ellipse(x - radius * 0.25, y - radius * 0.28, radius * 0.24), paint((1.0, 1.0, 1.0)))


@functools.cache
def _duck_body() -> skia.Path:
    return smooth(((-0.62, 0.06), (-0.1, 0.06), (0.3, 0.14), (0.66, -0.22), (0.84, 0.0), (0.7, 0.66), (0.1, 0.72), (-0.5, 0.7), (-0.8, 0.36)))


@functools.cache
def _duck_wing() -> skia.Path:
    return smooth(((-0.1, 0.22), (0.36, 0.2), (0.62, 0.28), (0.4, 0.56), (0.06, 0.58), (-0.14, 0.42)))


@functools.cache
def _duck_bill() -> skia.Path:
    return smooth(((-0.6, -0.3), (-0.76, -0.24), (-0.9, -0.2), (-0.86, -0.06), (-0.7, -0.04), (-0.54, -0.08)))


def _duck(canvas: skia.Canvas, identity: Identity) -> None:
    _, second = _colours(identity)
    _key(canvas, 0.3, 0.2)
    patterned(canvas, _duck_body(), identity)
    fill(canvas, _duck_wing(), second)
    patterned(canvas, ellipse(-0.32, -0.3, 0.42, 0.42), identity)
    fill(canvas, _duck_bill(), BILL)
    _eye(canvas, -0.44, -0.4, 0.13)
    fill(canvas, _box(-0.66, 0.6, 0.66, 0.74, 0.06), second)
    _wheels(canvas, 0.44, 0.19, second)
    accessory(canvas, identity, -0.06, -0.54, 0.46)


def _robot(canvas: skia.Canvas, identity: Identity) -> None:
    _, second = _colours(identity)
    canvas.save()
    canvas.rotate(75)
    _key(canvas, 0.3, -0.42)
    canvas.restore()
    line(canvas, [(0, -0.5), (0, -0.66)], INK, 0.06)
    fill(canvas, ellipse(0, -0.66, 0.09), second)
    arms = _strokes(*(((side * 0.42, 0.3), (side * 0.66, 0.34), (side * 0.68, 0.56)) for side in (-1, 1)))
    canvas.drawPath(arms, paint(darker(second, 0.55), stroke=0.15 + 1.6 * OUTLINE))
    canvas.drawPath(arms, paint(second, stroke=0.15))
    fill(canvas, _discs((0.68, 0.6, 0.13, 0.11)), lighter(TYRE, 0.4))
    fill(canvas, _discs((0.5, -0.2, 0.1, 0.17)), second)
    patterned(canvas, _box(-0.46, 0.12, 0.46, 0.78, 0.1), identity)
    patterned(canvas, _box(-0.48, -0.54, 0.48, 0.12, 0.12), identity)
    fill(canvas, _discs((0.21, -0.28, 0.16, 0.16)), LAMP)
    canvas.drawPath(_discs((0.21, -0.28, 0.08, 0.08)), paint(INK))
    fill(canvas, _box(-0.24, -0.09, 0.24, 0.06, 0.04), WHITE)
    canvas.drawPath(_strokes(*(((x, -0.06), (x, 0.03)) for x in (-0.12, 0, 0.12))), paint(INK, stroke=0.03))
    _wheels(canvas, 0.3, 0.19, second)
    accessory(canvas, identity, 0.44, -0.53, 0.46)


@functools.cache
def _car_cabin() -> skia.Path:
    return smooth(((-0.56, 0.3), (-0.44, -0.44), (-0.2, -0.5), (0.34, -0.5), (0.5, -0.4), (0.68, 0.3), (0.4, 0.4), (-0.3, 0.4)))


def _car(canvas: skia.Canvas, identity: Identity) -> None:
    _, second = _colours(identity)
    _key(canvas, 0.1, -0.36)
    fill(canvas, _car_cabin(), second)
    for left, right in ((-0.34, 0.02), (0.12, 0.46)):
        fill(canvas, _box(left, -0.28, right, 0.06, 0.09), GLASS)
    patterned(canvas, _box(-0.86, 0.06, 0.86, 0.76, 0.24), identity)
    fill(canvas, _discs((0.76, 0.32, 0.1, 0.12)), LAMP)
    _wheels(canvas, 0.46, 0.27, second)
    accessory(canvas, identity, 0.04, 0.4, 0.46)


@_proportioned
def toy(canvas: skia.Canvas, identity: Identity) -> None:
    """A wind-up toy on wheels; its variant: a duck, a robot, a car."""
    (_duck, _robot, _car)[identity.variant](canvas, identity)


# --- cartoon ---

THICK = 0.085


@functools.cache
def _monster(variant: int) -> skia.Path:
    """A blob: an egg, a pear, a slab."""
    return (
        smooth(((-0.4, -0.6), (0.4, -0.6), (0.74, -0.2), (0.72, 0.5), (0.4, 0.78), (-0.4, 0.78), (-0.72, 0.5), (-0.74, -0.2))),
        smooth(((-0.28, -0.56), (0.28, -0.56), (0.56, -0.24), (0.86, 0.46), (0.56, 0.8), (-0.56, 0.8), (-0.86, 0.46), (-0.56, -0.24))),
        rounded(-0.66, -0.48, 0.66, 0.76, 0.3),
    )[variant]


def _thick(canvas: skia.Canvas, path: skia.Path, colour: Colour) -> None:
    """A flat shape in a thick outline."""
    canvas.drawPath(path, paint(INK, stroke=THICK))
    canvas.drawPath(path, paint(colour))


def _monster_limbs(canvas: skia.Canvas, colour: Colour) -> None:
    """Two legs, an arm that waves and one that does not."""
    legs = (((side * 0.26, 0.7), (side * 0.26, 0.86), (side * 0.38, 0.86)) for side in (-1, 1))
    limbs = _strokes(*legs, ((-0.56, 0.2), (-0.84, 0.2), (-0.8, -0.2)), ((0.56, 0.24), (0.82, 0.3), (0.8, 0.58)))
    canvas.drawPath(limbs, paint(INK, stroke=0.14 + THICK))
    canvas.drawPath(limbs, paint(colour, stroke=0.14))


@functools.cache
def _horns(variant: int) -> skia.Path:
    """On the top of the head: horns, knobs, or a crest."""
    if variant == 1:
        return _discs((0.3, -0.6, 0.11, 0.11))
    horn = ((0.16, -0.4), (0.5, -0.74), (0.54, -0.3)) if variant == 0 else ((0.12, -0.4), (0.32, -0.7), (0.46, -0.4))
    path = skia.Path()
    for side in (-1, 1):
        path.addPath(polygon([(side * x, y) for x, y in horn]))
    if variant == 2:
        path.addPath(polygon(((-0.16, -0.4), (0, -0.75), (0.16, -0.4))))
    return path


def _ogling(canvas: skia.Canvas, x: float, y: float, radius: float) -> None:
    _thick(canvas, ellipse(x, y, radius), WHITE)
    canvas.drawPath(ellipse(x - radius * 0.12, y + radius * 0.1, radius * 0.52), paint(INK))
    canvas.drawPath(ellipse(x - radius * 0.3, y - radius * 0.14, radius * 0.2), paint(WHITE))


@functools.cache
def _grin() -> tuple[skia.Path, skia.Path]:
    """The open mouth and its teeth."""
    mouth, teeth = skia.Path(), skia.Path()
    mouth.moveTo(-0.38, 0.2)
    mouth.quadTo(0, 0.3, 0.38, 0.2)
    mouth.quadTo(0.3, 0.56, 0, 0.56)
    mouth.quadTo(-0.3, 0.56, -0.38, 0.2)
    mouth.close()
    for x in (-0.16, 0.16):
        teeth.addPoly([skia.Point(*p) for p in ((x - 0.1, 0.24), (x + 0.1, 0.24), (x, 0.4))], True)
    return mouth, teeth


@_proportioned
def cartoon(canvas: skia.Canvas, identity: Identity) -> None:
    """A grinning cartoon monster in thick outlines; its variant: one eye and horns, three eyes and feelers, two unlike eyes and a crest."""
    _, second = _colours(identity)
    _monster_limbs(canvas, second)
    if identity.variant == 1:
        feelers = (((side * 0.12, -0.4), (side * 0.14, -0.56), (side * 0.28, -0.58)) for side in (-1, 1))
        canvas.drawPath(_strokes(*feelers), paint(INK, stroke=0.07))
    _thick(canvas, _horns(identity.variant), second)
    body = _monster(identity.variant)
    patterned(canvas, body, identity)
    canvas.drawPath(body, paint(INK, stroke=THICK))
    eyes = (((0, -0.16, 0.27),), ((-0.3, -0.02, 0.14), (0, -0.22, 0.16), (0.3, -0.02, 0.14)), ((-0.2, -0.16, 0.22), (0.26, -0.1, 0.15)))
    for x, y, radius in eyes[identity.variant]:
        _ogling(canvas, x, y, radius)
    mouth, teeth = _grin()
    _thick(canvas, mouth, (0.45, 0.1, 0.16))
    canvas.drawPath(ellipse(0, 0.5, 0.14, 0.06), paint(TONGUE))
    canvas.drawPath(teeth, paint(WHITE))
    accessory(canvas, identity, 0.46, -0.38, 0.46)


ANIMALS = {"dog": dog, "cat": cat, "stuffed animal": stuffed_animal, "toy": toy, "cartoon": cartoon}
