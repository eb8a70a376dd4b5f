"""Settings: what is behind, and partly in front of, a subject.

Coordinates: the picture is the unit square, x to the right, y down. A subject stands in the middle, its feet at about y = 0.86,
and hides most of it, so what tells a setting is large and at the sides, the top and the bottom.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import MappingProxyType

import skia

from proxy_jax.data.microworld.drawing import (
    Box,
    Point,
    boxes,
    circles,
    curve,
    darker,
    ellipse,
    lighter,
    line,
    mix,
    paint,
    polygon,
    rounded,
    smooth,
    star,
)
from proxy_jax.data.microworld.looks import Colour

Draw = Callable[[skia.Canvas, int], None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How to draw a setting, in one of its variations 0 ... 3: first `back`, then the subject, then `front`."""

    back: Draw
    front: Draw | None = None


def _hex(code: int) -> Colour:
    return (code >> 16) / 255, (code >> 8 & 255) / 255, (code & 255) / 255


WHITE = _hex(0xFFFFFF)
SKY, PALE_SKY = (_hex(0x6FB9EE), _hex(0x86A9EC)), _hex(0xDDF1FA)  # the sky above in either version, and at the horizon
GRASS, DEEP_GRASS = _hex(0x8CCB57), _hex(0x4E9A3B)
BARK = _hex(0x7A5236)


def _graded(canvas: skia.Canvas, path: skia.Path, top: Colour, bottom: Colour) -> None:
    """Fills a path with a gradient from its top to its bottom."""
    box, graded = path.getBounds(), paint(top)
    ends = [skia.Point(0, box.top()), skia.Point(0, box.bottom())]
    graded.setShader(skia.GradientShader.MakeLinear(ends, [skia.Color4f(*colour, 1.0).toColor() for colour in (top, bottom)]))
    canvas.drawPath(path, graded)


def _layer(canvas: skia.Canvas, start: float, end: float, top: Colour, bottom: Colour) -> None:
    """A layer right across the picture, from y = start to y = end."""
    _graded(canvas, boxes([(-0.1, start, 1.1, end)]), top, bottom)


def _sky(canvas: skia.Canvas, other: int, horizon: float) -> None:
    _layer(canvas, 0, horizon, SKY[other], PALE_SKY)


def _cloud(canvas: skia.Canvas, x: float, y: float, size: float) -> None:
    parts = ((-0.55, 0.08, 0.3), (0, -0.06, 0.45), (0.55, 0.06, 0.34))
    canvas.drawPath(circles([(x + dx * size, y + dy * size, radius * size) for dx, dy, radius in parts]), paint(WHITE, 0.92))


def _ground(canvas: skia.Canvas, y: float, top: Colour, bottom: Colour, bulge: float = 0.04) -> None:
    """Ground from a slightly bulging horizon to the bottom."""
    path = skia.Path()
    path.moveTo(-0.1, y + bulge)
    path.quadTo(0.5, y - bulge, 1.1, y + bulge)
    path.lineTo(1.1, 1.05)
    path.lineTo(-0.1, 1.05)
    path.close()
    _graded(canvas, path, top, bottom)


@functools.cache
def _waves(y: float, height: float, count: int, shift: float) -> skia.Path:
    """Everything below a row of round wave crests."""
    path, width = skia.Path(), 1 / count
    path.moveTo(shift - 2 * width, y)
    for i in range(count + 4):
        left = shift + (i - 2) * width
        path.quadTo(left + width / 2, y - 2 * height, left + width, y)
    path.lineTo(1.5, 1.05)
    path.lineTo(-0.5, 1.05)
    path.close()
    return path


def _leaf(canvas: skia.Canvas, foot: Point, tip: Point, width: float, colour: Colour) -> None:
    """A big pointed leaf with a midrib."""
    dx, dy = tip[0] - foot[0], tip[1] - foot[1]
    middle, across = ((foot[0] + tip[0]) / 2, (foot[1] + tip[1]) / 2), (-dy * width, dx * width)
    path = skia.Path()
    path.moveTo(*foot)
    path.quadTo(middle[0] + across[0], middle[1] + across[1], *tip)
    path.quadTo(middle[0] - across[0], middle[1] - across[1], *foot)
    path.close()
    _graded(canvas, path, lighter(colour, 0.15), darker(colour, 0.2))
    line(canvas, [foot, tip], lighter(colour, 0.35), 0.012)


