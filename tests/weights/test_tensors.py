"""Opening checkpoints: types, slices, shards, which file of a folder, broken files, and how much is read."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.tensors import choose, open_tensors, without_variant, write_safetensors

ALL = slice(None)


def whole(tensors, name):
    return tensors.read(name, (ALL,) * len(tensors.shapes()[name]))


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64", "bfloat16"],
)
def test_every_type_is_read_in_slices(tmp_path, dtype):
    values = (np.arange(3 * 5 * 7).reshape(3, 5, 7) % 100).astype(getattr(ml_dtypes, dtype, None) or dtype)
    save_file({"odd": np.zeros(3, np.uint8), "x": values}, tmp_path / "x.safetensors")
    read = open_tensors(tmp_path / "x.safetensors").read("x", (slice(1, 3), ALL, slice(2, 6, 2)))
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values[1:3, :, 2:6:2])


def test_float8_written_by_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="numpy has no float8 to write")
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([[0.5, -2.0, 1.5], [16.0, 0.0, -0.25]])
    save_torch({"e4m3": values.to(torch.float8_e4m3fn), "e5m2": values.to(torch.float8_e5m2)}, tmp_path / "x.safetensors")
    tensors = open_tensors(tmp_path / "x.safetensors")
    for name in ("e4m3", "e5m2"):
        np.testing.assert_array_equal(tensors.read(name, (ALL, slice(1, 3))).astype(np.float32), values.numpy()[:, 1:])


def test_scalars_empty_tensors_and_unaligned_data(tmp_path):
    # The data of "b" starts at an odd byte of the file.
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "F32", "shape": [], "data_offsets": [1, 5]},
            "c": {"dtype": "F32", "shape": [0, 4], "data_offsets": [5, 5]},
            "d": {"dtype": "BF16", "shape": [2], "data_offsets": [5, 9]},
        }
    ).encode()
    data = b"\x07" + struct.pack("<f", 2.5) + np.asarray([1.5, -2], ml_dtypes.bfloat16).tobytes()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    tensors = open_tensors(tmp_path / "x.safetensors")
    assert tensors.shapes() == {"a": (1,), "b": (), "c": (0, 4), "d": (2,)}
    assert whole(tensors, "b") == np.float32(2.5)
    assert isinstance(whole(tensors, "b"), np.ndarray)
    assert tensors.read("c", (ALL, slice(1, 3))).shape == (0, 2)
    assert whole(tensors, "d").tolist() == [1.5, -2]


def test_what_is_read_is_a_copy(tmp_path):
    save_file({"x": np.arange(4.0)}, tmp_path / "x.safetensors")
    tensors = open_tensors(tmp_path / "x.safetensors")
    whole(tensors, "x")[:] = 9
    assert whole(tensors, "x").tolist() == [0, 1, 2, 3]


def write_shards(folder: Path, weight_map=None):
    save_file({"a": np.arange(3.0), "b": np.ones((2, 2))}, folder / "model-00001-of-00002.safetensors")
    save_file({"c": np.full(2, 7.0)}, folder / "model-00002-of-00002.safetensors")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = {"metadata": {}, "weight_map": {"a": first, "b": first, "c": second} if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_by_folder_and_by_index(tmp_path):
    write_shards(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        tensors = open_tensors(path)
        assert tensors.shapes() == {"a": (3,), "b": (2, 2), "c": (2,)}
        assert whole(tensors, "a").tolist() == [0, 1, 2] and whole(tensors, "c").tolist() == [7, 7]


def test_shards_that_are_not_what_the_index_says(tmp_path):
    write_shards(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.unlink()
    with pytest.raises(CheckpointError, match=r"not beside it: model-00002-of-00002.safetensors"):
        open_tensors(tmp_path)
    save_file({"d": np.zeros(1)}, second)
    with pytest.raises(CheckpointError, match=r"not where the index says: \['c in model-00002"):
        open_tensors(tmp_path)
    save_file({"c": np.zeros(2), "a": np.zeros(3)}, second)
    with pytest.raises(CheckpointError, match=r"in two shards: \['a'\]"):
        open_tensors(tmp_path)


def test_an_index_may_not_leave_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"a": np.zeros(1)}, tmp_path / "secret.safetensors")
    write_shards(tmp_path / "in", {"a": "../secret.safetensors"})
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_tensors(tmp_path / "in")
    (tmp_path / "in" / "model.safetensors.index.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not an index of shards"):
        open_tensors(tmp_path / "in")


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["model.fp16.safetensors", "model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.safetensors"],
         "diffusion_pytorch_model.safetensors"),
        (["model.safetensors.index.json", "model.safetensors.index.fp16.json", "model-00001-of-00002.safetensors"], "model.safetensors.index.json"),
        (["pytorch_model.bin", "model.fp16.safetensors"], "pytorch_model.bin"),
        (["model.fp16.safetensors", "config.json"], "model.fp16.safetensors"),
        (["model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"], "model.safetensors.index.fp16.json"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"], "pytorch_model.bin.index.json"),
        (["weights.safetensors", "config.json", "notes.txt"], "weights.safetensors"),
    ],
)  # fmt: skip
def test_which_file_of_a_folder(tmp_path, present, chosen):
    for name in present:
        (tmp_path / name).touch()
    assert choose(tmp_path).name == chosen


def test_a_folder_without_clear_weights(tmp_path):
    for name in ("one.safetensors", "two.safetensors", "flax_model.msgpack"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"found flax_model.msgpack, one.safetensors, two.safetensors"):
        open_tensors(tmp_path)


def test_names_without_their_variant():
    assert without_variant("model.fp16-00001-of-00002.safetensors") == "model-00001-of-00002.safetensors"
    assert without_variant("diffusion_pytorch_model-00001-of-00002.fp16.safetensors") == "diffusion_pytorch_model-00001-of-00002.safetensors"
    assert without_variant("pytorch_model.bin.index.json") == "pytorch_model.bin.index.json"
    assert without_variant("sd3.5_medium.safetensors") == "sd3.5_medium.safetensors"


def safetensors(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


BROKEN = {
    "empty": (b"", "cut short"),
    "no header": (b"\x10\0\0", "cut short"),
    "huge header": (safetensors(b"{}", length=1 << 60), "cut short"),
    "not JSON": (safetensors(b"nonsense"), "not JSON"),
    "unknown type": (safetensors({"x": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}, b"1"), "of type F4"),
    "too short": (safetensors({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"123"), "does not fit"),
    "wrong size": (safetensors({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}, b"1" * 16), "does not fit"),
    "negative": (safetensors({"x": {"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]}}, b"1" * 16), "does not fit"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path, case):
    content, message = BROKEN[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path / "x.safetensors")


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"no file .*nothing.safetensors"):
        open_tensors(tmp_path / "nothing.safetensors")
    (tmp_path / "x.h5").touch()
    with pytest.raises(CheckpointError, match="not a weight file that we read"):
        open_tensors(tmp_path / "x.h5")


READ_IN_SLICES = """
import re, sys
from pathlib import Path
from proxy_jax.weights.tensors import open_tensors

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

