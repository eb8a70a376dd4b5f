"""The device mesh and the logical-axis rules: the only file that names mesh axes.

Models name what an axis *is* ("embed", "heads", "batch"); `RULES` says which mesh axis it is split over. The mesh has
three axes: `data` (replicas), `fsdp` (batch and parameters split together) and `tensor` (heads, MLP and vocabulary split).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

AXES = ("data", "fsdp", "tensor")

# logical axis -> mesh axis, or a tuple of mesh axes, or None (not split)
RULES: dict[str, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "embed": "fsdp",
    "embed_out": None,  # the second of two model-width axes of one kernel
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "position": None,
    "conv_window": None,
    "conv_in": None,
    "conv_out": "fsdp",
    "lora_rank": None,
    "scalar": None,
    # activations
    "batch": ("data", "fsdp"),
    "length": None,
    "height": None,
    "width": None,
    "act_embed": None,
    "act_mlp": "tensor",
    "act_heads": "tensor",
    "act_vocab": "tensor",
    "head_dim": None,
}

REPLICATED_LIMIT_BYTES = 1 << 20
MOST_TENSOR = 8  # beyond it the all-reduces of every layer cost more than they save

# Stands in for running a jitted function of a name with arguments and keyword arguments: returns the shapes of its outputs
Record = Callable[[str, Callable, tuple, dict], object]

_mesh: Mesh | None = None
_record: Record | None = None


class ShardingError(ValueError):
    """An axis that no rule knows, two axes of one array on one mesh axis, or a large parameter that no axis splits."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh over `devices` (all by default); one size may be -1: whatever remains.

    Slice after slice and process after process, so that a process holds a block of a batch's rows, and only `data`, the axis with the least
    traffic, joins slices. Raises ShardingError if the sizes do not multiply to the number of devices, or fsdp × tensor crosses slices.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=_place)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1:
        raise ShardingError(f"only one mesh axis may be -1, got {dict(zip(AXES, sizes, strict=True))}")
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise ShardingError(f"a mesh of {dict(zip(AXES, sizes, strict=True))} does not cover {len(devices)} devices")
    if sizes[0] % (slices := count_slices(devices)):
        raise ShardingError(f"{slices} slices are joined by data alone, whose size {sizes[0]} is no multiple of them; make fsdp or tensor smaller")
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def _place(device: jax.Device) -> tuple[int, int, int]:
    """A device's slice, process and number; GPUs have a slice_index too, which tells their hosts apart."""
    own = getattr(device, "slice_index", 0) if getattr(device, "platform", "") == "tpu" else 0
    return own, getattr(device, "process_index", 0), getattr(device, "id", 0)


def count_slices(devices: Sequence[jax.Device]) -> int:
    """How many TPU slices the devices are of, which only their hosts' network joins."""
    return len({_place(device)[0] for device in devices})