def _jungle(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 1.05, (_hex(0x2C7A45), _hex(0x2A7A5C))[other], _hex(0xA5D66A))
    _ground(canvas, 0.72, _hex(0x4B7A32), _hex(0x2B4D23))
    canvas.drawPath(boxes([(0.04, 0, 0.12, 0.8), (0.86, 0, 0.95, 0.8)]), paint(_hex(0x5A4630)))
    curve(canvas, (0.1, 0.02), (0.5, 0.3 - 0.06 * other), (0.9, 0.02), _hex(0x3D5B24), 0.025)
    dark, bright = _hex(0x1D6B36), _hex(0x3DA548)
    for side in (0, 1):
        edge, inward = side, 1 - 2 * side
        _leaf(canvas, (edge, -0.05), (edge + inward * 0.48, 0.14), 0.32, dark)
        _leaf(canvas, (edge - inward * 0.02, 0.05), (edge + inward * 0.26, 0.42), 0.34, bright)
        _leaf(canvas, (edge, 0.74), (edge + inward * 0.22, 0.46), 0.34, dark)


def _jungle_front(canvas: skia.Canvas, other: int) -> None:
    for side in (0, 1):
        edge, inward = side, 1 - 2 * side
        _leaf(canvas, (edge, 1.04), (edge + inward * 0.17, 0.68 + 0.04 * other), 0.34, _hex(0x3DA548))
        _leaf(canvas, (edge, 1.04), (edge + inward * 0.36, 0.9), 0.3, _hex(0x2A8A3E))


def _pine(canvas: skia.Canvas, x: float, foot: float, height: float, needles: Colour, snow: bool) -> None:
    canvas.drawPath(boxes([(x - 0.02, foot - 0.1 * height, x + 0.02, foot)]), paint(BARK))
    for i in range(3):
        top, half = foot - height * (1 - 0.24 * i), height * (0.2 + 0.07 * i)
        bottom = top + 0.42 * height
        _graded(canvas, polygon([(x, top), (x + half, bottom), (x - half, bottom)]), needles, darker(needles))
        if snow:
            cap = [(0.0, 0.0), (0.6, 0.25), (0.0, 0.19), (-0.6, 0.25)]
            canvas.drawPath(polygon([(x + dx * half, top + dy * height) for dx, dy in cap]), paint(WHITE))


def _snow(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.66, (_hex(0x9DBAD6), _hex(0xA9AFD6))[other], _hex(0xDCE7F2))
    _ground(canvas, 0.56, _hex(0xE6EEF8), _hex(0xD5E2F2), 0.06)
    _pine(canvas, 0.1, 0.72, 0.62, _hex(0x2F6B5B), snow=True)
    _pine(canvas, 0.92, 0.68, 0.5 + 0.08 * other, _hex(0x2F6B5B), snow=True)
    _ground(canvas, 0.7, WHITE, _hex(0xDDE8F6))
    flakes = [(x, y, 0.018) for x, y in ((0.3, 0.06), (0.5, 0.1), (0.7, 0.05), (0.26, 0.28), (0.76, 0.26), (0.03, 0.12), (0.96, 0.1))]
    canvas.drawPath(circles(flakes), paint(WHITE))


def _palm(canvas: skia.Canvas, foot: Point, top: Point) -> None:
    curve(canvas, foot, (foot[0] - 0.03, (foot[1] + top[1]) / 2), top, _hex(0x9A6B3C), 0.05)
    for dx, dy in ((-0.2, 0.12), (-0.2, -0.05), (0.2, -0.07), (0.3, 0.06), (0.14, 0.2)):
        _leaf(canvas, top, (top[0] + dx, top[1] + dy), 0.26, _hex(0x3E9A48))


def _beach(canvas: skia.Canvas, other: int) -> None:
    _sky(canvas, other, 0.48)
    canvas.drawPath(ellipse(0.84, 0.14, 0.085), paint(_hex(0xFFE680)))
    _layer(canvas, 0.46, 0.7, _hex(0x1E86C4), _hex(0x48C9CF))
    canvas.drawPath(_waves(0.66, 0.012, 4, 0.1 * other), paint(WHITE))
    _graded(canvas, _waves(0.69, 0.012, 4, 0.1 * other), _hex(0xF8E2AC), _hex(0xE3B973))
    _palm(canvas, (0.07, 0.78), (0.13, 0.18))


@functools.cache
def _cobbles() -> skia.Path:
    path = skia.Path()
    for row in range(6):
        top, height = 0.3 + 0.022 * row * row / 2 + 0.07 * row, 0.07 + 0.022 * (row + 0.5)
        for column in range(8):
            left = -0.08 + (column - 0.5 * (row % 2)) * 0.18
            path.addRoundRect(skia.Rect.MakeLTRB(left + 0.011, top + 0.01, left + 0.169, top + height - 0.01), 0.05, 0.05)
    return path


def _cobblestone(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.3, (_hex(0xC89A78), _hex(0xBFA07F))[other], _hex(0xA67858))
    _layer(canvas, 0.29, 1.05, _hex(0x55565E), _hex(0x3F4048))
    _graded(canvas, _cobbles(), _hex(0x9A9CA6), _hex(0xB9BBC4))


