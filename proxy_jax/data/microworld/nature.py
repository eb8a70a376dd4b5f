"""Settings out of town: jungle, beach, fields, water, ... (see contexts.py)."""

import functools
import math

import skia

from proxy_jax.data.microworld.drawing import Point, boxes, circles, curve, darker, ellipse, lighter, line, paint, polygon, smooth
from proxy_jax.data.microworld.looks import Colour
from proxy_jax.data.microworld.scenery import BARK, WHITE, cloud, graded, ground, layer, rgb, sky, waves


def _leaf(canvas: skia.Canvas, foot: Point, tip: Point, width: float, colour: Colour) -> None:
    """A big pointed leaf with a midrib."""
    dx, dy = tip[0] - foot[0], tip[1] - foot[1]
    middle, across = ((foot[0] + tip[0]) / 2, (foot[1] + tip[1]) / 2), (-dy * width, dx * width)
    path = skia.Path()
    path.moveTo(*foot)
    path.quadTo(middle[0] + across[0], middle[1] + across[1], *tip)
    path.quadTo(middle[0] - across[0], middle[1] - across[1], *foot)
    path.close()
    graded(canvas, path, lighter(colour, 0.15), darker(colour, 0.2))
    line(canvas, [foot, tip], lighter(colour, 0.35), 0.012)


def jungle(canvas: skia.Canvas, other: int) -> None:
    """Big leaves on both sides, trunks and a liana."""
    layer(canvas, 0, 1.05, (rgb(0x2C7A45), rgb(0x2A7A5C))[other], rgb(0xA5D66A))
    ground(canvas, 0.72, rgb(0x4B7A32), rgb(0x2B4D23))
    canvas.drawPath(boxes([(0.04, 0, 0.12, 0.8), (0.86, 0, 0.95, 0.8)]), paint(rgb(0x5A4630)))
    curve(canvas, (0.1, 0.02), (0.5, 0.3 - 0.06 * other), (0.9, 0.02), rgb(0x3D5B24), 0.025)
    dark, bright = rgb(0x1D6B36), rgb(0x3DA548)
    for side in (0, 1):
        edge, inward = side, 1 - 2 * side
        _leaf(canvas, (edge, -0.05), (edge + inward * 0.48, 0.14), 0.32, dark)
        _leaf(canvas, (edge - inward * 0.02, 0.05), (edge + inward * 0.26, 0.42), 0.34, bright)
        _leaf(canvas, (edge, 0.74), (edge + inward * 0.22, 0.46), 0.34, dark)


def jungle_front(canvas: skia.Canvas, other: int) -> None:
    """Leaves in the lower corners."""
    for side in (0, 1):
        edge, inward = side, 1 - 2 * side
        _leaf(canvas, (edge, 1.04), (edge + inward * 0.17, 0.68 + 0.04 * other), 0.34, rgb(0x3DA548))
        _leaf(canvas, (edge, 1.04), (edge + inward * 0.36, 0.9), 0.3, rgb(0x2A8A3E))


def _pine(canvas: skia.Canvas, x: float, foot: float, height: float, needles: Colour, snow: bool) -> None:
    canvas.drawPath(boxes([(x - 0.02, foot - 0.1 * height, x + 0.02, foot)]), paint(BARK))
    for i in range(3):
        top, half = foot - height * (1 - 0.24 * i), height * (0.2 + 0.07 * i)
        bottom = top + 0.42 * height
        graded(canvas, polygon([(x, top), (x + half, bottom), (x - half, bottom)]), needles, darker(needles))
        if snow:
            cap = [(0.0, 0.0), (0.6, 0.25), (0.0, 0.19), (-0.6, 0.25)]
            canvas.drawPath(polygon([(x + dx * half, top + dy * height) for dx, dy in cap]), paint(WHITE))


def snow(canvas: skia.Canvas, other: int) -> None:
    """Snow under a pale sky, with pines."""
    layer(canvas, 0, 0.66, (rgb(0x9DBAD6), rgb(0xA9AFD6))[other], rgb(0xDCE7F2))
    ground(canvas, 0.56, rgb(0xE6EEF8), rgb(0xD5E2F2), 0.06)
    _pine(canvas, 0.1, 0.72, 0.62, rgb(0x2F6B5B), snow=True)
    _pine(canvas, 0.92, 0.68, 0.5 + 0.08 * other, rgb(0x2F6B5B), snow=True)
    ground(canvas, 0.7, WHITE, rgb(0xDDE8F6))
    flakes = [(x, y, 0.018) for x, y in ((0.3, 0.06), (0.5, 0.1), (0.7, 0.05), (0.26, 0.28), (0.76, 0.26), (0.03, 0.12), (0.96, 0.1))]
    canvas.drawPath(circles(flakes), paint(WHITE))