tensors, axis, parts = open_tensors(Path(sys.argv[1])), int(sys.argv[2]), 8
before, total = peak(), 0
for name, shape in tensors.shapes().items():
    size = shape[axis] // parts
    for part in range(parts):
        index = [slice(None)] * len(shape)
        index[axis] = slice(part * size, (part + 1) * size)
        total += tensors.read(name, tuple(index)).nbytes
print(total, peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """16 tensors of 16 MiB in two shards; sparse on disk."""
    folder = tmp_path_factory.mktemp("large")
    shard_of, size = {}, 16 << 20
    for shard in range(2):
        entries = {f"t{8 * shard + i}": {"dtype": "F32", "shape": [2048, 2048], "data_offsets": [i * size, (i + 1) * size]} for i in range(8)}
        head = safetensors(entries)
        with (folder / f"model-{shard}.safetensors").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + 8 * size)
        shard_of |= {name: f"model-{shard}.safetensors" for name in entries}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory of one process is read from /proc")
@pytest.mark.parametrize(("axis", "limit_mib"), [(0, 12), (1, 40)])
def test_memory_stays_small_while_a_large_file_is_read(large, axis, limit_mib):
    # getrusage will not do: its maximum includes what the parent process held before exec.
    command = [sys.executable, "-c", READ_IN_SLICES, str(large), str(axis)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    total, growth = map(int, output.split())
    print(f"axis {axis}: read {total >> 20} MiB, peak memory grew by {growth / 2**20:.1f} MiB")
    assert total == 256 << 20
    assert growth < limit_mib << 20


def test_written_files_are_the_same_bytes_every_time(tmp_path):
    """The library alone orders two metadata entries by chance."""
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.ones(1, np.int32)}
    metadata = {f"key {i}": 'é"\n' * i for i in range(9)}
    contents = set()
    for number in range(8):
        write_safetensors(tensors, tmp_path / f"{number}.safetensors", metadata)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0.safetensors", "numpy") as file:
        assert file.metadata() == metadata
        np.testing.assert_array_equal(file.get_tensor("b"), tensors["b"])
