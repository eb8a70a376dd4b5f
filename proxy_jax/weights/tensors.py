"""Opening a checkpoint: safetensors or PyTorch pickles, one file, an index of shards, or a folder that holds either.

The safetensors header is read here, because the library's numpy framework slices neither bfloat16 nor float8. Layout: 8 bytes of
header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data (https://huggingface.co/docs/safetensors).
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from proxy_jax import processes
from proxy_jax.weights.region import CheckpointError, Region, RegionTensors, contiguous
from proxy_jax.weights.torch_pickle import torch_regions

DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
HEADER_LIMIT = 100_000_000  # bytes; the format's own
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
# File names of weights in the Hugging Face layouts, most wanted first.
NAMES = tuple(f"{stem}{suffix}{index}" for suffix in (".safetensors", ".bin") for stem in STEMS for index in ("", ".index.json"))
# The ".fp16" of model.fp16.safetensors, model.fp16-00001-of-00002.safetensors and model.safetensors.index.fp16.json.
VARIANT = re.compile(r"\.(?!safetensors\b|bin\b|index\b)\w+(?=(-\d+-of-\d+)?\.)")


def open_tensors(path: Path) -> RegionTensors:
    """The tensors of a checkpoint: a weight file, a shards' *.index.json, or a folder with one of them (see `choose`).

    Nothing but names and shapes is read; slices are read as they are asked for. Raises CheckpointError for a missing or broken file.
    """
    path = Path(path)
    if path.is_dir():
        path = choose(path)
    if not path.is_file():
        raise CheckpointError(f"no file {path}")
    return RegionTensors(_shards(path) if path.suffix == ".json" else _regions(path))


def choose(folder: Path) -> Path:
    """The weights in a folder: safetensors before pickles, files without a variant (".fp16") before those with one.

    A folder with no customary name but a single weight file gives that file. Raises CheckpointError with what is there otherwise.
    """
    seen = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    for name in NAMES:
        if name in seen:
            return folder / name
    for name in NAMES:
        for candidate in seen:
            if without_variant(candidate) == name:
                return folder / candidate
    weights = [name for name in seen if name.endswith(SUFFIXES)]
    if len(weights) == 1:
        return folder / weights[0]
    raise CheckpointError(f"no weights in {folder}: looked for {', '.join(NAMES)}; found {', '.join(seen) or 'nothing'}")


def without_variant(name: str) -> str:
    """A weight file's or index's name without the variant that the Hugging Face layouts put between its dots; other names as they are."""
    return VARIANT.sub("", name) if name.startswith(STEMS) else name


def _regions(path: Path) -> dict[str, Region]:
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return torch_regions(path)
    raise CheckpointError(f"{path}: not a weight file that we read; those end in {', '.join(SUFFIXES)}")


def _shards(index: Path) -> dict[str, Region]:
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{index}: not an index of shards (JSON with a weight_map)") from error
    shards = sorted(set(shard_of.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{index} names files outside its folder: {', '.join(outside)}")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(f"{index} names shards that are not beside it: {', '.join(missing)}")
    regions = {shard: _regions(index.parent / shard) for shard in shards}
    absent = [f"{name} in {shard}" for name, shard in shard_of.items() if name not in regions[shard]]
    names = Counter(name for held in regions.values() for name in held)
    twice = [name for name, count in names.items() if count > 1]
    if absent or twice:
        raise CheckpointError(f"{index} and its shards disagree: not where the index says: {absent[:5]}, in two shards: {twice[:5]}")
    return {name: region for held in regions.values() for name, region in held.items()}


def _safetensors(path: Path) -> dict[str, Region]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise CheckpointError(f"{path}: not a safetensors file, or cut short ({size} bytes, a header of {length})")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CheckpointError(f"{path}: its safetensors header is not JSON") from error
    header.pop("__metadata__", None)
    return {name: _region(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _region(path: Path, name: str, entry: dict, start: int, size: int) -> Region:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: {name} is of type {entry['dtype']}; known: {', '.join(DTYPES)}")
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize or start + end > size:
        raise CheckpointError(f"{path}: {name} {entry} does not fit the file of {size} bytes: it is broken or cut short")
    return Region(path, start + begin, dtype, shape, contiguous(shape))


def write_safetensors(tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, whose bytes depend on the arguments alone; of several processes the first does.

    The library writes the metadata in an order that changes from run to run; it is put in order afterwards, in place.
    """
    if not processes.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}, partial, metadata=dict(metadata))
    with partial.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"the header of {partial} grew from {length} to {len(text)} bytes when put in order")
        file.seek(8)
        file.write(text.ljust(length))
    partial.rename(path)


def write_hollow(shapes: Mapping[str, tuple[int, ...]], path: Path, dtype: Any) -> None:
    """Writes a safetensors file of tensors of these names and shapes that are zeros, as a hole: it has its full size, but takes no room."""
    kind = next(name for name, known in DTYPES.items() if known == np.dtype(dtype))
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
