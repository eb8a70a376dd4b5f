"""proxy_jax/data/proxy_set.py: written, read, opened with TFDS alone, and all of it without TensorFlow."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from proxy_jax.data import images, proxy_set

ROOT = Path(__file__).resolve().parent.parent.parent
METADATA = {"supervisor": {"family": "sd3", "checkpoint": "a/b"}, "steps": 28, "versions": ["0.1.0"]}


def records(count: int, size: int = 8) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (size, size + 2, 3), dtype=np.uint8),
            "prompt": f"a sks dög number {i}",
            "seed": 2**40 + i,
            "index": i,
            "supervisor": "sd3",
            "config_hash": "c0ffee",
        }
        for i in range(count)
    ]


def check(found: dict, expected: dict) -> None:
    np.testing.assert_array_equal(found["image"], expected["image"])
    assert found["image"].dtype == np.uint8
    assert {name: value for name, value in found.items() if name != "image"} == {n: v for n, v in expected.items() if n != "image"}


def test_round_trip_in_order_over_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(proxy_set, "RECORDS_PER_SHARD", 3)
    written = records(8)
    proxy_set.write(tmp_path / "run" / "proxies", iter(written), METADATA)
    proxies = proxy_set.read(tmp_path / "run" / "proxies")
    assert len(proxies) == 8 and proxies.metadata == METADATA
    for i, record in enumerate(written):
        check(proxies[i], record)
    check(proxies[-1], written[7])
    assert len(list(proxies)) == 8 and proxies.prompts() == [record["prompt"] for record in written]
    with pytest.raises(IndexError):
        proxies[8]
    assert len(list((tmp_path / "run" / "proxies").glob("*array_record*"))) == 3
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["proxies"]


def test_plain_tfds_opens_it(tmp_path):
    written = records(3)
    proxy_set.write(tmp_path / "proxies", written, METADATA)
    (tmp_path / "proxies").rename(tmp_path / "moved")
    rows = tfds.builder_from_directory(tmp_path / "moved").as_data_source("train")
    assert len(rows) == 3
    for row, record in zip(rows, written, strict=True):
        np.testing.assert_array_equal(row["image"], record["image"])
        assert row["prompt"].decode() == record["prompt"] and row["seed"] == record["seed"] and row["index"] == record["index"]
        assert row["supervisor"] == b"sd3" and row["config_hash"] == b"c0ffee"


def test_the_same_records_give_the_same_files_in_one_process(tmp_path):
    """Not in two: protobuf orders an example's fields anew in each process."""
    for name in ("one", "two"):
        proxy_set.write(tmp_path / name, records(5), METADATA)
    proxy_set.write(tmp_path / "other", [*records(4), records(6)[5]], METADATA)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "other")]
    assert files[0] == files[1] and len(files[0]) == 4
    assert files[0] != files[2]
    assert str(tmp_path).encode() not in b"".join(files[0].values())


def test_png_bytes_are_kept_as_they_are(tmp_path):
    record = records(1)[0]
    data = images.encode_png(record["image"])
    proxy_set.write(tmp_path / "proxies", [{**record, "image": data}], {})
    rows = tfds.builder_from_directory(tmp_path / "proxies").as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert rows[0]["image"] == data
    check(proxy_set.read(tmp_path / "proxies")[0], record)


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    def interrupted():
        yield from records(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proxy_set.write(tmp_path / "proxies", interrupted(), METADATA)
    assert not list(tmp_path.iterdir())
    proxy_set.write(tmp_path / "proxies", records(3), METADATA)
    with pytest.raises(KeyboardInterrupt):
        proxy_set.write(tmp_path / "proxies", interrupted(), METADATA)
    assert len(proxy_set.read(tmp_path / "proxies")) == 3
    proxy_set.write(tmp_path / "proxies", records(4), METADATA)
    assert len(proxy_set.read(tmp_path / "proxies")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["proxies"]


def test_wrong_records_are_refused(tmp_path):
    with pytest.raises(proxy_set.ProxySetError, match="no records"):
        proxy_set.write(tmp_path / "proxies", [], METADATA)
    record = records(1)[0]
    for wrong in ({**record, "cfg": 7.0}, {name: value for name, value in record.items() if name != "seed"}):
        with pytest.raises(proxy_set.ProxySetError, match="a record has the fields"):
            proxy_set.write(tmp_path / "proxies", [wrong], METADATA)
    with pytest.raises(images.ImageError, match="float"):
        proxy_set.write(tmp_path / "proxies", [{**record, "image": images.to_float(record["image"])}], METADATA)
    assert not list(tmp_path.iterdir())
    with pytest.raises(proxy_set.ProxySetError, match="holds no proxy set"):
        proxy_set.read(tmp_path / "proxies")


def test_tensorflow_is_never_imported(tmp_path):
    """A full write and read of both datasets, in a process that refuses to import TensorFlow."""
    code = """
        import builtins, sys
        from pathlib import Path
        import numpy as np
        real = builtins.__import__
        def guarded(name, *args, **kwargs):
            if name.split(".")[0] == "tensorflow":
                raise AssertionError("tensorflow was asked for")
            return real(name, *args, **kwargs)
        builtins.__import__ = guarded
        from PIL import Image
        import tensorflow_datasets as tfds
        from proxy_jax.data import dreambench, loader, proxy_set
        folder = Path(sys.argv[1])
        record = dict(image=np.zeros((4, 4, 3), np.uint8), prompt="p", seed=1, index=0, supervisor="s", config_hash="h")
        proxy_set.write(folder / "proxies", [record] * 3, {"a": 1})
        rows = tfds.builder_from_directory(folder / "proxies").as_data_source("train")
        print(next(loader.batches(rows, batch_size=4, seed=0))["image"].shape)
        print(len(list(proxy_set.read(folder / "proxies"))))
        (folder / "source" / "dog").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "source" / "dog" / "0.jpg")
        (folder / "source" / dreambench.CLASSES_FILE).write_text("subject_name,class\\ndog,dog\\n")
        builder = dreambench.prepare(folder / "source", folder / "data")
        print(builder.as_data_source("train")[0]["image"].shape, len(dreambench.photos(builder, "dog")))
        assert "tensorflow" not in sys.modules
        assert "torch" not in sys.modules
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["(4, 4, 4, 3)", "3"] and run.stdout.rstrip().endswith("(4, 4, 3) 1")
