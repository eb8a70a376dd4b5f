"""Settings that people made: streets, floors, fabric, rooms, ... (see contexts.py)."""

import functools
import math

import skia

from proxy_jax.data.microworld.drawing import Box, boxes, circles, curve, darker, ellipse, lighter, line, mix, paint, polygon, rounded, star
from proxy_jax.data.microworld.looks import Colour
from proxy_jax.data.microworld.scenery import DEEP_GRASS, GRASS, WHITE, Draw, cloud, graded, ground, layer, rgb


@functools.cache
def _cobbles() -> skia.Path:
    path = skia.Path()
    for row in range(6):
        top, height = 0.3 + 0.022 * row * row / 2 + 0.07 * row, 0.07 + 0.022 * (row + 0.5)
        for column in range(8):
            left = -0.08 + (column - 0.5 * (row % 2)) * 0.18
            path.addRoundRect(skia.Rect.MakeLTRB(left + 0.011, top + 0.01, left + 0.169, top + height - 0.01), 0.05, 0.05)
    return path


def cobblestone(canvas: skia.Canvas, other: int) -> None:
    """A street of regular cobbles before a wall."""
    layer(canvas, 0, 0.3, (rgb(0xC89A78), rgb(0xBFA07F))[other], rgb(0xA67858))
    layer(canvas, 0.29, 1.05, rgb(0x55565E), rgb(0x3F4048))
    graded(canvas, _cobbles(), rgb(0x9A9CA6), rgb(0xB9BBC4))


def pink_fabric(canvas: skia.Canvas, other: int) -> None:
    """Pink fabric that hangs and lies in folds."""
    layer(canvas, 0, 1.05, (rgb(0xF58DBB), rgb(0xF293CB))[other], rgb(0xE8669F))
    for i in range(6):  # folds fall from the top and run out forwards
        x = 0.02 + 0.192 * i
        out = 0.5 + (x - 0.5) * 1.9
        for shift, colour in ((0, rgb(0xC93F80)), (0.05, rgb(0xFFC3DF))):
            curve(canvas, (x + shift, -0.05), (x + shift + 0.03 * other, 0.62), (out + 1.3 * shift, 1.05), colour, 0.04)


def wooden_floor(canvas: skia.Canvas, other: int) -> None:
    """A floor of planks."""
    layer(canvas, 0, 0.26, (rgb(0xE9E0CF), rgb(0xDDE1DA))[other], rgb(0xD8CBB4))
    layer(canvas, 0.25, 0.31, WHITE, rgb(0xDED8CC))
    layer(canvas, 0.31, 1.05, rgb(0xA9682F), rgb(0xCB8743))
    planks = [polygon([(0.5 + 0.14 * i, 0.31), (0.64 + 0.14 * i, 0.31), (0.74 + 0.24 * i, 1.05), (0.5 + 0.24 * i, 1.05)]) for i in range(-5, 5)]
    for i, plank in enumerate(planks):
        if i % 2 == other:
            canvas.drawPath(plank, paint(rgb(0xDDA05C), 0.65))
        canvas.drawPath(plank, paint(rgb(0x6E3E18), stroke=0.012))


def _tower_block(canvas: skia.Canvas, box: Box, colour: Colour, lit: Colour) -> None:
    """A tall building with a regular grid of windows."""
    left, top, right, bottom = box
    graded(canvas, boxes([box]), lighter(colour, 0.1), colour)
    size = (right - left) / 5
    rows = int((bottom - top) / size / 2)
    windows = [(left + size * x, top + size * (1 + 2 * y), left + size * (x + 1), top + size * (2.2 + 2 * y)) for x in (1, 3) for y in range(rows)]
    canvas.drawPath(boxes(windows), paint(lit))


def city(canvas: skia.Canvas, other: int) -> None:
    """Tall buildings with lit windows behind a street."""
    layer(canvas, 0, 0.78, (rgb(0x7F9FDD), rgb(0x9B8FD6))[other], rgb(0xFBD9B5))
    far = [(0.12, 0.3, 0.3, 0.8), (0.3, 0.12, 0.44, 0.8), (0.44, 0.22, 0.6, 0.8), (0.6, 0.08, 0.74, 0.8), (0.74, 0.26, 0.9, 0.8)]
    canvas.drawPath(boxes(far), paint(rgb(0x8C9AC4)))
    lit = rgb(0xFFE38A)
    _tower_block(canvas, (-0.03, 0.05, 0.2, 0.8), rgb(0x3F4F7E), lit)
    _tower_block(canvas, (0.8, 0.12 - 0.06 * other, 1.03, 0.8), rgb(0x584A78), lit)
    layer(canvas, 0.78, 1.05, rgb(0x6A6D78), rgb(0x4A4C56))
    canvas.drawPath(boxes([(x, 0.925, x + 0.16, 0.95) for x in (0.02, 0.3, 0.58, 0.86)]), paint(WHITE))


