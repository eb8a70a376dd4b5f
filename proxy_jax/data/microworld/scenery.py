"""What settings are made of: colours, layers, sky, ground and waves, in the unit square (see contexts.py)."""

import functools
from collections.abc import Callable

import skia

from proxy_jax.data.microworld.drawing import boxes, circles, paint
from proxy_jax.data.microworld.looks import Colour

Draw = Callable[[skia.Canvas, int], None]


def rgb(code: int) -> Colour:
    """The colour 0xRRGGBB."""
    return (code >> 16) / 255, (code >> 8 & 255) / 255, (code & 255) / 255


WHITE = rgb(0xFFFFFF)
SKY, PALE_SKY = (rgb(0x6FB9EE), rgb(0x86A9EC)), rgb(0xDDF1FA)  # the sky above in either version, and at the horizon
GRASS, DEEP_GRASS = rgb(0x8CCB57), rgb(0x4E9A3B)
BARK = rgb(0x7A5236)


def graded(canvas: skia.Canvas, path: skia.Path, top: Colour, bottom: Colour) -> None:
    """Fills a path with a gradient from its top to its bottom."""
    box, graded = path.getBounds(), paint(top)
    ends = [skia.Point(0, box.top()), skia.Point(0, box.bottom())]
    graded.setShader(skia.GradientShader.MakeLinear(ends, [skia.Color4f(*colour, 1.0).toColor() for colour in (top, bottom)]))
    canvas.drawPath(path, graded)


def layer(canvas: skia.Canvas, start: float, end: float, top: Colour, bottom: Colour) -> None:
    """A layer right across the picture, from y = start to y = end."""
    graded(canvas, boxes([(-0.1, start, 1.1, end)]), top, bottom)


def sky(canvas: skia.Canvas, other: int, horizon: float) -> None:
    """The sky from the top to the horizon, in one of two tints."""
    layer(canvas, 0, horizon, SKY[other], PALE_SKY)


def cloud(canvas: skia.Canvas, x: float, y: float, size: float) -> None:
    """A cloud of three puffs."""
    parts = ((-0.55, 0.08, 0.3), (0, -0.06, 0.45), (0.55, 0.06, 0.34))
    canvas.drawPath(circles([(x + dx * size, y + dy * size, radius * size) for dx, dy, radius in parts]), paint(WHITE, 0.92))


def ground(canvas: skia.Canvas, y: float, top: Colour, bottom: Colour, bulge: float = 0.04) -> None:
    """Ground from a slightly bulging horizon to the bottom."""
    path = skia.Path()
    path.moveTo(-0.1, y + bulge)
    path.quadTo(0.5, y - bulge, 1.1, y + bulge)
    path.lineTo(1.1, 1.05)
    path.lineTo(-0.1, 1.05)
    path.close()
    graded(canvas, path, top, bottom)


@functools.cache
def waves(y: float, height: float, count: int, shift: float) -> skia.Path:
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