def _pink_fabric(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 1.05, (_hex(0xF58DBB), _hex(0xF293CB))[other], _hex(0xE8669F))
    for i in range(6):  # folds fall from the top and run out forwards
        x = 0.02 + 0.192 * i
        out = 0.5 + (x - 0.5) * 1.9
        for shift, colour in ((0, _hex(0xC93F80)), (0.05, _hex(0xFFC3DF))):
            curve(canvas, (x + shift, -0.05), (x + shift + 0.03 * other, 0.62), (out + 1.3 * shift, 1.05), colour, 0.04)


def _wooden_floor(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.26, (_hex(0xE9E0CF), _hex(0xDDE1DA))[other], _hex(0xD8CBB4))
    _layer(canvas, 0.25, 0.31, WHITE, _hex(0xDED8CC))
    _layer(canvas, 0.31, 1.05, _hex(0xA9682F), _hex(0xCB8743))
    planks = [polygon([(0.5 + 0.14 * i, 0.31), (0.64 + 0.14 * i, 0.31), (0.74 + 0.24 * i, 1.05), (0.5 + 0.24 * i, 1.05)]) for i in range(-5, 5)]
    for i, plank in enumerate(planks):
        if i % 2 == other:
            canvas.drawPath(plank, paint(_hex(0xDDA05C), 0.65))
        canvas.drawPath(plank, paint(_hex(0x6E3E18), stroke=0.012))


def _tower_block(canvas: skia.Canvas, box: Box, colour: Colour, lit: Colour) -> None:
    """A tall building with a regular grid of windows."""
    left, top, right, bottom = box
    _graded(canvas, boxes([box]), lighter(colour, 0.1), colour)
    size = (right - left) / 5
    rows = int((bottom - top) / size / 2)
    windows = [(left + size * x, top + size * (1 + 2 * y), left + size * (x + 1), top + size * (2.2 + 2 * y)) for x in (1, 3) for y in range(rows)]
    canvas.drawPath(boxes(windows), paint(lit))


def _city(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.78, (_hex(0x7F9FDD), _hex(0x9B8FD6))[other], _hex(0xFBD9B5))
    far = [(0.12, 0.3, 0.3, 0.8), (0.3, 0.12, 0.44, 0.8), (0.44, 0.22, 0.6, 0.8), (0.6, 0.08, 0.74, 0.8), (0.74, 0.26, 0.9, 0.8)]
    canvas.drawPath(boxes(far), paint(_hex(0x8C9AC4)))
    lit = _hex(0xFFE38A)
    _tower_block(canvas, (-0.03, 0.05, 0.2, 0.8), _hex(0x3F4F7E), lit)
    _tower_block(canvas, (0.8, 0.12 - 0.06 * other, 1.03, 0.8), _hex(0x584A78), lit)
    _layer(canvas, 0.78, 1.05, _hex(0x6A6D78), _hex(0x4A4C56))
    canvas.drawPath(boxes([(x, 0.925, x + 0.16, 0.95) for x in (0.02, 0.3, 0.58, 0.86)]), paint(WHITE))


def _peak(canvas: skia.Canvas, x: float, top: float, half: float, colour: Colour) -> None:
    height = 0.72 - top
    _graded(canvas, polygon([(x, top), (x + half, 0.72), (x - half, 0.72)]), lighter(colour, 0.1), colour)
    shady = polygon([(x, top), (x + half, 0.72), (x + 0.2 * half, 0.72), (x - 0.08 * half, top + 0.4 * height)])
    canvas.drawPath(shady, paint(darker(colour, 0.3), 0.6))
    jag = [(0.36, 0.36), (0.14, 0.27), (0, 0.4), (-0.16, 0.27), (-0.36, 0.36)]
    canvas.drawPath(polygon([(x, top), *((x + dx * half, top + dy * height) for dx, dy in jag)]), paint(WHITE))


def _mountain(canvas: skia.Canvas, other: int) -> None:
    _sky(canvas, other, 0.72)
    _peak(canvas, 0.56, 0.18, 0.42, _hex(0x8D9CC0))
    _peak(canvas, 0.18, 0.04, 0.44, _hex(0x6B78A0))
    _peak(canvas, 0.92, 0.12 + 0.06 * other, 0.36, _hex(0x6B78A0))
    _ground(canvas, 0.68, _hex(0x86B65A), _hex(0x4F8A3E))


def _window(canvas: skia.Canvas, left: float, top: float, size: float) -> None:
    canvas.drawPath(boxes([(left, top, left + size, top + 1.2 * size)]), paint(WHITE))
    rim, pane = 0.14 * size, 0.32 * size
    corners = [(left + x, top + y) for x in (rim, size - rim - pane) for y in (rim, 1.2 * size - rim - 1.35 * pane)]
    canvas.drawPath(boxes([(x, y, x + pane, y + 1.35 * pane) for x, y in corners]), paint(_hex(0x35507E)))