def _window(canvas: skia.Canvas, left: float, top: float, size: float) -> None:
    canvas.drawPath(boxes([(left, top, left + size, top + 1.2 * size)]), paint(WHITE))
    rim, pane = 0.14 * size, 0.32 * size
    corners = [(left + x, top + y) for x in (rim, size - rim - pane) for y in (rim, 1.2 * size - rim - 1.35 * pane)]
    canvas.drawPath(boxes([(x, y, x + pane, y + 1.35 * pane) for x, y in corners]), paint(rgb(0x35507E)))


def blue_house(canvas: skia.Canvas, other: int) -> None:
    """A blue house with a red roof on a meadow."""
    layer(canvas, 0, 0.78, (rgb(0xCFEBF7), rgb(0xF7E6CF))[other], rgb(0xF4FAF4))
    graded(canvas, boxes([(0.0, 0.34, 0.8, 0.8)]), rgb(0x3A7BE0), rgb(0x2A5FBE))
    _window(canvas, 0.04, 0.42, 0.15)
    _window(canvas, 0.61, 0.42, 0.15)
    canvas.drawPath(rounded(0.33, 0.48, 0.49, 0.82, 0.02), paint(WHITE))
    canvas.drawPath(boxes([(0.6, 0.05, 0.69, 0.3)]), paint(rgb(0x9A4436)))
    graded(canvas, polygon([(0.4, 0.02), (0.88, 0.37), (-0.08, 0.37)]), rgb(0xB5402F), rgb(0xD95B43))
    canvas.drawPath(circles([(0.94, 0.52, 0.1), (0.98, 0.4, 0.09), (0.9, 0.66, 0.1)]), paint(rgb(0x4F9E46)))
    ground(canvas, 0.76, GRASS, DEEP_GRASS, 0.01)


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


def eiffel_tower(canvas: skia.Canvas, other: int) -> None:
    """The Eiffel Tower over trees."""
    layer(canvas, 0, 0.8, (rgb(0x9CC8EE), rgb(0xC9B4E8))[other], rgb(0xFFE9DC))
    cloud(canvas, 0.78, 0.12, 0.16)
    canvas.save()
    canvas.translate(0.18, 0)
    iron, floors = _eiffel()
    canvas.drawPath(iron, paint(rgb(0x7A5A48)))
    canvas.drawPath(floors, paint(rgb(0x553C30)))
    for y, half in ((0.2, 0.024), (0.3, 0.036), (0.47, 0.06), (0.53, 0.07)):  # lattice
        line(canvas, [(-half, y), (half, y)], rgb(0xC9A88C), 0.012)
    canvas.restore()
    canvas.drawPath(circles([(x, 0.78, 0.065) for x in (0.5, 0.62, 0.74, 0.86, 0.98)]), paint(rgb(0x4B8F49)))
    ground(canvas, 0.78, rgb(0x93CC62), DEEP_GRASS, 0.005)


def mirror(canvas: skia.Canvas, other: int) -> None:
    """A round mirror with a frame, lying in the dark."""
    layer(canvas, 0, 0.6, (rgb(0x5A3F5C), rgb(0x4A4468))[other], rgb(0x8A6480))
    layer(canvas, 0.58, 1.05, rgb(0x4A3040), rgb(0x33202E))
    graded(canvas, ellipse(0.5, 0.79, 0.53, 0.21), rgb(0xF2CE6A), rgb(0xB98A2C))
    graded(canvas, ellipse(0.5, 0.785, 0.47, 0.165), rgb(0x9FC4DE), rgb(0xE3F3FC))
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
    canvas.drawPath(ellipse(x, foot - 3.55 * unit, 0.38 * unit, 0.45 * unit), paint(rgb(0xE9B791)))


def _shop(canvas: skia.Canvas, left: float, right: float, wall: Colour, awning: Colour) -> None:
    canvas.drawPath(boxes([(left, 0, right, 0.7)]), paint(wall))
    graded(canvas, boxes([(left + 0.03, 0.2, right - 0.03, 0.66)]), rgb(0xBFE3EC), rgb(0x7FB0C4))
    width = (right - left) / 6
    canvas.drawPath(boxes([(left, 0.06, right, 0.2)]), paint(WHITE))
    canvas.drawPath(boxes([(left + 2 * i * width, 0.06, left + (2 * i + 1) * width, 0.2) for i in range(3)]), paint(awning))


