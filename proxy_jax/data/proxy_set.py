"""The proxy set: the supervisor's images with their prompts, as a TFDS dataset (array_record; no TensorFlow needed).

    proxy_set.write(folder, records)                                        # stage 2
    proxies = proxy_set.read(folder); proxies[0]["image"]                   # stage 3
    tfds.builder_from_directory(folder).as_data_source("train")             # anyone, with TFDS alone

Records are written one after another: the set may be larger than memory, and its order is the records' order.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from proxy_jax import processes
from proxy_jax.data import images

NAME = "proxy_set"
VERSION = "1.0.0"
SPLIT = "train"
RECORDS_PER_SHARD = 256
FIELDS = ("image", "prompt", "seed", "index", "supervisor", "config_hash")

_DESCRIPTION = """
Images drawn by a diffusion model tuned on one subject (the supervisor), with the prompts they were drawn for: training data of an
autoregressive model (Proxy-Tuning). seed and index say which sampling noise drew an image, config_hash with which settings.
"""


class ProxySetError(ValueError):
    """Records that are not a proxy set's, or a folder that holds none."""


def _features() -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "prompt": tfds.features.Text(),
            "seed": np.int64,
            "index": np.int64,
            "supervisor": tfds.features.Text(),
            "config_hash": tfds.features.Text(),
        }
    )


def _example(record: Mapping[str, Any]) -> dict[str, Any]:
    if set(record) != set(FIELDS):
        raise ProxySetError(f"a record has the fields {FIELDS}, got {tuple(record)}")
    image = record["image"]
    # Bytes, not pixels: TFDS would encode pixels through TensorFlow.
    return {**record, "image": image if isinstance(image, bytes) else images.encode_png(image)}


def write(folder: Path, records: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> None:
    """Writes `records` as the proxy set `folder`, replacing what was there; it appears whole or not at all.

    A record holds image (uint8 [height, width, 3], or PNG bytes), prompt (str), seed and index (int), supervisor and
    config_hash (str). metadata: JSON-able facts about the set (versions, checkpoint, sampler).
    Of several processes the first does.
    Raises ProxySetError for other fields or no records.
    """
    if not processes.is_first():
        return
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    records = iter(records)
    first = next(records, None)
    if first is None:
        raise ProxySetError(f"no records to write to {folder}")
    partial.mkdir(parents=True)
    try:
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(name=NAME, version=VERSION, data_dir=str(partial), module_name=__name__),
            description=_DESCRIPTION,
            features=_features(),
            metadata=tfds.core.MetadataDict(metadata),
        )
        # Not a GeneratorBasedBuilder: its shuffler holds everything in memory and past 1 GB goes through TensorFlow.
        writer = tfds.core.SequentialWriter(info, max_examples_per_shard=RECORDS_PER_SHARD, file_format="array_record")
        writer.initialize_splits([SPLIT])
        for record in chain([first], records):
            writer.add_examples({SPLIT: [_example(record)]})
        writer.close_all()
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class ProxySet(Sequence):
    """A proxy set, read at random: [i] is the record that was written i-th, with image as uint8 [height, width, 3]."""

    def __init__(self, folder: Path):
        self.folder = folder
        builder = tfds.builder_from_directory(folder)
        self._rows = builder.as_data_source(SPLIT, decoders={"image": tfds.decode.SkipDecoding()})
        self.metadata: dict[str, Any] = dict(builder.info.metadata)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of a proxy set of {len(self)}")
        row = self._rows[i % len(self)]
        texts = {name: row[name].decode() for name in ("prompt", "supervisor", "config_hash")}
        return {"image": images.decode(row["image"]), "seed": int(row["seed"]), "index": int(row["index"])} | texts

    def prompts(self) -> list[str]:
        """The prompt of every record, in order; no image is decoded."""
        return [row["prompt"].decode() for row in self._rows]


def read(folder: Path) -> ProxySet:
    """The proxy set in `folder`. Raises ProxySetError if there is none."""
    folder = Path(folder)
    if not (folder / "dataset_info.json").is_file():
        raise ProxySetError(f"{folder} holds no proxy set (no dataset_info.json)")
    return ProxySet(folder)