def _blue_house(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.78, (_hex(0xCFEBF7), _hex(0xF7E6CF))[other], _hex(0xF4FAF4))
    _graded(canvas, boxes([(0.0, 0.34, 0.8, 0.8)]), _hex(0x3A7BE0), _hex(0x2A5FBE))
    _window(canvas, 0.04, 0.42, 0.15)
    _window(canvas, 0.61, 0.42, 0.15)
    canvas.drawPath(rounded(0.33, 0.48, 0.49, 0.82, 0.02), paint(WHITE))
    canvas.drawPath(boxes([(0.6, 0.05, 0.69, 0.3)]), paint(_hex(0x9A4436)))
    _graded(canvas, polygon([(0.4, 0.02), (0.88, 0.37), (-0.08, 0.37)]), _hex(0xB5402F), _hex(0xD95B43))
    canvas.drawPath(circles([(0.94, 0.52, 0.1), (0.98, 0.4, 0.09), (0.9, 0.66, 0.1)]), paint(_hex(0x4F9E46)))
    _ground(canvas, 0.76, GRASS, DEEP_GRASS, 0.01)


def _forest(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.7, (_hex(0x6FA767), _hex(0x62A57C))[other], _hex(0xD9EAB2))
    canvas.drawPath(boxes([(x, 0, x + 0.05, 0.68) for x in (0.27, 0.46, 0.66)]), paint(_hex(0x86925F)))
    _graded(canvas, boxes([(0.03, 0, 0.13, 0.72), (0.86, 0, 0.97, 0.72)]), _hex(0x5B3A24), _hex(0x7A5236))
    _ground(canvas, 0.66, _hex(0x6E9144), _hex(0x4A6B2E), 0.01)
    crowns = [(0.0, 0.02, 0.17), (0.2, -0.03, 0.14), (0.4, -0.05, 0.14), (0.6, -0.05, 0.14), (0.8, -0.03, 0.14), (1.0, 0.02, 0.17)]
    canvas.drawPath(circles(crowns), paint(_hex(0x2F6B35)))


def _purple_rug(canvas: skia.Canvas, other: int) -> None:
    _forest(canvas, other)
    fringe = skia.Path()
    for i in range(11):
        fringe.addRect(skia.Rect.MakeXYWH(0.0 + 0.094 * i, 0.96, 0.05, 0.04))
    canvas.drawPath(fringe, paint(_hex(0xE9D9F5)))
    _graded(canvas, polygon([(0.11, 0.73), (0.89, 0.73), (1.02, 0.97), (-0.02, 0.97)]), _hex(0x7A35B4), _hex(0x9A4FD6))
    canvas.drawPath(polygon([(0.15, 0.76), (0.85, 0.76), (0.95, 0.935), (0.05, 0.935)]), paint(_hex(0xE3BDF5), stroke=0.018))


@functools.cache
def _stalks(foot: float, height: float, shift: float) -> tuple[skia.Path, skia.Path]:
    """A row of wheat: stalks and ears of three pairs of grains and one at the tip."""
    stems, ears = skia.Path(), skia.Path()
    for i in range(9):
        x = -0.03 + shift + 0.13 * i
        top = foot - height * (1.0 if i % 2 == 0 else 0.84)
        stems.addRect(skia.Rect.MakeLTRB(x - 0.009, top, x + 0.009, foot))
        ears.addOval(skia.Rect.MakeLTRB(x - 0.022, top - 0.12, x + 0.022, top - 0.03))
        for y in (-0.03, 0.03, 0.09):
            for side in (-1, 1):
                ears.addPath(_grain(x, top + y + 0.02, x + side * 0.05, top + y - 0.05))
    return stems, ears


def _grain(x: float, y: float, tip_x: float, tip_y: float) -> skia.Path:
    path = skia.Path()
    path.moveTo(x, y)
    path.quadTo(tip_x, y, tip_x, tip_y)
    path.quadTo(x, tip_y, x, y)
    path.close()
    return path


def _wheat(canvas: skia.Canvas, foot: float, height: float, shift: float, colour: Colour) -> None:
    stems, ears = _stalks(foot, height, shift)
    canvas.drawPath(stems, paint(darker(colour, 0.22)))
    canvas.drawPath(ears, paint(colour))


def _wheat_field(canvas: skia.Canvas, other: int) -> None:
    _sky(canvas, other, 0.5)
    _layer(canvas, 0.46, 1.05, _hex(0xE9BF52), _hex(0xB9802A))
    _wheat(canvas, 0.8, 0.42, 0.05, _hex(0xD79E35))
    _wheat(canvas, 1.0, 0.46, 0.02 * other, _hex(0xF4CB5C))


