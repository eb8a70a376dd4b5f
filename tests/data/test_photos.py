"""proxy_jax/data/photos.py: every odd file that a folder of a person's photos may hold."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from absl import logging
from PIL import Image

from proxy_jax.data.photos import PhotosError, load_photos, natural_order, read


def noise(height: int = 12, width: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture
def warnings(monkeypatch):
    """The text of every absl warning."""
    seen = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: seen.append(message % args))
    return seen


def bomb() -> bytes:
    """A PNG that claims to be 60000 pixels square."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, b"IDAT" + zlib.compress(b""), end)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BROKEN = {
    "cut.jpg": encoded(noise(64, 64), "JPEG")[:900],
    "cut.png": encoded(noise(64, 64), "PNG")[:3000],
    "text.jpg": b"not a picture at all",
    "empty.png": b"",
    "bomb.png": bomb(),
    "float.tiff": encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"),
}


def test_order_names_hashes_and_kinds(tmp_path, warnings):
    files = {
        "photo10.png": encoded(noise(seed=1), "PNG"),
        "photo2.JPG": encoded(noise(seed=2), "JPEG"),
        "Photo1.jpeg": encoded(noise(seed=3), "JPEG"),
        "scan.bmp": encoded(noise(seed=4), "BMP"),
        "scan.tif": encoded(noise(seed=5), "TIFF"),
        "web.webp": encoded(noise(seed=6), "WEBP", lossless=True),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / ".hidden.png").write_bytes(files["photo10.png"])
    (tmp_path / "notes.txt").write_text("about my dog")
    (tmp_path / "photo.heic").write_bytes(b"ftypheic")
    (tmp_path / "folder.png").mkdir()
    photos = load_photos(tmp_path)
    assert [photo.name for photo in photos] == ["Photo1.jpeg", "photo2.JPG", "photo10.png", "scan.bmp", "scan.tif", "web.webp"]
    assert not warnings
    for photo in photos:
        assert photo.image.mode == "RGB" and photo.image.size == (16, 12)
        assert photo.sha256 == hashlib.sha256(files[photo.name]).hexdigest()
    np.testing.assert_array_equal(np.asarray(photos[2].image), np.asarray(noise(seed=1)))
    np.testing.assert_array_equal(np.asarray(photos[5].image), np.asarray(noise(seed=6)))


def test_natural_order_of_mixed_names():
    names = ["b", "a10", "a9", "10", "9", "9a", "a", "A2", "a02"]
    assert sorted(names, key=natural_order) == ["9", "9a", "10", "a", "A2", "a02", "a9", "a10", "b"]
    assert sorted(reversed(names), key=natural_order) == sorted(names, key=natural_order)


def test_animated_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    (tmp_path / "a.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    (photo,) = load_photos(tmp_path)
    assert np.asarray(photo.image)[0, 0, 0] > 200 > 60 > np.asarray(photo.image)[0, 0, 1]


def test_odd_modes_and_sizes_load(tmp_path, warnings):
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = {
        "cmyk.jpg": encoded(noise().convert("CMYK"), "JPEG"),
        "grey16.png": encoded(Image.fromarray(np.full((12, 16), 65535, np.uint16)), "PNG"),
        "la.png": encoded(noise().convert("LA"), "PNG"),
        "one.png": encoded(noise(1, 1), "PNG"),
        "panorama.jpg": encoded(Image.new("RGB", (3000, 200)), "JPEG"),
        "turned.jpg": encoded(noise(12, 16), "JPEG", exif=exif),
    }
    for name, data in odd.items():
        (tmp_path / name).write_bytes(data)
    sizes = {photo.name: photo.image.size for photo in load_photos(tmp_path)}
    assert not warnings and set(sizes) == set(odd)
    assert sizes["one.png"] == (1, 1) and sizes["panorama.jpg"] == (3000, 200) and sizes["turned.jpg"] == (12, 16)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_left_out(tmp_path, warnings, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    (tmp_path / "good.png").write_bytes(encoded(noise(), "PNG"))
    assert [photo.name for photo in load_photos(tmp_path)] == ["good.png"]
    assert len(warnings) == 1 and name in warnings[0] and str(tmp_path) in warnings[0]
    with pytest.raises(PhotosError, match=name):
        read(name, BROKEN[name])


def test_only_broken_files(tmp_path, warnings):
    for name, data in BROKEN.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(PhotosError, match="can be read") as error:
        load_photos(tmp_path)
    assert all(name in str(error.value) for name in BROKEN) and str(tmp_path) in str(error.value)
    assert "the file is empty" in str(error.value)


def test_folders_without_photos(tmp_path):
    with pytest.raises(PhotosError, match="it is empty"):
        load_photos(tmp_path)
    with pytest.raises(PhotosError, match="nowhere does not exist"):
        load_photos(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(PhotosError, match=r"it holds only a\.txt; photos end in \.jpg"):
        load_photos(tmp_path)
    with pytest.raises(PhotosError, match="is not a folder"):
        load_photos(tmp_path / "a.txt")