def _palm(canvas: skia.Canvas, foot: Point, top: Point) -> None:
    curve(canvas, foot, (foot[0] - 0.03, (foot[1] + top[1]) / 2), top, rgb(0x9A6B3C), 0.05)
    for dx, dy in ((-0.2, 0.12), (-0.2, -0.05), (0.2, -0.07), (0.3, 0.06), (0.14, 0.2)):
        _leaf(canvas, top, (top[0] + dx, top[1] + dy), 0.26, rgb(0x3E9A48))


def beach(canvas: skia.Canvas, other: int) -> None:
    """Sand before the sea, a palm and the sun."""
    sky(canvas, other, 0.48)
    canvas.drawPath(ellipse(0.84, 0.14, 0.085), paint(rgb(0xFFE680)))
    layer(canvas, 0.46, 0.7, rgb(0x1E86C4), rgb(0x48C9CF))
    canvas.drawPath(waves(0.66, 0.012, 4, 0.1 * other), paint(WHITE))
    graded(canvas, waves(0.69, 0.012, 4, 0.1 * other), rgb(0xF8E2AC), rgb(0xE3B973))
    _palm(canvas, (0.07, 0.78), (0.13, 0.18))


def _peak(canvas: skia.Canvas, x: float, top: float, half: float, colour: Colour) -> None:
    height = 0.72 - top
    graded(canvas, polygon([(x, top), (x + half, 0.72), (x - half, 0.72)]), lighter(colour, 0.1), colour)
    shady = polygon([(x, top), (x + half, 0.72), (x + 0.2 * half, 0.72), (x - 0.08 * half, top + 0.4 * height)])
    canvas.drawPath(shady, paint(darker(colour, 0.3), 0.6))
    jag = [(0.36, 0.36), (0.14, 0.27), (0, 0.4), (-0.16, 0.27), (-0.36, 0.36)]
    canvas.drawPath(polygon([(x, top), *((x + dx * half, top + dy * height) for dx, dy in jag)]), paint(WHITE))


def mountain(canvas: skia.Canvas, other: int) -> None:
    """Peaks with snow behind a meadow."""
    sky(canvas, other, 0.72)
    _peak(canvas, 0.56, 0.18, 0.42, rgb(0x8D9CC0))
    _peak(canvas, 0.18, 0.04, 0.44, rgb(0x6B78A0))
    _peak(canvas, 0.92, 0.12 + 0.06 * other, 0.36, rgb(0x6B78A0))
    ground(canvas, 0.68, rgb(0x86B65A), rgb(0x4F8A3E))


def _forest(canvas: skia.Canvas, other: int) -> None:
    layer(canvas, 0, 0.7, (rgb(0x6FA767), rgb(0x62A57C))[other], rgb(0xD9EAB2))
    canvas.drawPath(boxes([(x, 0, x + 0.05, 0.68) for x in (0.27, 0.46, 0.66)]), paint(rgb(0x86925F)))
    graded(canvas, boxes([(0.03, 0, 0.13, 0.72), (0.86, 0, 0.97, 0.72)]), rgb(0x5B3A24), rgb(0x7A5236))
    ground(canvas, 0.66, rgb(0x6E9144), rgb(0x4A6B2E), 0.01)
    crowns = [(0.0, 0.02, 0.17), (0.2, -0.03, 0.14), (0.4, -0.05, 0.14), (0.6, -0.05, 0.14), (0.8, -0.03, 0.14), (1.0, 0.02, 0.17)]
    canvas.drawPath(circles(crowns), paint(rgb(0x2F6B35)))


def purple_rug(canvas: skia.Canvas, other: int) -> None:
    """A purple rug with fringes in a forest."""
    _forest(canvas, other)
    fringe = skia.Path()
    for i in range(11):
        fringe.addRect(skia.Rect.MakeXYWH(0.0 + 0.094 * i, 0.96, 0.05, 0.04))
    canvas.drawPath(fringe, paint(rgb(0xE9D9F5)))
    graded(canvas, polygon([(0.11, 0.73), (0.89, 0.73), (1.02, 0.97), (-0.02, 0.97)]), rgb(0x7A35B4), rgb(0x9A4FD6))
    canvas.drawPath(polygon([(0.15, 0.76), (0.85, 0.76), (0.95, 0.935), (0.05, 0.935)]), paint(rgb(0xE3BDF5), stroke=0.018))


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


