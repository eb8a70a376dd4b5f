"""Name tables: official tensor name ↔ our variable, as reversible data, and the engine that loads, exports and checks by them.

A model's table is a list of entries, each pairing one official tensor (or, with "{l}" in its name, one per layer of a stack)
with one of our variables. Layouts differ in three ways only: the order of axes, several of our variables in one official tensor,
and stacked layers. So an entry can map any slice of our variable to slices of official tensors: a host reads no more than it needs.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.models.layers import Buffer, layers_of
from proxy_jax.weights.tensors import write_hollow, write_safetensors


class Tensors(Protocol):
    """A checkpoint's tensors, read piecewise."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by its official name."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of one tensor (one slice object a dimension)."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor (a family of them where the name has "{l}") and our variable.

    axes: our axis i is the official tensor's axis axes[i]; None: the same order.
    part: (i, n): ours is the i-th of n equal pieces of the official tensor along its axis 0.
    ones: how many trailing axes of size 1 the official tensor has that ours lacks.
    layers: the numbers that "{l}" takes, in our stacking order.
    """

    official: str
    ours: str
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] = (0, 1)
    layers: range | None = None
    ones: int = 0

    def names(self) -> list[str]:
        """The official tensor names, in our stacking order."""
        return [self.official] if self.layers is None else [self.official.format(l=layer) for layer in self.layers]

    def official_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each official tensor for our variable of shape `ours`."""
        inner = ours if self.layers is None else ours[1:]
        order = self.axes or range(len(inner))
        shape = tuple(inner[list(order).index(axis)] for axis in range(len(inner)))
        shape = (shape[0] * self.part[1], *shape[1:]) if self.part[1] > 1 else shape
        return shape + (1,) * self.ones

    def read(self, tensors: Tensors, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """Our variable's slice `index` (shape: the whole variable's), read from the official tensors."""
        names, inner, inner_shape = self.names(), index, shape
        if self.layers is not None:
            names, inner, inner_shape = names[index[0]], index[1:], shape[1:]
        order = self.axes or tuple(range(len(inner)))
        bounds = [s.indices(size)[:2] for s, size in zip(inner, inner_shape, strict=True)]
        official = [slice(*bounds[order.index(axis)]) for axis in range(len(inner))]
        if self.part[1] > 1:
            offset = self.part[0] * inner_shape[order.index(0)]
            official[0] = slice(official[0].start + offset, official[0].stop + offset)
        official += [slice(0, 1)] * self.ones
        pieces = [tensors.read(name, tuple(official)) for name in names]
        pieces = [piece.reshape(piece.shape[: len(order)]).transpose(order) for piece in pieces]
        return pieces[0] if self.layers is None else np.stack(pieces)

    def write(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """The official tensors (or, of fused ones, this entry's piece) that hold our variable's value."""
        inner = [value] if self.layers is None else list(value)
        order = self.axes or tuple(range(inner[0].ndim))
        back = [order.index(axis) for axis in range(len(order))]
        pieces = [np.asarray(piece.transpose(back), order="C") for piece in inner]
        return {name: piece.reshape(piece.shape + (1,) * self.ones) for name, piece in zip(self.names(), pieces, strict=True)}


@dataclasses.dataclass(frozen=True)
class Table:
    """All entries of a model, and the official names that hold nothing of ours.

    ignored: regular expressions of tensors that may be in a file and are not read (statistics, tied copies).
    copies: official name -> the official name of the tensor it repeats; written on export, not read.
    renames: (regular expression, replacement) that give a name of another export its place here; on reading only.
    original: of models whose original checkpoint has other modules than diffusers': (diffusers' module, the original one, and where several are
    in one what a kohya.Slot has); "{}" stands for anything, the same in both. The first that fits counts.
    """

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    original: tuple[tuple, ...] = ()

    def by_ours(self) -> dict[str, Entry]:
        """The entries by the name of our variable."""
        return {entry.ours: entry for entry in self.entries}


DENOISER = "lora_unet_"  # before every module name of a denoiser in kohya's naming


class Part(NamedTuple):
    """A model that can have adapters and its place in a file of them.

    prefix: before every module name in PEFT's naming ("": none); kohya: before it in kohya's naming.
    """

    model: nnx.Module
    table: Table
    prefix: str
    kohya: str = DENOISER


def param(official: str, ours: str, axes: tuple[int, ...] | None = None) -> list[Entry]:
    """A tensor kept as it is (or with its axes reordered)."""
    return [Entry(official, ours, axes)]


def linear(official: str, ours: str, *, bias: bool = True, part: tuple[int, int] = (0, 1)) -> list[Entry]:
    """A torch Linear (weight [out, in], bias) and our Dense (kernel [in, out], bias); part: of a fused projection."""
    entries = [Entry(f"{official}.weight", f"{ours}.kernel", (1, 0), part)]
    return entries + ([Entry(f"{official}.bias", f"{ours}.bias", None, part)] if bias else [])


def conv(official: str, ours: str, *, bias: bool = True) -> list[Entry]:
    """A torch Conv2d (weight OIHW, bias) and our Conv (kernel HWIO, bias)."""
    entries = [Entry(f"{official}.weight", f"{ours}.kernel", (2, 3, 1, 0))]
    return entries + ([Entry(f"{official}.bias", f"{ours}.bias")] if bias else [])


def pointwise(official: str, ours: str, *, bias: bool = True) -> list[Entry]:
    """A torch Conv2d with a 1 × 1 window (weight [out, in, 1, 1], bias) and our Dense."""
    entries = [Entry(f"{official}.weight", f"{ours}.kernel", (1, 0), ones=2)]
    return entries + ([Entry(f"{official}.bias", f"{ours}.bias")] if bias else [])


def norm(official: str, ours: str, *, bias: bool = True) -> list[Entry]:
    """A norm's weight (our scale) and bias."""
    entries = [Entry(f"{official}.weight", f"{ours}.scale")]
    return entries + ([Entry(f"{official}.bias", f"{ours}.bias")] if bias else [])


def embed(official: str, ours: str) -> list[Entry]:
    """A torch Embedding and our Embed."""
    return [Entry(f"{official}.weight", f"{ours}.embedding")]


def layers(numbers: range, entries: list[Entry]) -> list[Entry]:
    """Entries whose official names hold "{l}", for the layers of one stack."""
    return [dataclasses.replace(entry, layers=numbers) for entry in entries]


class WeightsError(ValueError):
    """A checkpoint and a model that do not match; the message lists every difference."""


def differences(model: nnx.Module, table: Table, official: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Every way in which a listing {official name: shape} and `model` (arrays or shapes) disagree under `table`; empty: they match."""
    wanted = {name: tuple(value.shape) for name, value in parameters.arrays(model).items()}
    found = {renamed(name, table): tuple(shape) for name, shape in official.items()}
    problems = []
    filled = Counter(entry.ours for entry in table.entries)
    problems += [f"not in the table: our {name} {shape}" for name, shape in wanted.items() if not filled[name]]
    problems += [f"in the table but not in the model: our {name}" for name in filled if name not in wanted]
    problems += [f"in the table {count} times: our {name}" for name, count in filled.items() if count > 1]
    times = Counter(renamed(name, table) for name in official)
    problems += [f"in the file {count} times: {name}" for name, count in times.items() if count > 1]
    used: Counter[str] = Counter()
    pieces: dict[str, int] = {}
    for entry in table.entries:
        if entry.ours not in wanted:
            continue
        shape = entry.official_shape(wanted[entry.ours])
        if entry.layers is not None and len(entry.layers) != wanted[entry.ours][0]:
            problems.append(f"{entry.ours} stacks {wanted[entry.ours][0]} layers, the table {len(entry.layers)}")
        for name in entry.names():
            used[name] += 1
            pieces[name] = entry.part[1]
            if name not in found:
                problems += [f"missing: {name} {shape}"] if used[name] == 1 else []
            elif found[name] != shape:
                problems.append(f"shape of {name}: {found[name]} in the file, {shape} in the model")
    problems += [f"read {count} times by the table: {name}" for name, count in used.items() if count != pieces[name]]
    for name, shape in found.items():
        if name not in used and name not in table.copies and not any(re.fullmatch(pattern, name) for pattern in table.ignored):
            problems.append(f"unused: {name} {shape}")
    return problems


def renamed(name: str, table: Table) -> str:
    """An official name as the table has it."""
    for pattern, replacement in table.renames:
        name = re.sub(pattern, replacement, name)
    return name


class _Renamed:
    """Tensors under the names that the table has for them."""

    def __init__(self, tensors: Tensors, table: Table):
        self.tensors, self.names = tensors, {renamed(name, table): name for name in tensors.shapes()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of the tensor that the table calls `name`."""
        return self.tensors.read(self.names[name], index)


def load(
    make_model: Callable[[], nnx.Module],
    table: Table,
    tensors: Tensors,
    *,
    dtype_of: Callable[[str], Any] = lambda name: jnp.float32,
    source: str = "the checkpoint",
) -> nnx.Module:
    """The model of `make_model` with its variables read from `tensors`, each straight into its shards on the mesh in use.

    dtype_of: from our name to the dtype to hold the variable in; int8, of kernels only: rounded on the mesh, with a scale an output channel.
    `make_model` is only traced. Under `sharding.describe` nothing is read, and the variables hold shapes.
    Raises WeightsError, naming `source`, if anything is unused, missing, duplicate or misshaped.
    """
    model = parameters.skeleton(make_model)
    problems = differences(model, table, tensors.shapes())
    if problems:
        raise WeightsError(f"{source} does not match {type(model).__name__}:\n  " + "\n  ".join(problems))
    entries, tensors, mesh, owners = table.by_ours(), _Renamed(tensors, table), sharding.current(), layers_of(model)
    described = sharding.recorder() is not None
    values = {}
    for name, variable in parameters.variables(model).items():
        shape, kind = parameters.value(variable).shape, jnp.dtype(dtype_of(name))
        read_as = jnp.float32 if kind == jnp.int8 else kind

        def read(index: tuple[slice, ...], name=name, shape=shape, read_as=read_as) -> np.ndarray:
            return entries[name].read(tensors, shape, index).astype(read_as)

        layout = None if mesh is None else sharding.parameter(name, parameters.axes(variable), shape, kind.itemsize, mesh)
        if described:
            values[name] = jax.ShapeDtypeStruct(shape, read_as, sharding=layout)
        elif mesh is None:
            values[name] = jnp.asarray(read(tuple(slice(None) for _ in shape)))
        else:
            values[name] = jax.make_array_from_callback(shape, layout, read)
        if kind == jnp.int8:
            axes, stacked = parameters.axes(variable), int(entries[name].layers is not None)
            if described:
                whole, scale = jax.eval_shape(functools.partial(quantize, stacked=stacked), values[name])
                values[name], scale = sharding.put(whole, layout), sharding.put(scale, sharding.replicated(mesh))
            else:
                values[name], scale = quantize(values[name], stacked=stacked)
            owners[name.removesuffix(".kernel")].kernel_scale = Buffer(scale, axes=(*axes[:stacked], axes[-1]))
    return parameters.with_arrays(model, values)


@functools.partial(jax.jit, static_argnames="stacked")
def quantize(kernel: jax.Array, *, stacked: int) -> tuple[jax.Array, jax.Array]:
    """A kernel as int8, the largest of each output channel being 127, and the channels' scales in float32; stacked: 1 if its axis 0 is layers."""
    inputs = tuple(range(stacked, kernel.ndim - 1))
    scale = jnp.abs(kernel).max(inputs, keepdims=True) / 127
    return jnp.round(kernel / jnp.where(scale == 0, 1, scale)).astype(jnp.int8), scale.squeeze(inputs)


def export(model: nnx.Module, table: Table) -> dict[str, np.ndarray]:
    """The official tensors of `model`, whole, on the host."""
    values = parameters.arrays(model)
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for entry in table.entries:
        for name, piece in entry.write(sharding.to_host(values[entry.ours])).items():
            pieces.setdefault(name, {})[entry.part[0]] = piece
    tensors = {name: parts[0] if len(parts) == 1 else np.concatenate([parts[i] for i in sorted(parts)]) for name, parts in pieces.items()}
    return tensors | {copy: tensors[name].copy() for copy, name in table.copies.items()}


def listing(model: nnx.Module, table: Table) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the official tensors of `model` (arrays or shapes), without copies."""
    shapes = {name: tuple(value.shape) for name, value in parameters.arrays(model).items()}
    return {name: entry.official_shape(shapes[entry.ours]) for entry in table.entries for name in entry.names()}


def save(model: nnx.Module, table: Table, path: Path, *, dtype: Any | None = None) -> None:
    """Writes `model` as a safetensors file with the official names; dtype: cast to it first. Of shapes: zeros that take no room on a disk."""
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in parameters.arrays(model).values()):
        return write_hollow(listing(model, table), path, dtype or jnp.float32)
    tensors = export(model, table)
    write_safetensors({name: value if dtype is None else value.astype(dtype) for name, value in tensors.items()}, path, {"format": "pt"})