def auto_sizes(devices: int, *, rows: int, held: float, room: float, slices: int = 1) -> tuple[dict[str, int], str]:
    """The sizes of a mesh's axes for training on so many devices of so many slices, and why.

    rows: what every batch of the run is a multiple of. held: bytes of a model's weights and all that belongs to them in training; room: bytes
    of memory a device. Batches are split as far as they go, heads over the rest; weights no further than they must be, half of a device's
    memory being left to activations: each further split is traffic.
    Raises ShardingError if more devices than MOST_TENSOR would be left to the heads.
    """
    together = math.gcd(devices, rows)
    if together % slices:
        raise ShardingError(
            f"batches are multiples of {rows} rows, which {slices} slices cannot share; give a training.batch_size that is a multiple of the slices"
        )
    tensor = devices // together
    if tensor > MOST_TENSOR:
        least = devices // MOST_TENSOR
        raise ShardingError(
            f"batches are multiples of {rows} rows, which leaves {tensor} of {devices} devices to tensor parallelism, at most {MOST_TENSOR} of use; "
            f"give a training.batch_size that is a multiple of {least}"
        )
    most = together // slices
    fitting = [size for size in _divisors(most) if held / (size * tensor) <= room / 2]
    fsdp = fitting[0] if fitting else most
    gib = 2**30
    why = f"{rows} rows are split over {together}, heads over the other {tensor}" if tensor > 1 else f"rows are split over all {together}"
    why += f"; {held / gib:.1f} GiB of weights and their training state leave half of {room / gib:.1f} GiB free when cut in {fsdp * tensor}"
    return {"data": together // fsdp, "fsdp": fsdp, "tensor": tensor}, why


def drawing_sizes(devices: int, *, rows: int, held: float, room: float, slices: int = 1) -> dict[str, int]:
    """The sizes of a mesh's axes for drawing batches of `rows` on so many devices; held: bytes of a model's weights, room: as in `auto_sizes`.

    Heads are split as far as weights and batches ask for: weights split over fsdp would be gathered anew for every token. Only those that
    still do not leave half of the memory free are split so too.
    """
    inside = devices // slices
    wanted = [size for size in _divisors(inside) if size <= MOST_TENSOR]
    tensor = next((size for size in wanted if held / size <= room / 2 and devices // size <= rows), wanted[-1])
    rest = inside // tensor
    fsdp = next((size for size in _divisors(rest) if held / (size * tensor) <= room / 2), rest)
    return {"data": devices // (tensor * fsdp), "fsdp": fsdp, "tensor": tensor}


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


@contextlib.contextmanager
def use(mesh: Mesh | None) -> Iterator[Mesh | None]:
    """Makes `mesh` the one that `constrain` and the loaders use inside the block."""
    global _mesh
    previous, _mesh = _mesh, mesh
    try:
        yield mesh
    finally:
        _mesh = previous


def current() -> Mesh | None:
    """The mesh of the innermost `use`, or None."""
    return _mesh


def device() -> jax.Device:
    """A device of the mesh in use, or of this process: which may be one that is only compiled for."""
    return jax.devices()[0] if _mesh is None else _mesh.devices.flat[0]


@contextlib.contextmanager
def describe(record: Record) -> Iterator[None]:
    """Inside the block arrays on the mesh are shapes with their shardings, and programs go to `record` in place of being run.

    So all that loads, draws and encodes can be asked for its programs, on a mesh of devices that are not here.
    """
    global _record
    previous, _record = _record, record
    try:
        yield
    finally:
        _record = previous


def recorder() -> Record | None:
    """The `record` of the innermost `describe`, or None: programs run."""
    return _record


def described(shapes):
    """Shapes (a pytree) as a program leaves its outputs on the mesh in use: rows split where they can be."""

    def layout(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        split = x.shape and x.shape[0] % batch_multiple(_mesh) == 0
        return put(x, batch(_mesh) if split else replicated(_mesh))

    return jax.tree.map(layout, shapes)


def apply(function: Callable, *args, **kwargs):
    """function(*args, **kwargs); of shapes the shapes of its result."""
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((args, kwargs))):
        return described(jax.eval_shape(function, *args, **kwargs))
    return function(*args, **kwargs)


def put(x: jax.Array | jax.ShapeDtypeStruct, layout: Sharding) -> jax.Array | jax.ShapeDtypeStruct:
    """An array, or the shape of one, laid out anew."""
    if isinstance(x, jax.ShapeDtypeStruct) or _record is not None:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)
    return jax.device_put(x, layout)


def _mesh_axes(axis: str | None) -> tuple[str, ...]:
    if axis is None:
        return ()
    if axis not in RULES:
        raise ShardingError(f"no rule for the logical axis {axis!r}; known: {sorted(RULES)}")
    target = RULES[axis]
    return (target,) if isinstance(target, str) else tuple(target or ())


def spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of an array with logical `axes` and `shape`; a mesh axis that does not divide its dimension is left out.

    Raises ShardingError on an unknown axis or if one mesh axis would split two dimensions.
    """
    if len(axes) != len(shape):
        raise ShardingError(f"{len(axes)} logical axes {tuple(axes)} for an array of shape {tuple(shape)}")
    parts, used = [], set()
    for axis, size in zip(axes, shape, strict=True):
        targets = _mesh_axes(axis)
        if used.intersection(targets):
            raise ShardingError(f"logical axes {tuple(axes)} use the mesh axis of {axis!r} twice")
        used.update(targets)
        divides = size % math.prod(mesh.shape[t] for t in targets) == 0
        parts.append((targets if len(targets) > 1 else targets[0]) if targets and divides else None)
    return PartitionSpec(*parts)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` with its layout fixed by logical `axes`; `x` itself where no mesh, or a mesh of one device, is in use."""
    if _mesh is None or _mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(_mesh, spec(axes, x.shape, _mesh)))


def parameter(name: str, axes: Sequence[str | None], shape: Sequence[int], itemsize: int, mesh: Mesh) -> NamedSharding:
    """The sharding of one parameter.

    Raises ShardingError if it is over 1 MiB and every device would hold it whole, though the rules split one of its axes over a
    mesh axis of more than one device.
    """
    layout = NamedSharding(mesh, spec(axes, shape, mesh))
    meant = any(mesh.shape[target] > 1 for axis in axes for target in _mesh_axes(axis))
    size = math.prod(shape) * itemsize
    if meant and size > REPLICATED_LIMIT_BYTES and layout.is_fully_replicated:
        raise ShardingError(f"{name} {tuple(shape)} ({size / 2**20:.1f} MiB) with axes {tuple(axes)} would be replicated on {dict(mesh.shape)}")
    return layout


def batch(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_multiple(mesh: Mesh) -> int:
    """Batches must be a multiple of this many examples."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def padded(rows: int) -> int:
    """The least number of rows, at least `rows`, that the mesh in use can split."""
    multiple = 1 if _mesh is None else batch_multiple(_mesh)
    return -(-rows // multiple) * multiple


def row_batches(rows: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The numbers of `rows` rows in batches of one length, `padded(size)`, each with how many of it count: the last row fills up the last batch."""
    size = padded(size)
    for begin in range(0, rows, size):
        yield np.minimum(np.arange(begin, begin + size), rows - 1), min(size, rows - begin)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(arrays, mesh: Mesh | None):
    """Numpy arrays (a pytree; the whole batch, the same in every process) as global arrays split over the mesh's batch axes."""
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, arrays)
    if _record is not None:
        return jax.tree.map(lambda x: put(np.asarray(x), batch(mesh)), arrays)

    def placed(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, batch(mesh), lambda index: x[index])

    return jax.tree.map(lambda x: placed(np.asarray(x)), arrays)


def batch_share(mesh: Mesh | None) -> tuple[int, int]:
    """(i, n): this process holds the i-th of n equal blocks of a batch's rows. Processes that split only heads between them hold the same.

    Raises ShardingError if its rows are no such block.
    """
    if mesh is None:
        return 0, 1
    here = np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices).reshape(batch_multiple(mesh), -1)
    rows = np.flatnonzero(here.any(axis=1))
    index, count = int(rows[0]) // len(rows), len(here) // len(rows)
    if not np.array_equal(rows, index * len(rows) + np.arange(len(rows))) or len(here) % len(rows):
        raise ShardingError(f"process {jax.process_index()} holds the rows {rows.tolist()} of {len(here)} on {dict(mesh.shape)}: they are no block")
    return index, count


def put_share(arrays, mesh: Mesh | None):
    """As `put_batch`, of this process's block of the batch's rows (`batch_share`) alone."""
    if mesh is None:
        return put_batch(arrays, mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch(mesh), np.asarray(x)), arrays)


def to_host(x: jax.Array) -> np.ndarray:
    """A global array whole on every host; of a shape, zeros."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return np.zeros(x.shape, x.dtype)
    here = not isinstance(x, jax.Array) or x.is_fully_addressable
    return np.asarray(x if here else multihost_utils.process_allgather(x, tiled=True))
