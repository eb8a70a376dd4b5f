"""Pixel operations on Pillow images and uint8 arrays [height, width, 3]: colour modes, crops, the paper's augmentation, grids, PNG."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 1 << 28  # a resize that would make more is refused: it comes from a picture thousands of times longer than wide
GRID_PADDING = 2  # white pixels between the images of a grid

ROTATION_DEGREES = 5.0
SMALLEST_CROP = 0.9


class ImageError(ValueError):
    """An image whose pixels have no defined 8-bit RGB form, or that cannot be brought to the wanted size."""


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` (for animations its current frame) upright and as 8-bit RGB.

    The EXIF orientation is applied, transparency is blended on white and 16-bit grey is scaled to 8 bits.
    Raises ImageError for floating-point pixels and for 32-bit ones with values outside 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _grey_16_to_8(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "F":
        raise ImageError("floating-point pixels have no fixed range; save the image with 8 or 16 bits")
    return image.convert("RGB")


def _grey_16_to_8(image: Image.Image) -> Image.Image:
    """Modes I;16 (and its byte orders) and I. Pillow's own convert("L") would clip instead of scaling."""
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 65535:
        raise ImageError(f"grey values {pixels.min()}..{pixels.max()} do not fit 16 bits")
    grey = Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a PNG may name one 16-bit grey value as transparent
        grey.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    return grey


def center_crop_arr(image: Image.Image, width: int, height: int | None = None) -> np.ndarray:
    """The middle of an RGB image as uint8 [height, width, 3] (height None: a square), by the rule of ADM that LlamaGen and Lumina-mGPT take.

    The image is halved with a box filter while both of its sides are at least twice as long, then resized (bicubic) to the least size that
    holds the crop.
    Source: guided-diffusion image_datasets.py, LlamaGen dataset/augmentation.py; Lumina-mGPT data/item_processor.py, which draws the place.
    """
    height = width if height is None else height
    while image.width >= 2 * width and image.height >= 2 * height:
        image = _resize(image, (image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = _resize(image, (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image)[top : top + height, left : left + width].copy()


def resize_crop(image: Image.Image, size: int, resample: Image.Resampling) -> np.ndarray:
    """The middle square of an RGB image as uint8 [size, size, 3]: the shorter side is resized to `size`, the longer one cropped.

    Rounds as torchvision's Resize and CenterCrop do (the longer side down, the offset to even).
    Source: the preprocessing of diffusers' DreamBooth scripts with --center_crop.
    """
    width, height = _resized(*image.size, size)
    if (width, height) != image.size:
        image = _resize(image, (width, height), resample)
    top, left = crop_corner(*image.size, size)
    return np.asarray(image)[top : top + size, left : left + size].copy()


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    shorter = min(width, height)
    return size * width // shorter, size * height // shorter


def crop_corner(width: int, height: int, size: int) -> tuple[int, int]:
    """Top and left of the square that `resize_crop` cuts out of a picture of that size, in pixels after the resize."""
    width, height = _resized(width, height, size)
    return round((height - size) / 2), round((width - size) / 2)


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"an image of {image.width}x{image.height} would have to be resized to {size[0]}x{size[1]}; crop it first")
    return image.resize(size, resample)


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random variant of an RGB image: flipped with probability 0.5, rotated within ±5°, cropped to 0.9-1.0 of each side.

    What a rotation turns in is the mirrored picture, not black. Five numbers are drawn from `rng` whatever their values.
    Source: Proxy-Tuning's geometric augmentation of direct tuning (figure 5; ranges reported, second hand).
    """
    flip, turn, crop, across, down = rng.random(5)
    if flip < 0.5:
        image = ImageOps.mirror(image)
    image = _rotate(image, (2 * turn - 1) * ROTATION_DEGREES)
    scale = SMALLEST_CROP + (1 - SMALLEST_CROP) * crop
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    left, top = round(across * (image.width - width)), round(down * (image.height - height))
    return image.crop((left, top, left + width, top + height))


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    """`image` rotated about its middle, same size; the corners are filled by mirroring at the edges."""
    width, height = image.size
    cos, sin = math.cos(math.radians(degrees)), abs(math.sin(math.radians(degrees)))
    # Half of what the rotated frame sticks out on each side, and 2 for the bicubic window.
    across = max(0, math.ceil((width * cos + height * sin - width) / 2)) + 2
    down = max(0, math.ceil((width * sin + height * cos - height) / 2)) + 2
    # "symmetric" also works where the margin is wider than the picture.
    padded = np.pad(np.asarray(image), ((down, down), (across, across), (0, 0)), mode="symmetric")
    rotated = Image.fromarray(padded).rotate(degrees, Image.Resampling.BICUBIC)
    return rotated.crop((across, down, across + width, down + height))


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 in [-1, 1], in the order of operations of ToTensor and Normalize(0.5, 0.5)."""
    return (np.asarray(image).astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float pixels in [-1, 1] (others are clipped) as uint8, rounded. Raises ImageError if a pixel is not finite."""
    pixels = np.asarray(image).astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ImageError(f"{np.count_nonzero(~np.isfinite(pixels))} of {pixels.size} pixel values are not finite")
    return np.rint((np.clip(pixels, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images of one shape [height, width, 3], uint8, in rows of `columns`, with white lines between and white in empty places."""
    if not len(images) or columns < 1:
        raise ImageError(f"a grid needs images and at least one column, got {len(images)} and {columns}")
    shapes = {np.shape(image) for image in images}
    if len(shapes) > 1:
        raise ImageError(f"a grid needs images of one shape, got {sorted(shapes)}")
    height, width, channels = shapes.pop()
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    step_down, step_across = height + GRID_PADDING, width + GRID_PADDING
    canvas = np.full((rows * step_down - GRID_PADDING, columns * step_across - GRID_PADDING, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * step_down, i % columns * step_across
        canvas[top : top + height, left : left + width] = image
    return canvas


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 image [height, width, 3] (or [height, width]) as PNG bytes: the same bytes for the same pixels."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ImageError(f"PNG takes uint8 pixels, got {pixels.dtype}; see to_uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Encoded image bytes of any format that Pillow reads, as upright RGB uint8 [height, width, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(to_rgb(image)).copy()
