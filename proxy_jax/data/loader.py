"""Training batches with grain: endless, reshuffled every epoch, split over processes, resumable.

Examples are columns of one length, or any random-access source of dicts of arrays (a TFDS data source, a ProxySet). The global
batch of a step depends on the seed alone: with P processes, process p gets its p-th block of rows, so the blocks of all
processes put one after another (which is what `sharding.put_share` does) are the one batch that a single process would get.

What many examples share is kept once, in `tables`: arrays with one row an entry (text features, with one row a prompt). Examples
then have the column "prompt_index", and each batch gets, for every table, the rows of its own examples, gathered, in place of
that column.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

TABLE_INDEX = "prompt_index"
LOSS_WEIGHT = "loss_weight"

Examples = Mapping[str, np.ndarray] | Sequence[Mapping[str, Any]]
Batches = grain.DatasetIterator

# Batches built ahead of the step that wants them: few, since each may be large.
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


class LoaderError(ValueError):
    """Examples, tables or batch sizes that do not fit together."""


def _gather(examples: Examples, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of `examples`, stacked by column."""
    if isinstance(examples, Mapping):
        return {name: np.asarray(column)[rows] for name, column in examples.items()}
    picked = [examples[int(row)] for row in rows]
    return {name: np.stack([row[name] for row in picked]) for name in picked[0]}


def _check_index(index: np.ndarray, tables: Mapping[str, np.ndarray]) -> None:
    for name, table in tables.items():
        if index.min() < 0 or index.max() >= len(table):
            raise LoaderError(f"{TABLE_INDEX} {index.min()}..{index.max()} for the table {name!r} of {len(table)} rows")


def _look_up(batch: dict[str, np.ndarray], tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`batch` with each table's rows in place of the index column."""
    if not tables:
        return batch
    index = batch.pop(TABLE_INDEX)
    _check_index(index, tables)
    return batch | {name: np.asarray(table)[index] for name, table in tables.items()}


def _check(examples: Examples, tables: Mapping[str, np.ndarray], what: str) -> dict[str, tuple]:
    """What one row of `examples` is: column -> (shape, dtype). Raises LoaderError if columns and tables do not fit together."""
    lengths = {name: len(column) for name, column in examples.items()} if isinstance(examples, Mapping) else {"": len(examples)}
    if len(set(lengths.values())) != 1:
        raise LoaderError(f"the columns of the {what} have lengths {lengths}")
    if 0 in lengths.values():
        raise LoaderError(f"there are no {what}")
    row = _gather(examples, np.zeros(1, np.int64))
    if tables and TABLE_INDEX not in row:
        raise LoaderError(f"there are tables {sorted(tables)} but the {what} have no column {TABLE_INDEX!r}")
    if clash := (set(tables) | {LOSS_WEIGHT}) & set(row):
        raise LoaderError(f"columns of the {what} that the loader adds itself: {sorted(clash)}")
    if isinstance(examples, Mapping) and tables:
        _check_index(np.asarray(examples[TABLE_INDEX]), tables)
    return {name: (column.shape[1:], column.dtype) for name, column in row.items()}


def _length(examples: Examples) -> int:
    return len(next(iter(examples.values()))) if isinstance(examples, Mapping) else len(examples)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that are this process's own."""
    if batch_size < 1 or batch_size % process_count:
        raise LoaderError(f"a batch of {batch_size} cannot be split over {process_count} processes")
    if not 0 <= process_index < process_count:
        raise LoaderError(f"process {process_index} of {process_count}")
    own = batch_size // process_count
    return slice(process_index * own, (process_index + 1) * own)


class _Order:
    """Step -> the numbers [rows] of its examples: epoch after epoch, batches running over the ends of epochs.

    grain's own shuffle is not used: it walks a domain of 2^16 and more to find each place, which with a handful of photos takes
    milliseconds a row.
    """

    def __init__(self, length: int, rows: int, seed: Sequence[int] | None):
        self._length, self._rows, self._seed = length, rows, seed
        self._epoch = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._seed is None:
            return np.arange(self._length)
        return np.random.default_rng([*self._seed, epoch]).permutation(self._length)

    def __getitem__(self, step: int) -> np.ndarray:
        places = range(step * self._rows, (step + 1) * self._rows)
        return np.array([self._epoch(place // self._length)[place % self._length] for place in places])


class _Steps:
    """An endless grain source: step -> the numbers of its examples in each of `orders`, one order after another."""

    def __init__(self, *orders: _Order):
        self._orders = orders

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> np.ndarray:
        return np.concatenate([order[step] for order in self._orders])


def _iterate(steps: _Steps, build: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Batches:
    return iter(grain.MapDataset.source(steps).map(build).to_iter_dataset(READ_AHEAD))


def batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    tables: Mapping[str, np.ndarray] | None = None,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """An endless iterator of {column: [batch_size / process_count, ...]}, with get_state() and set_state() for checkpoints.

    batch_size: rows a step over all processes. With fewer examples than rows they repeat within a batch. Every batch has
    "loss_weight", ones [rows], as `paired` has. The state is a dict for JSON; an iterator made with the same arguments
    (other process counts too) that is set to it goes on with the same batches.
    Raises LoaderError if the examples, tables and sizes do not fit together.
    """
    tables = tables or {}
    share = _share(batch_size, process_index, process_count)
    _check(examples, tables, "examples")

    def build(rows: np.ndarray) -> dict[str, np.ndarray]:
        own = rows[share]
        return _look_up(_gather(examples, own), tables) | {LOSS_WEIGHT: np.ones(len(own), np.float32)}

    return _iterate(_Steps(_Order(_length(examples), batch_size, (seed, 0) if shuffle else None)), build)


def paired(
    instance: Examples,
    prior: Examples,
    *,
    prior_weight: float,
    batch_size: int,
    seed: int,
    tables: Mapping[str, np.ndarray] | None = None,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """As `batches`, for prior preservation: the first half of each global batch are instance rows, the second half prior rows.

    "loss_weight" is such that mean(loss * loss_weight) over the global batch is mean(instance loss) + prior_weight * mean(prior loss).
    Both sets are shuffled and repeated on their own; their columns agree, and they share `tables`.
    Raises LoaderError as `batches` does, for an odd batch_size and for columns that differ.
    Source: diffusers' DreamBooth scripts (--with_prior_preservation).
    """
    if batch_size % 2:
        raise LoaderError(f"with prior preservation half of a batch are prior rows: {batch_size} is odd")
    tables, half = tables or {}, batch_size // 2
    share = _share(batch_size, process_index, process_count)
    columns, prior_columns = _check(instance, tables, "instance examples"), _check(prior, tables, "prior examples")
    if columns != prior_columns:
        raise LoaderError(f"instance rows have {columns}, prior rows {prior_columns}")
    weights = np.repeat(np.asarray([2, 2 * prior_weight], np.float32), half)[share]

    def build(rows: np.ndarray) -> dict[str, np.ndarray]:
        is_prior, own = np.arange(batch_size)[share] >= half, rows[share]
        parts = [_gather(instance, own[~is_prior])] if not is_prior.all() else []
        parts += [_gather(prior, own[is_prior])] if is_prior.any() else []
        batch = {name: np.concatenate([part[name] for part in parts]) for name in columns}
        return _look_up(batch, tables) | {LOSS_WEIGHT: weights.copy()}

    sets = [instance, prior]
    return _iterate(_Steps(*[_Order(_length(rows), half, (seed, i) if shuffle else None) for i, rows in enumerate(sets)]), build)