def _wheat_field_front(canvas: skia.Canvas, other: int) -> None:
    _wheat(canvas, 1.1, 0.15, 0.05 + 0.02 * other, _hex(0xFBDD7E))


def _autumn_tree(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.76, (_hex(0xBFE0F2), _hex(0xF6E3BC))[other], _hex(0xFBF3DC))
    _ground(canvas, 0.72, _hex(0xC9A24A), _hex(0x9A6A2C))
    trunk = smooth([(0.06, 0.1), (0.2, 0.1), (0.16, 0.5), (0.27, 0.86), (0.1, 0.8), (-0.05, 0.86), (0.04, 0.5)])
    _graded(canvas, trunk, _hex(0x5E3820), _hex(0x7E4E2C))
    deep = [(0.02, 0.32, 0.13), (0.3, 0.26, 0.13), (0.52, 0.17, 0.13), (0.74, 0.11, 0.12), (0.9, 0.1, 0.1)]
    bright = [(0.0, 0.12, 0.17), (0.22, 0.1, 0.17), (0.44, 0.04, 0.15), (0.66, 0.0, 0.13), (0.86, -0.02, 0.11)]
    canvas.drawPath(circles(deep), paint(_hex(0xCC4A1E)))
    canvas.drawPath(circles(bright), paint(_hex(0xF28A23)))
    leaves = [(0.06, 0.94), (0.28, 0.91), (0.5, 0.95), (0.72, 0.91), (0.93, 0.94), (0.94, 0.8), (0.92, 0.4), (0.85, 0.6)]
    canvas.drawPath(circles([(x, y, 0.028) for x, y in leaves]), paint(_hex(0xE4581E)))


@functools.cache
def _eiffel() -> tuple[skia.Path, skia.Path]:
    """The tower's iron, and its floors; centred at x = 0, foot at y = 0.78."""
    iron = skia.Path()
    for side in (-1, 1):
        iron.moveTo(side * 0.012, 0.03)
        iron.quadTo(side * 0.03, 0.5, side * 0.22, 0.79)
        iron.lineTo(side * 0.13, 0.79)
        iron.quadTo(side * 0.06, 0.6, 0, 0.58)
        iron.lineTo(0, 0.03)
        iron.close()
    floors = boxes([(-0.125, 0.565, 0.125, 0.61), (-0.075, 0.38, 0.075, 0.415), (-0.02, 0.0, 0.02, 0.06)])
    return iron, floors


def _eiffel_tower(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.8, (_hex(0x9CC8EE), _hex(0xC9B4E8))[other], _hex(0xFFE9DC))
    _cloud(canvas, 0.78, 0.12, 0.16)
    canvas.save()
    canvas.translate(0.18, 0)
    iron, floors = _eiffel()
    canvas.drawPath(iron, paint(_hex(0x7A5A48)))
    canvas.drawPath(floors, paint(_hex(0x553C30)))
    for y, half in ((0.2, 0.024), (0.3, 0.036), (0.47, 0.06), (0.53, 0.07)):  # lattice
        line(canvas, [(-half, y), (half, y)], _hex(0xC9A88C), 0.012)
    canvas.restore()
    canvas.drawPath(circles([(x, 0.78, 0.065) for x in (0.5, 0.62, 0.74, 0.86, 0.98)]), paint(_hex(0x4B8F49)))
    _ground(canvas, 0.78, _hex(0x93CC62), DEEP_GRASS, 0.005)


def _water(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.3, (_hex(0xBFE6FA), _hex(0xFBE0C4))[other], _hex(0xF2FBFF))
    colours = (_hex(0x1F7FCB), _hex(0x2C93D8), _hex(0x1F7FCB), _hex(0x2C93D8))
    for i, colour in enumerate(colours):
        canvas.drawPath(_waves(0.3 + 0.14 * i, 0.018, 4, 0.12 * (i % 2) + 0.05 * other), paint(lighter(colour, 0.6)))
        _graded(canvas, _waves(0.325 + 0.14 * i, 0.018, 4, 0.12 * (i % 2) + 0.05 * other), lighter(colour, 0.1), colour)


def _water_front(canvas: skia.Canvas, other: int) -> None:
    canvas.drawPath(_waves(0.795, 0.012, 5, 0.05 * other), paint(_hex(0x2587D2), 0.82))
    canvas.drawPath(ellipse(0.5, 0.83, 0.42, 0.05), paint(WHITE, 0.75, stroke=0.018))
    canvas.drawPath(ellipse(0.5, 0.86, 0.56, 0.09), paint(_hex(0x9FDCF7), 0.8, stroke=0.018))