def wheat_field(canvas: skia.Canvas, other: int) -> None:
    """Rows of ripe wheat."""
    sky(canvas, other, 0.5)
    layer(canvas, 0.46, 1.05, rgb(0xE9BF52), rgb(0xB9802A))
    _wheat(canvas, 0.8, 0.42, 0.05, rgb(0xD79E35))
    _wheat(canvas, 1.0, 0.46, 0.02 * other, rgb(0xF4CB5C))


def wheat_field_front(canvas: skia.Canvas, other: int) -> None:
    """Low ears before the subject."""
    _wheat(canvas, 1.1, 0.15, 0.05 + 0.02 * other, rgb(0xFBDD7E))


def autumn_tree(canvas: skia.Canvas, other: int) -> None:
    """A tree with orange leaves, some of them falling."""
    layer(canvas, 0, 0.76, (rgb(0xBFE0F2), rgb(0xF6E3BC))[other], rgb(0xFBF3DC))
    ground(canvas, 0.72, rgb(0xC9A24A), rgb(0x9A6A2C))
    trunk = smooth([(0.06, 0.1), (0.2, 0.1), (0.16, 0.5), (0.27, 0.86), (0.1, 0.8), (-0.05, 0.86), (0.04, 0.5)])
    graded(canvas, trunk, rgb(0x5E3820), rgb(0x7E4E2C))
    deep = [(0.02, 0.32, 0.13), (0.3, 0.26, 0.13), (0.52, 0.17, 0.13), (0.74, 0.11, 0.12), (0.9, 0.1, 0.1)]
    bright = [(0.0, 0.12, 0.17), (0.22, 0.1, 0.17), (0.44, 0.04, 0.15), (0.66, 0.0, 0.13), (0.86, -0.02, 0.11)]
    canvas.drawPath(circles(deep), paint(rgb(0xCC4A1E)))
    canvas.drawPath(circles(bright), paint(rgb(0xF28A23)))
    leaves = [(0.06, 0.94), (0.28, 0.91), (0.5, 0.95), (0.72, 0.91), (0.93, 0.94), (0.94, 0.8), (0.92, 0.4), (0.85, 0.6)]
    canvas.drawPath(circles([(x, y, 0.028) for x, y in leaves]), paint(rgb(0xE4581E)))


def water(canvas: skia.Canvas, other: int) -> None:
    """A sea with rows of waves."""
    layer(canvas, 0, 0.3, (rgb(0xBFE6FA), rgb(0xFBE0C4))[other], rgb(0xF2FBFF))
    colours = (rgb(0x1F7FCB), rgb(0x2C93D8), rgb(0x1F7FCB), rgb(0x2C93D8))
    for i, colour in enumerate(colours):
        canvas.drawPath(waves(0.3 + 0.14 * i, 0.018, 4, 0.12 * (i % 2) + 0.05 * other), paint(lighter(colour, 0.6)))
        graded(canvas, waves(0.325 + 0.14 * i, 0.018, 4, 0.12 * (i % 2) + 0.05 * other), lighter(colour, 0.1), colour)


def water_front(canvas: skia.Canvas, other: int) -> None:
    """The waterline and ripples over the lowest part of the subject."""
    canvas.drawPath(waves(0.795, 0.012, 5, 0.05 * other), paint(rgb(0x2587D2), 0.82))
    canvas.drawPath(ellipse(0.5, 0.83, 0.42, 0.05), paint(WHITE, 0.75, stroke=0.018))
    canvas.drawPath(ellipse(0.5, 0.86, 0.56, 0.09), paint(rgb(0x9FDCF7), 0.8, stroke=0.018))


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
    canvas.drawPath(_splash(), paint(rgb(0xC2AB7C), stroke=0.2))
    canvas.drawPath(_splash(), paint(rgb(0xFFF9EA)))
    canvas.restore()


