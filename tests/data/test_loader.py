"""proxy_jax/data/loader.py: order, epochs, processes, checkpoints, tables, prior preservation."""

import itertools
import json

import numpy as np
import pytest

from proxy_jax.data import loader, proxy_set

ROWS = 10


def columns(count: int = ROWS, start: int = 0) -> dict[str, np.ndarray]:
    """Examples that say which row they are."""
    row = np.arange(start, start + count)
    return {"row": row, "latents": np.stack([row, -row], 1).astype(np.float32)}


def take(iterator, steps: int) -> list[dict]:
    return list(itertools.islice(iterator, steps))


def rows_of(batches: list[dict]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def same(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_every_epoch_has_every_row_once_in_a_new_order():
    seen = np.concatenate(rows_of(take(loader.batches(columns(), batch_size=4, seed=3), 15)))  # 60 rows: six epochs
    epochs = seen.reshape(6, ROWS)
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_columns_stay_together_and_keep_their_types():
    for batch in take(loader.batches(columns(), batch_size=4, seed=0), 6):
        np.testing.assert_array_equal(batch["latents"], np.stack([batch["row"], -batch["row"]], 1))
        assert batch["latents"].dtype == np.float32 and batch["row"].dtype == np.int64
        np.testing.assert_array_equal(batch["loss_weight"], np.ones(4, np.float32))
        assert batch["loss_weight"].dtype == np.float32


def test_the_seed_decides_the_order():
    orders = {seed: rows_of(take(loader.batches(columns(), batch_size=5, seed=seed), 4)) for seed in range(4)}
    assert len({str(order) for order in orders.values()}) == 4
    assert orders[2] == rows_of(take(loader.batches(columns(), batch_size=5, seed=2), 4))


def test_without_shuffling_rows_come_in_order():
    assert rows_of(take(loader.batches(columns(5), batch_size=4, seed=0, shuffle=False), 3)) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]


def test_fewer_examples_than_rows_repeat():
    for batch in take(loader.batches(columns(5), batch_size=8, seed=0), 4):
        assert len(batch["row"]) == 8 and set(batch["row"].tolist()) == set(range(5))
    assert rows_of(take(loader.batches(columns(1), batch_size=2, seed=0), 2)) == [[0, 0], [0, 0]]


def make(kind: str, **options):
    if kind == "batches":
        return loader.batches(columns(7), batch_size=4, seed=5, **options)
    return loader.paired(columns(5), columns(9, start=100), prior_weight=0.5, batch_size=4, seed=5, **options)


@pytest.mark.parametrize("kind", ["batches", "paired"])
@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_one_global_batch(kind, process_count):
    whole = take(make(kind), 9)
    parts = [take(make(kind, process_index=p, process_count=process_count), 9) for p in range(process_count)]
    assert all(len(batch["row"]) == 4 // process_count for part in parts for batch in part)
    joined = [{name: np.concatenate([part[step][name] for part in parts]) for name in whole[0]} for step in range(9)]
    same(joined, whole)


@pytest.mark.parametrize("kind", ["batches", "paired"])
@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_a_restored_iterator_goes_on_with_the_same_batches(kind, steps):
    first = make(kind)
    take(first, steps)
    state = json.loads(json.dumps(first.get_state()))
    rest = take(first, 5)
    fresh = make(kind)
    fresh.set_state(state)
    same(take(fresh, 5), rest)
    first.set_state(state)  # also back on the same iterator, whose read-ahead is past it
    same(take(first, 5), rest)


def test_a_state_holds_for_other_process_counts():
    first = make("batches")
    take(first, 3)
    halves = [make("batches", process_index=p, process_count=2) for p in range(2)]
    for half in halves:
        half.set_state(first.get_state())
    rest = take(first, 4)
    assert rows_of(rest) == [a + b for a, b in zip(*(rows_of(take(half, 4)) for half in halves), strict=True)]


def test_tables_are_gathered_by_the_index_column():
    tables = {"text": np.arange(6, dtype=np.float32).reshape(3, 2), "mask": np.array([[True], [False], [True]])}
    examples = columns() | {loader.TABLE_INDEX: np.arange(ROWS) % 3}
    for batch in take(loader.batches(examples, batch_size=4, seed=0, tables=tables), 5):
        assert set(batch) == {"row", "latents", "text", "mask", "loss_weight"}
        np.testing.assert_array_equal(batch["text"], tables["text"][batch["row"] % 3])
        np.testing.assert_array_equal(batch["mask"], tables["mask"][batch["row"] % 3])


def test_a_random_access_source(tmp_path):
    sizes = (3, 4)
    records = [
        {"image": np.full((*sizes, 3), i, np.uint8), "prompt": "p", "seed": i, "index": i, "supervisor": "s", "config_hash": "h"} for i in range(5)
    ]
    proxy_set.write(tmp_path / "proxies", records, {})
    for batch in take(loader.batches(proxy_set.read(tmp_path / "proxies"), batch_size=4, seed=0), 3):
        assert batch["image"].shape == (4, *sizes, 3) and batch["prompt"].tolist() == ["p"] * 4
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_prior_preservation_weights_the_two_means(weight):
    rng = np.random.default_rng(0)
    for batch in take(loader.paired(columns(3), columns(50, start=100), prior_weight=weight, batch_size=6, seed=0), 4):
        assert (batch["row"][:3] < 100).all() and (batch["row"][3:] >= 100).all()
        loss = rng.random(6)
        np.testing.assert_allclose(np.mean(loss * batch["loss_weight"]), loss[:3].mean() + weight * loss[3:].mean(), rtol=1e-6)


def test_both_sets_are_shuffled_on_their_own():
    batches = take(loader.paired(columns(10), columns(10, start=100), prior_weight=1.0, batch_size=4, seed=0), 5)
    instance = np.concatenate([batch["row"][:2] for batch in batches])
    prior = np.concatenate([batch["row"][2:] for batch in batches])
    assert sorted(instance) == list(range(10)) and sorted(prior) == list(range(100, 110))
    assert (instance != prior - 100).any()


def test_pairs_share_tables():
    tables = {"text": np.array([[1.0], [2.0]])}
    own = columns(3) | {loader.TABLE_INDEX: np.zeros(3, int)}
    prior = columns(4) | {loader.TABLE_INDEX: np.ones(4, int)}
    batch = next(loader.paired(own, prior, prior_weight=1.0, batch_size=4, seed=0, tables=tables))
    np.testing.assert_array_equal(batch["text"][:, 0], [1, 1, 2, 2])


INDEXED = columns() | {loader.TABLE_INDEX: np.arange(ROWS)}


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (columns(), {"batch_size": 6, "process_count": 4}, "cannot be split over 4"),
        (columns(), {"batch_size": 0}, "batch of 0"),
        (columns(), {"process_index": 2, "process_count": 2}, "process 2 of 2"),
        (columns(0), {}, "there are no examples"),
        ([], {}, "there are no examples"),
        (columns() | {"short": np.zeros(3)}, {}, "have lengths"),
        (columns() | {"loss_weight": np.ones(ROWS)}, {}, "adds itself"),
        (columns(), {"tables": {"text": np.zeros((3, 2))}}, "no column 'prompt_index'"),
        (INDEXED, {"tables": {"latents": np.zeros((ROWS, 2))}}, "adds itself"),
        (INDEXED, {"tables": {"text": np.zeros((ROWS - 1, 2))}}, "table 'text' of 9 rows"),
        (INDEXED | {loader.TABLE_INDEX: np.full(ROWS, -1)}, {"tables": {"text": np.zeros((3, 2))}}, "prompt_index -1"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(examples, options, message):
    with pytest.raises(loader.LoaderError, match=message):
        loader.batches(examples, **{"batch_size": 4, "seed": 0} | options)


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(loader.LoaderError, match="odd"):
        loader.paired(columns(), columns(), prior_weight=1.0, batch_size=5, seed=0)
    other = columns() | {"latents": np.zeros((ROWS, 3), np.float32)}
    with pytest.raises(loader.LoaderError, match="prior rows"):
        loader.paired(columns(), other, prior_weight=1.0, batch_size=4, seed=0)
    with pytest.raises(loader.LoaderError, match="no prior examples"):
        loader.paired(columns(), columns(0), prior_weight=1.0, batch_size=4, seed=0)
