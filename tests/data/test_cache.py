"""proxy_jax/data/cache.py: kept results, broken files, keys and fingerprints."""

import os
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from absl import logging

from proxy_jax.data import cache


class Counted:
    """A computation that counts its calls."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays, self.calls = arrays, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.arrays


@pytest.fixture
def compute() -> Counted:
    rng = np.random.default_rng(0)
    return Counted(
        latents=rng.standard_normal((3, 4, 4, 2)).astype(np.float32),
        text=rng.standard_normal((2, 5)).astype(ml_dtypes.bfloat16),
        turned=np.arange(12, dtype=np.int64).reshape(3, 4).T,  # not contiguous
        scale=np.float32(0.25),
        none=np.zeros((0, 3), np.uint8),
    )


KEY = {"images": ["ab", "cd"], "resolution": 512, "encoder": {"a": 1.5, "b": None}}


def check(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name].astype(np.float64), np.asarray(value).astype(np.float64))


def test_computed_once_and_read_back(tmp_path, compute):
    first = cache.cached(tmp_path / "new", KEY, compute)
    second = cache.cached(tmp_path / "new", dict(reversed(KEY.items())), compute)  # the order of names is no difference
    assert compute.calls == 1
    check(first, compute.arrays)
    check(second, compute.arrays)
    (path,) = (tmp_path / "new").iterdir()  # nothing partial is left
    assert path.name == cache.digest(KEY) + ".safetensors"


@pytest.mark.parametrize("key", [{**KEY, "resolution": 256}, {**KEY, "images": ["cd", "ab"]}, [1], "text"])
def test_another_key_is_another_result(tmp_path, compute, key):
    cache.cached(tmp_path, KEY, compute)
    cache.cached(tmp_path, key, compute)
    assert compute.calls == 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other key", "foreign"])
def test_a_damaged_file_is_computed_again(tmp_path, compute, monkeypatch, damage):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: warnings.append(message % args))
    cache.cached(tmp_path, KEY, compute)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    if damage == "other key":
        cache.cached(tmp_path, "other", compute)
        os.replace(tmp_path / f"{cache.digest('other')}.safetensors", path)
        compute.calls = 1
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "flipped": flipped, "foreign": b"x" * 4096}[damage])
    check(cache.cached(tmp_path, KEY, compute), compute.arrays)
    assert compute.calls == 2 and len(warnings) == 1 and path.name in warnings[0]
    check(cache.cached(tmp_path, KEY, compute), compute.arrays)
    assert compute.calls == 2 and path.read_bytes() == data


def test_a_failing_computation_leaves_nothing(tmp_path):
    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.cached(tmp_path, KEY, fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", [{"a": {1, 2}}, {"a": float("nan")}, {"a": b"bytes"}])
def test_keys_that_are_not_json_are_refused(tmp_path, compute, key):
    with pytest.raises((TypeError, ValueError)):
        cache.cached(tmp_path, key, compute)
    assert compute.calls == 0


def test_fingerprints(tmp_path):
    (tmp_path / "model" / "vae").mkdir(parents=True)
    (tmp_path / "model" / "a.json").write_text("1")
    (tmp_path / "model" / "vae" / "b.json").write_text("2")
    first = cache.fingerprint(tmp_path / "model")
    assert cache.fingerprint(tmp_path / "model" / "a.json") != cache.fingerprint(tmp_path / "model" / "vae" / "b.json")
    (tmp_path / "model" / ".cache").mkdir()
    (tmp_path / "model" / ".cache" / "lock").write_text("x")
    os.utime(tmp_path / "model" / "a.json", (1, 1))
    assert cache.fingerprint(tmp_path / "model") == first
    os.rename(tmp_path / "model", tmp_path / "moved")
    assert cache.fingerprint(tmp_path / "moved") == first
    os.rename(tmp_path / "moved" / "a.json", tmp_path / "moved" / "c.json")
    renamed = cache.fingerprint(tmp_path / "moved")
    (tmp_path / "moved" / "c.json").write_text("3")
    assert len({first, renamed, cache.fingerprint(tmp_path / "moved")}) == 3
    with pytest.raises(FileNotFoundError):
        cache.fingerprint(tmp_path / "model")


def test_a_file_is_read_once_and_again_after_a_change_that_keeps_its_time_and_size(tmp_path, monkeypatch):
    path, reads = tmp_path / "weights", []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or whole(self))

    def found(content=None, anew=False):
        if content is not None:
            if anew:
                path.unlink()
            path.write_text(content)
            os.utime(path, (1, 1))
            time.sleep(0.05)
        return cache.fingerprint(path)

    assert found("a") != found("b") and len(reads) == 2
    assert found() == found() and len(reads) == 4, "changed a moment ago: not remembered"
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    first = found()
    assert found() == first and len(reads) == 5
    assert found("c") != first and found("d", anew=True) not in (first, found("c", anew=True)) and found("b") == first


def test_large_files_go_by_size_and_samples_not_by_time_or_place(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "HASHED_LIMIT_BYTES", 4)
    monkeypatch.setattr(cache, "SAMPLE_BYTES", 2)
    monkeypatch.setattr(cache, "SAMPLES", 3)
    path, copy = tmp_path / "weights", tmp_path / "copy"
    path.write_bytes(b"0123456789")
    copy.write_bytes(b"0123456789")
    os.utime(copy, (1, 1))
    first = cache.fingerprint(path)
    assert cache.fingerprint(copy) == first
    found = set()
    for content in (b"x123456789", b"0123x56789", b"012345678x", b"01234567890"):
        path.write_bytes(content)
        found.add(cache.fingerprint(path))
    assert len(found) == 4 and first not in found
    path.write_bytes(b"01x3456789")
    assert cache.fingerprint(path) == first, "between the samples, as the docstring says"