def milk(canvas: skia.Canvas, other: int) -> None:
    """An ocean of milk with crowns of splashes."""
    layer(canvas, 0, 0.42, (rgb(0x6CC3F2), rgb(0x7FB4F5))[other], rgb(0xB5E2FA))
    for i in range(3):
        y, shift = 0.36 + 0.17 * i, 0.15 * (i % 2) + 0.06 * other
        canvas.drawPath(waves(y, 0.04, 3, shift), paint(rgb(0xCDB88A)))
        graded(canvas, waves(y + 0.03, 0.04, 3, shift), rgb(0xFFFBF0), rgb(0xF0E2C2))
    _crown(canvas, 0.15, 0.42, 0.15)
    _crown(canvas, 0.87, 0.55, 0.12)


def milk_front(canvas: skia.Canvas, other: int) -> None:
    """A wave of milk over the lowest part of the subject."""
    canvas.drawPath(waves(0.8, 0.03, 4, 0.06 * other), paint(rgb(0xCDB88A)))
    graded(canvas, waves(0.825, 0.03, 4, 0.06 * other), rgb(0xFFFBF0), rgb(0xF4E8CC))


def _sunflower(canvas: skia.Canvas, x: float, y: float, size: float) -> None:
    line(canvas, [(x, y), (x, y + 4 * size)], rgb(0x2F7A2B), 0.03)
    petals = [(x + 0.62 * size * math.sin(i * math.pi / 4), y - 0.62 * size * math.cos(i * math.pi / 4), 0.38 * size) for i in range(8)]
    canvas.drawPath(circles(petals), paint(rgb(0xFFC91E)))
    canvas.drawPath(ellipse(x, y, 0.5 * size), paint(rgb(0x6A3B16)))


def sunflowers(canvas: skia.Canvas, other: int) -> None:
    """Grass between sunflowers."""
    sky(canvas, other, 0.42)
    ground(canvas, 0.36, rgb(0x7CC04E), rgb(0x3F8F35))
    far = ((0.3, 0.2, 0.09), (0.5, 0.13, 0.09), (0.7, 0.2, 0.09))
    near = ((0.1, 0.17, 0.12), (0.9, 0.2, 0.12), (0.08, 0.52, 0.12), (0.93, 0.56, 0.12))
    for x, y, size in far + near:
        _sunflower(canvas, x, y + 0.03 * other, size)
    ground(canvas, 0.82, rgb(0x74BE46), rgb(0x3F8F35), 0.01)


def sunflowers_front(canvas: skia.Canvas, other: int) -> None:
    """Low sunflowers before the subject."""
    for x in (0.07, 0.92):
        _sunflower(canvas, x, 0.86 + 0.02 * other, 0.1)


def dirt_road(canvas: skia.Canvas, other: int) -> None:
    """A road of earth between fields."""
    sky(canvas, other, 0.42)
    canvas.drawPath(circles([(0.86, 0.33, 0.1), (0.97, 0.28, 0.12), (0.74, 0.37, 0.06)]), paint(rgb(0x3F8541)))
    ground(canvas, 0.36, rgb(0xA2C95A), rgb(0x6B9A3A), 0.02)
    road = skia.Path()
    road.moveTo(-0.02, 0.42)
    road.cubicTo(0.5, 0.44, 0.9, 0.6, 1.0, 1.05)
    road.lineTo(0.0, 1.05)
    road.cubicTo(0.3, 0.7, 0.2, 0.62, -0.02, 0.56)
    road.close()
    graded(canvas, road, rgb(0xC9935A), rgb(0x9A6433))
    for start, control, end in (((0.0, 0.46), (0.7, 0.55), (0.76, 1.05)), ((0.0, 0.52), (0.5, 0.62), (0.24, 1.05))):
        curve(canvas, start, control, end, rgb(0x7A4B24), 0.04)


def lawn(canvas: skia.Canvas, other: int) -> None:
    """A mown lawn under clouds."""
    sky(canvas, other, 0.46)
    cloud(canvas, 0.16, 0.13, 0.17)
    cloud(canvas, 0.84, 0.2 - 0.06 * other, 0.13)
    ground(canvas, 0.42, rgb(0x9BD85E), rgb(0x57A83F), 0.02)
    stripes = [polygon([(0.5 + 0.2 * i, 0.44), (0.6 + 0.2 * i, 0.44), (0.68 + 0.36 * i, 1.05), (0.5 + 0.36 * i, 1.05)]) for i in range(-3, 3)]
    for stripe in stripes:
        canvas.drawPath(stripe, paint(rgb(0x3F8F35), 0.4))
