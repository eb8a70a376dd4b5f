"""The photos of a subject: a folder of images of any size, mode and orientation, or the encoded bytes of one."""

import dataclasses
import functools
import hashlib
import io
import re
from pathlib import Path

from absl import logging
from PIL import Image

from proxy_jax.data import images

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class PhotosError(ValueError):
    """A folder that holds no readable photo."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """One photo: its file name, its pixels (Pillow, RGB, upright) and the SHA-256 of the file's bytes."""

    name: str
    image: Image.Image
    sha256: str


def read(name: str, data: bytes) -> Photo:
    """The photo in the bytes `data` of an image file. Raises PhotosError, naming it, if they are not a whole readable image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = images.to_rgb(image)
    # Pillow's decoders raise these on broken data, according to the format and where it breaks.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, ArithmeticError, Image.DecompressionBombError) as error:
        reason = "the file is empty" if not data else f"{type(error).__name__}: {error}"
        raise PhotosError(f"{name}: {reason}") from error
    return Photo(name, pixels, hashlib.sha256(data).hexdigest())


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A sort key by which photo2.jpg comes before photo10.jpg."""
    pieces = re.split(r"([0-9]+)", name.casefold())  # text and numbers in turn
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def image_files(folder: Path) -> list[Path]:
    """The image files of `folder` in natural order; hidden files, other extensions and subfolders are left out."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()]
    return sorted(files, key=lambda path: natural_order(path.name))


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning("%s", message)


def load_photos(folder: Path) -> list[Photo]:
    """The photos in `folder`, in natural order. A broken file is named in a warning and left out.

    Raises PhotosError, naming the folder, if it is missing or holds no readable photo.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PhotosError(f"the photo folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    photos, problems = [], []
    for path in image_files(folder):
        try:
            photos.append(read(path.name, path.read_bytes()))
        except (PhotosError, OSError) as error:
            problems.append(str(error))
            _warn_once(f"left out a photo of {folder}: {error}")
    if not photos and problems:
        raise PhotosError(f"no photo in {folder} can be read:\n  " + "\n  ".join(problems))
    if not photos:
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        held = f"it holds only {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}" if found else "it is empty"
        raise PhotosError(f"no photo in {folder}: {held}; photos end in {' '.join(EXTENSIONS)}")
    return photos