def sidewalk(canvas: skia.Canvas, other: int) -> None:
    """A sidewalk with shops and passers-by."""
    _shop(canvas, -0.02, 0.5, (rgb(0x8A5A44), rgb(0x6F6A5A))[other], rgb(0xD8402F))
    _shop(canvas, 0.5, 1.02, rgb(0x5B6E86), rgb(0x2F8F5B))
    layer(canvas, 0.68, 1.05, rgb(0xC9C4BC), rgb(0xB1ABA2))
    for start, end in (((0.25, 0.68), (0.04, 1.0)), ((0.5, 0.68), (0.5, 1.0)), ((0.75, 0.68), (0.96, 1.0)), ((0.0, 0.82), (1.0, 0.82))):
        line(canvas, [start, end], rgb(0x8F8880), 0.014)
    for x, coat in ((0.27, 0x7A4FA0), (0.74, 0xC77B28)):
        _person(canvas, x, 0.5, 0.74, rgb(coat), rgb(0x33333F))
    for x, coat in ((0.08, 0x2F5FA8), (0.92, 0xB8324A)):
        _person(canvas, x, 0.66, 0.84, rgb(coat), rgb(0x33333F))


def white_rug(canvas: skia.Canvas, other: int) -> None:
    """A white rug on a floor."""
    layer(canvas, 0, 0.52, (rgb(0x3F8A86), rgb(0x4A7F98))[other], rgb(0x63AAA2))
    layer(canvas, 0.5, 0.55, WHITE, rgb(0xE3E0DA))
    layer(canvas, 0.55, 1.05, rgb(0x7E4A2A), rgb(0x9C6238))
    steps = [2 * math.pi * i / 22 for i in range(22)]
    rim = [(0.5 + 0.45 * math.cos(step), 0.81 + 0.13 * math.sin(step), 0.06) for step in steps]
    canvas.drawPath(circles([(x, y + 0.015, radius) for x, y, radius in rim]), paint(rgb(0xC9BFB4)))
    fluff = circles(rim)
    fluff.addPath(ellipse(0.5, 0.81, 0.46, 0.14))
    canvas.drawPath(fluff, paint(rgb(0xFBF8F2)))


def studio(wall: Colour) -> Draw:
    """A plain wall with a soft vignette, and a floor in front of it."""
    edge, floor = darker(wall, 0.16), lighter(wall, 0.3)

    def draw(canvas: skia.Canvas, other: int) -> None:
        back = paint(wall)
        stops = [skia.Color4f(*colour, 1.0).toColor() for colour in (lighter(wall, 0.22), wall, edge)]
        back.setShader(skia.GradientShader.MakeRadial(skia.Point(0.42 + 0.05 * other, 0.4), 0.85, stops, [0.0, 0.5, 1.0]))
        canvas.drawPath(boxes([(-0.1, 0, 1.1, 1.05)]), back)
        layer(canvas, 0.72 + 0.03 * other, 1.05, mix(floor, edge, 0.35), floor)

    return draw


def room(canvas: skia.Canvas, other: int) -> None:
    """A living room with a sofa, a lamp and windows."""
    layer(canvas, 0, 0.7, (rgb(0xF6D7AE), rgb(0xF3CFC0))[other], rgb(0xEBC295))
    layer(canvas, 0.7, 1.05, rgb(0xB08763), rgb(0x8F6747))
    canvas.drawPath(boxes([(0.66, 0.04, 0.98, 0.42)]), paint(WHITE))
    graded(canvas, boxes([(0.69, 0.07, 0.81, 0.39), (0.83, 0.07, 0.95, 0.39)]), rgb(0x7CC4F0), rgb(0xD8F1FB))
    graded(canvas, rounded(-0.12, 0.44, 1.12, 0.74, 0.06), rgb(0xD0574A), rgb(0xA83E36))  # a sofa
    graded(canvas, rounded(-0.1, 0.54, 0.13, 0.8, 0.06), rgb(0xE06A5A), rgb(0xB84A40))
    graded(canvas, rounded(0.87, 0.54, 1.1, 0.8, 0.06), rgb(0xE06A5A), rgb(0xB84A40))
    line(canvas, [(0.12, 0.2), (0.12, 0.44)], rgb(0x6A4A34), 0.025)  # a lamp
    graded(canvas, polygon([(0.06, 0.05), (0.18, 0.05), (0.25, 0.24), (-0.01, 0.24)]), rgb(0xFFF2B0), rgb(0xF9CE5A))