@functools.cache
def _splash() -> skia.Path:
    """A crown of splashing milk with drops above it, about 2 wide, its foot at the origin."""
    crown = skia.Path()
    crown.moveTo(-0.6, 0.3)
    for tip, valley in ((-0.95, -0.45), (0.0, 0.45), (0.95, 0.6)):
        crown.quadTo(tip * 0.9, -0.3, tip, -0.75)
        crown.quadTo(tip * 0.55, -0.35, valley, -0.2 if valley < 0.6 else 0.3)
    crown.close()
    crown.addPath(circles([(-1.1, -1.1, 0.2), (0.0, -1.35, 0.26), (1.1, -1.1, 0.2)]))
    return crown


def _crown(canvas: skia.Canvas, x: float, foot: float, size: float) -> None:
    canvas.save()
    canvas.translate(x, foot)
    canvas.scale(size, size)
    canvas.drawPath(_splash(), paint(_hex(0xC2AB7C), stroke=0.2))
    canvas.drawPath(_splash(), paint(_hex(0xFFF9EA)))
    canvas.restore()


def _milk(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.42, (_hex(0x6CC3F2), _hex(0x7FB4F5))[other], _hex(0xB5E2FA))
    for i in range(3):
        y, shift = 0.36 + 0.17 * i, 0.15 * (i % 2) + 0.06 * other
        canvas.drawPath(_waves(y, 0.04, 3, shift), paint(_hex(0xCDB88A)))
        _graded(canvas, _waves(y + 0.03, 0.04, 3, shift), _hex(0xFFFBF0), _hex(0xF0E2C2))
    _crown(canvas, 0.15, 0.42, 0.15)
    _crown(canvas, 0.87, 0.55, 0.12)


def _milk_front(canvas: skia.Canvas, other: int) -> None:
    canvas.drawPath(_waves(0.8, 0.03, 4, 0.06 * other), paint(_hex(0xCDB88A)))
    _graded(canvas, _waves(0.825, 0.03, 4, 0.06 * other), _hex(0xFFFBF0), _hex(0xF4E8CC))


def _sunflower(canvas: skia.Canvas, x: float, y: float, size: float) -> None:
    line(canvas, [(x, y), (x, y + 4 * size)], _hex(0x2F7A2B), 0.03)
    petals = [(x + 0.62 * size * math.sin(i * math.pi / 4), y - 0.62 * size * math.cos(i * math.pi / 4), 0.38 * size) for i in range(8)]
    canvas.drawPath(circles(petals), paint(_hex(0xFFC91E)))
    canvas.drawPath(ellipse(x, y, 0.5 * size), paint(_hex(0x6A3B16)))


def _sunflowers(canvas: skia.Canvas, other: int) -> None:
    _sky(canvas, other, 0.42)
    _ground(canvas, 0.36, _hex(0x7CC04E), _hex(0x3F8F35))
    far = ((0.3, 0.2, 0.09), (0.5, 0.13, 0.09), (0.7, 0.2, 0.09))
    near = ((0.1, 0.17, 0.12), (0.9, 0.2, 0.12), (0.08, 0.52, 0.12), (0.93, 0.56, 0.12))
    for x, y, size in far + near:
        _sunflower(canvas, x, y + 0.03 * other, size)
    _ground(canvas, 0.82, _hex(0x74BE46), _hex(0x3F8F35), 0.01)


def _sunflowers_front(canvas: skia.Canvas, other: int) -> None:
    for x in (0.07, 0.92):
        _sunflower(canvas, x, 0.86 + 0.02 * other, 0.1)


def _mirror(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.6, (_hex(0x5A3F5C), _hex(0x4A4468))[other], _hex(0x8A6480))
    _layer(canvas, 0.58, 1.05, _hex(0x4A3040), _hex(0x33202E))
    _graded(canvas, ellipse(0.5, 0.79, 0.53, 0.21), _hex(0xF2CE6A), _hex(0xB98A2C))
    _graded(canvas, ellipse(0.5, 0.785, 0.47, 0.165), _hex(0x9FC4DE), _hex(0xE3F3FC))
    canvas.save()
    canvas.clipPath(ellipse(0.5, 0.785, 0.47, 0.165), doAntiAlias=True)
    glare = [polygon([(x, 0.6), (x + width, 0.6), (x + width - 0.2, 0.97), (x - 0.2, 0.97)]) for x, width in ((0.2, 0.1), (0.36, 0.04), (0.98, 0.09))]
    for streak in glare:
        canvas.drawPath(streak, paint(WHITE, 0.95))
    canvas.restore()
    for x, y, size in ((0.12, 0.63, 0.1), (0.9, 0.66, 0.08)):
        canvas.drawPath(star(x, y, size, 4, 0.3), paint(WHITE))


