"""Files that stages share: written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from proxy_jax import processes
from proxy_jax.data import images


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, and its folder, so that a reader sees either nothing (or the old file) or the whole new one.

    Of several processes the first does.
    """
    if not processes.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.rename(path)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, keys sorted."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None if there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else None


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 [height, width, 3] as PNG."""
    write_bytes(path, images.encode_png(picture))


def load_picture(path: Path) -> np.ndarray:
    """An image file as uint8 [height, width, 3]."""
    return images.decode(path.read_bytes())
