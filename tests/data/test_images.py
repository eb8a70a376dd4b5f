"""proxy_jax/data/images.py: colour modes, crops, augmentation, grids, PNG."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from proxy_jax.data import images

MARKED = np.zeros((4, 6, 3), np.uint8)  # a red corner and a green one say how a picture is turned
MARKED[0, 0], MARKED[0, -1] = (255, 0, 0), (0, 255, 0)


def reopened(image: Image.Image, kind: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# What a camera held so would have stored; applying the orientation must give MARKED back.
STORED = {
    1: MARKED,
    2: MARKED[:, ::-1],
    3: MARKED[::-1, ::-1],
    4: MARKED[::-1],
    5: MARKED.transpose(1, 0, 2),
    6: np.rot90(MARKED, 1),
    7: MARKED[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(MARKED, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = reopened(Image.fromarray(np.ascontiguousarray(STORED[orientation])), "PNG", exif=exif)
    upright = images.to_rgb(image)
    np.testing.assert_array_equal(np.asarray(upright), MARKED)
    np.testing.assert_array_equal(np.asarray(images.to_rgb(upright)), MARKED)  # and only once


def test_transparency_is_blended_on_white():
    half_red = Image.new("RGBA", (3, 2), (255, 0, 0, 128))
    blended = (255, 127, 127)
    for image in (half_red, reopened(half_red, "PNG"), half_red.convert("RGBa")):
        np.testing.assert_allclose(np.asarray(images.to_rgb(image)), np.full((2, 3, 3), blended), atol=1)
    grey = Image.new("LA", (3, 2), (0, 0))
    assert (np.asarray(images.to_rgb(reopened(grey, "PNG"))) == 255).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    see_through = reopened(palette, "PNG", transparency=0)
    assert see_through.mode == "P"
    np.testing.assert_array_equal(np.asarray(images.to_rgb(see_through))[0], [[255, 255, 255], [200, 100, 50]])
    with_alpha = see_through.convert("PA")
    assert with_alpha.mode == "PA"
    np.testing.assert_array_equal(np.asarray(images.to_rgb(with_alpha))[0], [[255, 255, 255], [200, 100, 50]])
    keyed = reopened(Image.fromarray(MARKED), "PNG", transparency=(0, 0, 0))
    assert keyed.mode == "RGB" and (np.asarray(images.to_rgb(keyed))[1:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind):
    values = np.array([[0, 128, 257, 32768, 65279, 65535]], np.uint16)
    image = reopened(Image.fromarray(values), kind)
    assert image.mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(images.to_rgb(image))[0, :, 1], [0, 0, 1, 128, 254, 255])


def test_16_bit_grey_with_a_transparent_value():
    image = reopened(Image.fromarray(np.array([[0, 1000, 40000]], np.uint16)), "PNG", transparency=1000)
    np.testing.assert_array_equal(np.asarray(images.to_rgb(image))[0, :, 0], [0, 255, 156])


def test_32_bit_pixels():
    np.testing.assert_array_equal(np.asarray(images.to_rgb(Image.fromarray(np.array([[0, 65535]], np.int32))))[0, :, 0], [0, 255])
    with pytest.raises(images.ImageError, match="do not fit 16 bits"):
        images.to_rgb(Image.fromarray(np.array([[0, 70000]], np.int32)))
    with pytest.raises(images.ImageError, match="floating-point"):
        images.to_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes(mode):
    colour = noise(1, 1).resize((5, 4), Image.Resampling.NEAREST)
    converted = colour.convert(mode)
    result = images.to_rgb(converted)
    assert result.mode == "RGB" and result.size == (5, 4)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(converted.convert("RGB")))
    if mode in ("P", "CMYK", "YCbCr", "HSV", "LAB"):
        gap = np.abs(np.asarray(result).astype(int) - np.asarray(colour))
        assert gap.max() <= (52 if mode == "P" else 4), gap.max()


def test_center_crop_arr_equals_the_golden_case(shared):
    case = shared / "golden" / "llamagen_center_crop"
    sizes = json.loads((case / "config.json").read_text())["sizes"]
    with np.load(case / "io.npz") as io_arrays:
        for j, size in enumerate(sizes):
            crop = images.center_crop_arr(Image.fromarray(io_arrays[f"in_{j}"]), size)
            np.testing.assert_array_equal(crop, io_arrays[f"out_{j}"])
            np.testing.assert_array_equal(images.to_float(crop).transpose(2, 0, 1), io_arrays[f"tensor_{j}"])


def test_center_crop_arr_halves_with_a_box():
    pixels = np.asarray(noise(32, 40))
    blocks = pixels.reshape(16, 2, 20, 2, 3).astype(np.float64).mean((1, 3))
    crop = images.center_crop_arr(Image.fromarray(pixels), 16)
    np.testing.assert_allclose(crop, blocks[:, 2:18], atol=1.01)
    assert (images.center_crop_arr(Image.fromarray(pixels), 32) == pixels[:, 4:36]).all()


@pytest.mark.parametrize("crop", [images.center_crop_arr, lambda i, s: images.resize_crop(i, s, Image.Resampling.LANCZOS)])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3000, 200), (200, 3000), (7, 5), (65, 64)])
def test_crops_of_any_size_and_shape(crop, size):
    colour = (200, 30, 90)
    result = crop(Image.new("RGB", size, colour), 32)
    assert result.shape == (32, 32, 3) and result.dtype == np.uint8
    np.testing.assert_allclose(result, np.broadcast_to(colour, (32, 32, 3)), atol=1)


def test_crops_take_the_middle():
    wide = np.zeros((20, 100, 3), np.uint8)
    wide[:, 40:60] = 255
    assert images.center_crop_arr(Image.fromarray(wide), 20).min() == 255
    assert images.resize_crop(Image.fromarray(wide), 20, Image.Resampling.BILINEAR).min() == 255


@pytest.mark.parametrize(("size", "offset"), [((23, 20), 2), ((25, 20), 2), ((27, 20), 4), ((24, 20), 2)])
def test_resize_crop_rounds_halves_to_even(size, offset):
    pixels = np.asarray(noise(size[1], size[0]))
    np.testing.assert_array_equal(images.resize_crop(Image.fromarray(pixels), 20, Image.Resampling.BILINEAR), pixels[:, offset : offset + 20])


def test_resize_crop_rounds_the_longer_side_down():
    image = noise(30, 49)  # 49 * 20 / 30 = 32.67
    expected = np.asarray(image.resize((32, 20), Image.Resampling.LANCZOS))[:, 6:26]
    np.testing.assert_array_equal(images.resize_crop(image, 20, Image.Resampling.LANCZOS), expected)


def test_an_absurd_resize_is_refused():
    for crop in (images.center_crop_arr, lambda i, s: images.resize_crop(i, s, Image.Resampling.BILINEAR)):
        with pytest.raises(images.ImageError, match="crop it first"):
            crop(Image.new("RGB", (20000, 1)), 512)


def test_augment_is_deterministic_and_varied():
    image = noise(40, 60)
    first = [np.asarray(images.augment(image, np.random.default_rng(7))) for _ in range(2)]
    np.testing.assert_array_equal(*first)
    rng = np.random.default_rng(0)
    sizes = {images.augment(image, rng).size for _ in range(40)}
    widths = [width for width, _ in sizes]
    assert len(sizes) > 4 and min(widths) in (54, 55) and max(widths) == 60
    assert all(round(0.9 * 40) <= height <= 40 for _, height in sizes)
    reference = np.random.default_rng(3)
    used = np.random.default_rng(3)
    images.augment(image, used)
    reference.random(5)
    assert used.random() == reference.random()


def test_augment_turns_within_five_degrees_and_flips_half_the_time():
    """The angle of a bright bar, and the side of a bright edge, after augmentation."""
    bar = np.zeros((81, 121, 3), np.uint8)
    bar[38:43] = 255  # a horizontal bar through the middle
    bar[38:43, :40] = 60  # dark on the left
    rng, angles, flips = np.random.default_rng(1), [], []
    for _ in range(200):
        result = np.asarray(images.augment(Image.fromarray(bar), rng))[..., 0].astype(float)
        flips.append(result[:, -20:].sum() < result[:, :20].sum())
        ys, xs = np.mgrid[: result.shape[0], : result.shape[1]]
        keep = result > 20
        slope = np.polyfit(xs[keep], ys[keep], 1)[0]
        angles.append(np.degrees(np.arctan(slope)))
    assert max(np.abs(angles)) < 5.5 and min(angles) < -4 and max(angles) > 4
    assert 0.4 < np.mean(flips) < 0.6


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (200, 3)])
def test_augment_leaves_no_black_corners(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        result = images.augment(Image.new("RGB", size, (90, 200, 150)), rng)
        np.testing.assert_allclose(np.asarray(result), np.broadcast_to((90, 200, 150), (*result.size[::-1], 3)), atol=1)


def test_float_and_back():
    every = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    floats = images.to_float(every)
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(images.to_uint8(floats), every)
    np.testing.assert_array_equal(images.to_uint8(np.array([-3.0, -1, 0.002, 0.005, 1, 7])), [0, 0, 128, 128, 255, 255])
    with pytest.raises(images.ImageError, match="1 of 2"):
        images.to_uint8(np.array([0.0, np.nan]))


def test_to_uint8_takes_bfloat16():
    import jax.numpy as jnp

    np.testing.assert_array_equal(images.to_uint8(jnp.asarray([-1, 0, 1], jnp.bfloat16)), [0, 128, 255])


def test_grid():
    tiles = [np.full((2, 3, 3), i, np.uint8) for i in range(5)]
    sheet = images.grid(tiles, 3)
    assert sheet.shape == (2 * 2 + images.GRID_PADDING, 3 * 3 + 2 * images.GRID_PADDING, 3)
    for i in range(5):
        top, left = i // 3 * (2 + images.GRID_PADDING), i % 3 * (3 + images.GRID_PADDING)
        assert (sheet[top : top + 2, left : left + 3] == i).all()
    assert (sheet[2 + images.GRID_PADDING :, 6 + 2 * images.GRID_PADDING :] == 255).all()
    assert images.grid(tiles[:2], 8).shape == (2, 6 + images.GRID_PADDING, 3)
    with pytest.raises(images.ImageError, match="one shape"):
        images.grid([tiles[0], tiles[0][:1]], 2)
    with pytest.raises(images.ImageError, match="needs images"):
        images.grid([], 2)


def test_png():
    pixels = np.asarray(noise(9, 13))
    data = images.encode_png(pixels)
    assert data[:4] == b"\x89PNG" and data == images.encode_png(pixels.copy())
    np.testing.assert_array_equal(images.decode(data), pixels)
    with pytest.raises(images.ImageError, match="float32"):
        images.encode_png(images.to_float(pixels))
