"""Files that stages share: written whole or not at all. And folders that one run at a time works in."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proxy_jax import processes, storage
from proxy_jax.data import images


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, and its folder, so that a reader sees either nothing (or the old file) or the whole new one.

    Of several processes the first does.
    """
    if not processes.is_first():
        return
    with storage.whole(path) as partial:
        partial.write_bytes(content)


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


@contextlib.contextmanager
def claimed(folders: Sequence[Path]) -> Iterator[bool]:
    """Whether these folders (without repeats) are this run's for the block: False, and none is, if another run has claimed one of them.

    A claim ends with its process, however that ends. Its lock lies beside the folder, which need not exist. Between machines it holds where
    their common file system passes flock on.
    """
    with contextlib.ExitStack() as stack:
        ours = all(_lock(folder.with_name(f".{folder.name}.lock"), stack) for folder in folders)
        if not ours:
            stack.close()
        yield ours


def _lock(path: Path, stack: contextlib.ExitStack) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context(path.open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