def _person(canvas: skia.Canvas, x: float, height: float, foot: float, coat: Colour, legs: Colour) -> None:
    """A simplified passer-by."""
    unit = height / 4
    canvas.drawPath(boxes([(x + dx * unit, foot - 1.6 * unit, x + (dx + 0.25) * unit, foot) for dx in (-0.3, 0.05)]), paint(legs))
    canvas.drawPath(rounded(x - 0.5 * unit, foot - 3.1 * unit, x + 0.5 * unit, foot - 1.3 * unit, 0.35 * unit), paint(coat))
    canvas.drawPath(ellipse(x, foot - 3.55 * unit, 0.38 * unit, 0.45 * unit), paint(_hex(0xE9B791)))


def _shop(canvas: skia.Canvas, left: float, right: float, wall: Colour, awning: Colour) -> None:
    canvas.drawPath(boxes([(left, 0, right, 0.7)]), paint(wall))
    _graded(canvas, boxes([(left + 0.03, 0.2, right - 0.03, 0.66)]), _hex(0xBFE3EC), _hex(0x7FB0C4))
    width = (right - left) / 6
    canvas.drawPath(boxes([(left, 0.06, right, 0.2)]), paint(WHITE))
    canvas.drawPath(boxes([(left + 2 * i * width, 0.06, left + (2 * i + 1) * width, 0.2) for i in range(3)]), paint(awning))


def _sidewalk(canvas: skia.Canvas, other: int) -> None:
    _shop(canvas, -0.02, 0.5, (_hex(0x8A5A44), _hex(0x6F6A5A))[other], _hex(0xD8402F))
    _shop(canvas, 0.5, 1.02, _hex(0x5B6E86), _hex(0x2F8F5B))
    _layer(canvas, 0.68, 1.05, _hex(0xC9C4BC), _hex(0xB1ABA2))
    for start, end in (((0.25, 0.68), (0.04, 1.0)), ((0.5, 0.68), (0.5, 1.0)), ((0.75, 0.68), (0.96, 1.0)), ((0.0, 0.82), (1.0, 0.82))):
        line(canvas, [start, end], _hex(0x8F8880), 0.014)
    for x, coat in ((0.27, 0x7A4FA0), (0.74, 0xC77B28)):
        _person(canvas, x, 0.5, 0.74, _hex(coat), _hex(0x33333F))
    for x, coat in ((0.08, 0x2F5FA8), (0.92, 0xB8324A)):
        _person(canvas, x, 0.66, 0.84, _hex(coat), _hex(0x33333F))


def _dirt_road(canvas: skia.Canvas, other: int) -> None:
    _sky(canvas, other, 0.42)
    canvas.drawPath(circles([(0.86, 0.33, 0.1), (0.97, 0.28, 0.12), (0.74, 0.37, 0.06)]), paint(_hex(0x3F8541)))
    _ground(canvas, 0.36, _hex(0xA2C95A), _hex(0x6B9A3A), 0.02)
    road = skia.Path()
    road.moveTo(-0.02, 0.42)
    road.cubicTo(0.5, 0.44, 0.9, 0.6, 1.0, 1.05)
    road.lineTo(0.0, 1.05)
    road.cubicTo(0.3, 0.7, 0.2, 0.62, -0.02, 0.56)
    road.close()
    _graded(canvas, road, _hex(0xC9935A), _hex(0x9A6433))
    for start, control, end in (((0.0, 0.46), (0.7, 0.55), (0.76, 1.05)), ((0.0, 0.52), (0.5, 0.62), (0.24, 1.05))):
        curve(canvas, start, control, end, _hex(0x7A4B24), 0.04)


def _white_rug(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.52, (_hex(0x3F8A86), _hex(0x4A7F98))[other], _hex(0x63AAA2))
    _layer(canvas, 0.5, 0.55, WHITE, _hex(0xE3E0DA))
    _layer(canvas, 0.55, 1.05, _hex(0x7E4A2A), _hex(0x9C6238))
    steps = [2 * math.pi * i / 22 for i in range(22)]
    rim = [(0.5 + 0.45 * math.cos(step), 0.81 + 0.13 * math.sin(step), 0.06) for step in steps]
    canvas.drawPath(circles([(x, y + 0.015, radius) for x, y, radius in rim]), paint(_hex(0xC9BFB4)))
    fluff = circles(rim)
    fluff.addPath(ellipse(0.5, 0.81, 0.46, 0.14))
    canvas.drawPath(fluff, paint(_hex(0xFBF8F2)))


