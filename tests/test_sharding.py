"""The mesh and the rules: sizes, unknown and colliding axes, what is split, what may not be replicated."""

import dataclasses

import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from proxy_jax import sharding


def mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), sharding.AXES)


def test_make_mesh_fills_in_what_remains_and_refuses_what_does_not_fit():
    devices = list(range(8))
    assert dict(sharding.make_mesh(-1, 2, 2, np.asarray(devices)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    for sizes in ((3, 1, 1), (-1, 3, 1), (-1, -1, 1)):
        with pytest.raises(sharding.ShardingError):
            sharding.make_mesh(*sizes, np.asarray(devices))


def test_slices_are_joined_by_data_alone_and_a_process_holds_a_block():
    places = [(number % 2, number % 4, number) for number in range(8)]  # as no process and no slice comes first
    device = dataclasses.make_dataclass("Device", ["slice_index", "process_index", "id", ("platform", str, "tpu")], frozen=True)
    devices = [device(*place) for place in places]
    found = sharding.make_mesh(2, 2, 2, devices).devices
    assert [[device.slice_index for device in half.flat] for half in found] == [[0] * 4, [1] * 4]
    assert [device.process_index for device in found.flat] == [0, 0, 2, 2, 1, 1, 3, 3]
    with pytest.raises(sharding.ShardingError, match="2 slices are joined by data alone"):
        sharding.make_mesh(1, 4, 2, devices)
    assert sharding.count_slices([dataclasses.replace(one, platform="gpu") for one in devices]) == 1, "of GPUs it is the host"


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("embed", "mlp"), (8, 8), P("fsdp", "tensor")),
        (("layers", "embed", "heads"), (3, 8, 8), P(None, "fsdp", "tensor")),
        (("embed", "mlp"), (7, 8), P(None, "tensor")),  # 7 does not divide
        (("batch", "length", "act_embed"), (8, 5, 6), P(("data", "fsdp"), None, None)),
        (("batch", "length", "act_embed"), (6, 5, 6), P(None, None, None)),
    ],
)
def test_spec_follows_the_rules(axes, shape, expected):
    assert sharding.spec(axes, shape, mesh(2, 2, 2)) == expected


def test_spec_refuses_unknown_and_colliding_axes():
    with pytest.raises(sharding.ShardingError, match="no rule for the logical axis 'embde'"):
        sharding.spec(("embde", "mlp"), (8, 8), mesh(2, 2, 2))
    with pytest.raises(sharding.ShardingError, match="twice"):
        sharding.spec(("mlp", "heads"), (8, 8), mesh(2, 2, 2))
    with pytest.raises(sharding.ShardingError, match="2 logical axes"):
        sharding.spec(("embed", "mlp"), (8, 8, 8), mesh(2, 2, 2))


def test_a_large_parameter_that_should_be_split_and_cannot_be_is_refused():
    odd, even = (1023, 1023), (1024, 1024)
    with pytest.raises(sharding.ShardingError, match=r"big \(1023, 1023\) \(4.0 MiB\)"):
        sharding.parameter("big", ("embed", "mlp"), odd, 4, mesh(1, 2, 2))
    assert not sharding.parameter("big", ("embed", "mlp"), even, 4, mesh(1, 2, 2)).is_fully_replicated
    assert sharding.parameter("small", ("embed", "mlp"), (5, 5), 4, mesh(1, 2, 2)).is_fully_replicated
    assert sharding.parameter("whole", ("embed", "mlp"), odd, 4, mesh(4, 1, 1)).is_fully_replicated, "only the batch is split"


def test_padded_rounds_up_to_the_mesh_in_use():
    assert sharding.padded(5) == 5
    with sharding.use(mesh(4, 2, 1)):
        assert [sharding.padded(n) for n in (1, 8, 9)] == [8, 8, 16]
    assert sharding.current() is None


@pytest.mark.parametrize(
    ("devices", "rows", "held", "expected"),
    [
        (8, 4, 1, (4, 1, 2)),  # small weights are not split; 4 rows, so heads take the other two
        (8, 8, 60, (1, 8, 1)),  # 60 / 8 is the first part below half the room
        (16, 4, 40, (2, 2, 4)),
        (16, 16, 1000, (1, 16, 1)),  # too large for all: as far as it goes
        (6, 4, 1, (2, 1, 3)),
    ],
)
def test_a_mesh_splits_rows_then_heads_and_weights_no_further_than_needed(devices, rows, held, expected):
    sizes, why = sharding.auto_sizes(devices, rows=rows, held=held * 2**30, room=16 * 2**30)
    assert tuple(sizes.values()) == expected and f"cut in {sizes['fsdp'] * sizes['tensor']}" in why


@pytest.mark.parametrize(
    ("devices", "rows", "held", "expected"),
    [
        (16, 16, 1, (16, 1, 1)),
        (16, 16, 13, (8, 1, 2)),  # 13 GiB leave half of 16 free when heads are split in two: fsdp would gather weights for every token
        (16, 8, 1, (8, 1, 2)),  # no more rows
        (256, 8, 1, (32, 1, 8)),  # rows are filled up where heads would be split too far
        (16, 16, 100, (1, 2, 8)),
    ],
)
def test_a_mesh_for_drawing_splits_heads_before_weights(devices, rows, held, expected):
    assert tuple(sharding.drawing_sizes(devices, rows=rows, held=held * 2**30, room=16 * 2**30).values()) == expected


def test_weights_are_cut_inside_a_slice():
    sizes, _ = sharding.auto_sizes(16, rows=16, held=1000 * 2**30, room=16 * 2**30, slices=2)
    assert tuple(sizes.values()) == (2, 8, 1)
    assert tuple(sharding.drawing_sizes(16, rows=16, held=1000 * 2**30, room=1, slices=2).values()) == (2, 1, 8)
    with pytest.raises(sharding.ShardingError, match="2 slices cannot share"):
        sharding.auto_sizes(16, rows=5, held=0, room=1, slices=2)


def test_too_few_rows_for_the_devices_are_refused():
    with pytest.raises(sharding.ShardingError, match="a multiple of 32"):
        sharding.auto_sizes(256, rows=4, held=0, room=1)
