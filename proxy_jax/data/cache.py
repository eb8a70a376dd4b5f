"""Results of frozen encoders on disk: computed once for a key, read afterwards. And fingerprints of files to make keys of."""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from proxy_jax import processes, storage

HASHED_LIMIT_BYTES = 64 << 20
SAMPLES, SAMPLE_BYTES = 64, 64 << 10
SETTLED_NS = 2_000_000_000  # a file whose status changed so long ago gets another time with its next change, however coarse the clock


def canonical(key: Any) -> str:
    """The one JSON text of a key: sorted names, no spaces. Raises TypeError or ValueError for what JSON cannot hold (NaN too)."""
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(key: Any) -> str:
    """The SHA-256 of a key's canonical JSON, in hex."""
    return hashlib.sha256(canonical(key).encode()).hexdigest()


def fingerprint(path: Path) -> str:
    """A hex digest that changes when a file, or any file of a folder (by relative name; hidden ones left out), changes.

    Files up to 64 MiB are hashed whole. Larger ones (weights) by size and 64 samples of 64 KiB, the first and last bytes among
    them, and not by time: a copy counts as the same file, and a change between the samples is not seen. Links are followed.
    A process reads a file once, and again after a change. Raises FileNotFoundError.
    """
    path = Path(path)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        return digest({name: fingerprint(file) for name, file in files.items() if not any(part.startswith(".") for part in name.split("/"))})
    seen = path.stat()
    settled = time.time_ns() - seen.st_ctime_ns > SETTLED_NS
    read = _hashed if settled else _hashed.__wrapped__
    return read(path.resolve(), seen.st_size, (seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns))


@functools.cache
def _hashed(path: Path, size: int, version: tuple[int, ...]) -> str:
    """The digest of a file in one state; version: what the file system gives another of when the file changes."""
    if size <= HASHED_LIMIT_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    result = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(max(0, i * (size - SAMPLE_BYTES) // (SAMPLES - 1)))
            result.update(file.read(SAMPLE_BYTES))
    return result.hexdigest()


def _stamp(key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The metadata of the cache file of `arrays`. One entry: safetensors writes several in an order that changes from run to run."""
    result = hashlib.sha256()
    for name in sorted(arrays):
        result.update(canonical([name, str(arrays[name].dtype), arrays[name].shape]).encode())
        result.update(arrays[name].reshape(-1).view(np.uint8))
    return {"cache": canonical({"key": key, "sha256": result.hexdigest()})}


def _read(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays of a cache file. Raises ValueError or SafetensorError if it is not the whole, unchanged file of this key."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    if metadata != _stamp(key, arrays):
        raise ValueError("it was written for another key, or has changed since")
    return arrays


def _write(path: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    with storage.whole(path) as partial:
        save_file(arrays, partial, metadata=_stamp(key, arrays))


def cached(folder: Path, key: Any, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of compute(), kept in `folder` under `key` (JSON-able: hashes of inputs, fingerprints, config values).

    The file's name is the key's digest. A file that is cut short or changed is computed again, with a warning. Several
    runs may ask for one key at once: each write is whole or absent. bfloat16 and arrays of rank 0 are kept as they are.
    Of the processes of one run the first looks and writes; all compute, or none.
    Raises TypeError if the key is not JSON.
    """
    text = canonical(key)
    path = Path(folder) / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    arrays = None
    if processes.is_first() and path.exists():
        try:
            arrays = _read(path, text)
        except (SafetensorError, ValueError, OSError) as error:
            logging.warning("computing again: the cache file %s cannot be used: %s", path, error)
    if processes.agreed(arrays is not None):
        return _read(path, text) if arrays is None else arrays
    arrays = {name: np.array(value, order="C") for name, value in compute().items()}
    if processes.is_first():
        _write(path, text, arrays)
    storage.share()
    return arrays