def _studio(wall: Colour) -> Draw:
    """A plain wall with a soft vignette, and a floor in front of it."""
    edge, floor = darker(wall, 0.16), lighter(wall, 0.3)

    def draw(canvas: skia.Canvas, other: int) -> None:
        back = paint(wall)
        stops = [skia.Color4f(*colour, 1.0).toColor() for colour in (lighter(wall, 0.22), wall, edge)]
        back.setShader(skia.GradientShader.MakeRadial(skia.Point(0.42 + 0.05 * other, 0.4), 0.85, stops, [0.0, 0.5, 1.0]))
        canvas.drawPath(boxes([(-0.1, 0, 1.1, 1.05)]), back)
        _layer(canvas, 0.72 + 0.03 * other, 1.05, mix(floor, edge, 0.35), floor)

    return draw


def _lawn(canvas: skia.Canvas, other: int) -> None:
    _sky(canvas, other, 0.46)
    _cloud(canvas, 0.16, 0.13, 0.17)
    _cloud(canvas, 0.84, 0.2 - 0.06 * other, 0.13)
    _ground(canvas, 0.42, _hex(0x9BD85E), _hex(0x57A83F), 0.02)
    stripes = [polygon([(0.5 + 0.2 * i, 0.44), (0.6 + 0.2 * i, 0.44), (0.68 + 0.36 * i, 1.05), (0.5 + 0.36 * i, 1.05)]) for i in range(-3, 3)]
    for stripe in stripes:
        canvas.drawPath(stripe, paint(_hex(0x3F8F35), 0.4))


def _room(canvas: skia.Canvas, other: int) -> None:
    _layer(canvas, 0, 0.7, (_hex(0xF6D7AE), _hex(0xF3CFC0))[other], _hex(0xEBC295))
    _layer(canvas, 0.7, 1.05, _hex(0xB08763), _hex(0x8F6747))
    canvas.drawPath(boxes([(0.66, 0.04, 0.98, 0.42)]), paint(WHITE))
    _graded(canvas, boxes([(0.69, 0.07, 0.81, 0.39), (0.83, 0.07, 0.95, 0.39)]), _hex(0x7CC4F0), _hex(0xD8F1FB))
    _graded(canvas, rounded(-0.12, 0.44, 1.12, 0.74, 0.06), _hex(0xD0574A), _hex(0xA83E36))  # a sofa
    _graded(canvas, rounded(-0.1, 0.54, 0.13, 0.8, 0.06), _hex(0xE06A5A), _hex(0xB84A40))
    _graded(canvas, rounded(0.87, 0.54, 1.1, 0.8, 0.06), _hex(0xE06A5A), _hex(0xB84A40))
    line(canvas, [(0.12, 0.2), (0.12, 0.44)], _hex(0x6A4A34), 0.025)  # a lamp
    _graded(canvas, polygon([(0.06, 0.05), (0.18, 0.05), (0.25, 0.24), (-0.01, 0.24)]), _hex(0xFFF2B0), _hex(0xF9CE5A))


def _either_way(draw: Draw) -> Draw:
    """From a drawing in two versions, 0 and 1, one in four variations: the odd ones are mirrored."""

    def drawn(canvas: skia.Canvas, variation: int) -> None:
        canvas.save()
        if variation % 2 == 1:
            canvas.translate(1, 0)
            canvas.scale(-1, 1)
        draw(canvas, variation // 2)
        canvas.restore()

    return drawn


def _setting(back: Draw, front: Draw | None = None) -> Setting:
    return Setting(_either_way(back), None if front is None else _either_way(front))


SETTINGS: MappingProxyType[str, Setting] = MappingProxyType(
    {
        "jungle": _setting(_jungle, _jungle_front),
        "snow": _setting(_snow),
        "beach": _setting(_beach),
        "cobblestone": _setting(_cobblestone),
        "pink_fabric": _setting(_pink_fabric),
        "wooden_floor": _setting(_wooden_floor),
        "city": _setting(_city),
        "mountain": _setting(_mountain),
        "blue_house": _setting(_blue_house),
        "purple_rug": _setting(_purple_rug),
        "wheat_field": _setting(_wheat_field, _wheat_field_front),
        "autumn_tree": _setting(_autumn_tree),
        "eiffel_tower": _setting(_eiffel_tower),
        "water": _setting(_water, _water_front),
        "milk": _setting(_milk, _milk_front),
        "sunflowers": _setting(_sunflowers, _sunflowers_front),
        "mirror": _setting(_mirror),
        "sidewalk": _setting(_sidewalk),
        "dirt_road": _setting(_dirt_road),
        "white_rug": _setting(_white_rug),
        "studio_cream": _setting(_studio(_hex(0xEADFC8))),
        "studio_blue": _setting(_studio(_hex(0x8FB8E0))),
        "studio_green": _setting(_studio(_hex(0x9CCBA6))),
        "studio_pink": _setting(_studio(_hex(0xF2C4CF))),
        "lawn": _setting(_lawn),
        "room": _setting(_room),
    }
)
