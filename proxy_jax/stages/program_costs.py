"""What a compiled program costs, read from its jaxpr (FLOPs) and its optimised HLO (bytes), loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

FULL_PRECISION_PASSES = 6  # bfloat16 products that a TPU makes one float32 product of
BETWEEN_SLICES = "between slices"  # what the hosts' network carries: sends that TPUs hand to it, one for each exchange
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")
CALLS = re.compile(r"(?:calls|to_apply|body|branch_computations)=(?:%([\w.\-]+)|\{([^}]*)\})")


def flops(jaxpr: Any) -> tuple[float, float]:
    """FLOPs of the matrix products and convolutions of a jaxpr, on all devices together; and the same in passes of bfloat16.

    A scan counts as often as it runs, a `cond` as its dearest branch, a loop without a known end once; elementwise work not at all.
    """
    total, passes = 0.0, 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, found = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            out, (left, right) = equation.outvars[0].aval, (variable.aval for variable in equation.invars[:2])
            if name == "dot_general":
                work = 2 * out.size * math.prod(left.shape[axis] for axis in found["dimension_numbers"][0][0])
            else:
                work = 2 * out.size * right.size / right.shape[found["dimension_numbers"].rhs_spec[0]] / math.prod(found["lhs_dilation"])
            precision = found["precision"] if isinstance(found["precision"], tuple) else (found["precision"],)
            full = left.dtype == "float32" and jax.lax.Precision.HIGHEST in precision
            total, passes = total + work, passes + work * (FULL_PRECISION_PASSES if full else 1)
            continue
        inner = [flops(sub) for sub in _inner(found)]
        if name == "cond":
            inner = [max(inner)]
        times = {"scan": lambda p: p["length"], "pallas_call": lambda p: math.prod(p["grid_mapping"].grid), "shard_map": lambda p: p["mesh"].size}
        count = times[name](found) if name in times else 1
        total, passes = total + count * sum(part[0] for part in inner), passes + count * sum(part[1] for part in inner)
    return total, passes


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of an HLO computation."""

    name: str
    kind: str
    result: str  # its shape or, in parentheses, shapes
    operands: tuple[str, ...]
    text: str


def size(shapes: str) -> int:
    """Bytes of the HLO shapes in a text such as (bf16[4,8]{1,0}, f32[])."""
    total = 0
    for kind, dims in SHAPE.findall(shapes):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind) or 0)
        total += math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
    return total


class Module:
    """An optimised HLO module's computations, and how often each instruction runs."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, inside = "", {}
        for line in text.splitlines():
            if header := HEADER.match(line):
                inside = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif match := INSTRUCTION.match(line):
                name, result, kind, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
                inside[name] = Instruction(name, kind, result, operands, rest)

    def runs(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, times) of all that runs, fusions' insides included."""
        stack = [(self.entry, 1)]
        while stack:
            name, times = stack.pop()
            for instruction in self.computations.get(name, {}).values():
                yield name, instruction, times
                # Reductions' to_apply is a scalar's arithmetic.
                if instruction.kind in ("fusion", "while", "call", "conditional", "async-start", "custom-call"):
                    count = times * self.trips(name, instruction) if instruction.kind == "while" else times
                    for one, several in CALLS.findall(instruction.text):
                        stack += [(called.strip(" %"), count) for called in (one or several).split(",")]

    def trips(self, computation: str, loop: Instruction) -> int:
        """How often a loop of a computation runs: from what its counter starts at to the constant that its condition compares with; 1 without one.

        XLA takes the first turn out of loops whose collectives it overlaps with the next turn.
        """
        condition = self.computations[re.search(r"condition=%?([\w.\-]+)", loop.text)[1]]
        ends = [end for line in condition.values() if (end := _constant(line)) is not None]
        if not ends:
            return 1
        counters = [int(line.text.rpartition("index=")[2].split(",")[0]) for line in condition.values() if line.kind == "get-tuple-element"]
        return max(ends) - (self._start(computation, loop.operands[0], counters[0]) if counters else 0)

    def _start(self, computation: str, name: str, index: int) -> int:
        """The constant that is element `index` of a tuple, or a copy of one; 0 if it is something else."""
        lines = self.computations[computation]
        line = lines.get(name)
        if line is not None and line.kind == "tuple":
            line = lines.get(line.operands[index])
        while line is not None and line.kind in ("copy", "bitcast"):
            line = lines.get(line.operands[0])
        return 0 if line is None else _constant(line) or 0

    def bytes_of(self, computation: str, names: tuple[str, ...]) -> int:
        """Bytes of the results of instructions of a computation."""
        return sum(size(self.computations[computation][name].result) for name in names if name in self.computations[computation])


def _constant(line: Instruction) -> int | None:
    """The value of a whole number."""
    found = re.match(r"(\d+)\)", line.text) if line.kind == "constant" and line.result.startswith("s32[]") else None
    return None if found is None else int(found[1])


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program. shapes: what a chip puts in, or of all-gather what it gets; size: its bytes, once; times: how often it runs."""

    kind: str
    shapes: str
    size: int
    times: int
    source: str  # op_name: where in the program it comes from


def collectives(text: str) -> list[Collective]:
    """The collectives of an optimised HLO module."""
    module, found = Module(text), {}
    for computation, line, times in module.runs():
        kind = line.kind.removesuffix("-start")
        if kind == "send" and "megascale" in line.text:
            kind = BETWEEN_SLICES
        if kind not in (*COLLECTIVES, BETWEEN_SLICES):
            continue
        inside = [module.computations[computation][name].result for name in line.operands if name in module.computations[computation]]
        shapes = line.result if kind == "all-gather" else ", ".join(inside)
        amount = size(line.result) - (size(", ".join(inside)) if line.kind == "all-gather-start" else 0) if kind == "all-gather" else size(shapes)
        if kind == "all-reduce" and "reduce-scatter" in computation:  # as TPUs write it
            kind = "reduce-scatter"
        channel = re.search(r"channel_id=(\d+)", line.text)
        source = re.search(r'op_name="([^"]*)"', line.text)
        # Overlapped with other work, one collective stands in several fusions.
        key = (channel[1] if channel else line.name, times)
        found.setdefault(key, Collective(kind, shapes, amount, times, source[1] if source else ""))
    return list(found.values())


def by_kind(collectives: list[Collective]) -> dict[str, float]:
    """Bytes a chip of each kind of collective."""
    totals: dict[str, float] = {}
    for collective in collectives:
        totals[collective.kind] = totals.get(collective.kind, 0) + collective.size * collective.times
    return totals


def moved(text: str) -> float:
    """Bytes that a chip moves for matrix products, convolutions and kernels of an optimised HLO module: their operands and results.

    Elementwise work between them is taken as fused with them.
    """
    module, total = Module(text), 0.0
    for computation, line, times in module.runs():
        if line.kind in ("dot", "convolution") or (line.kind == "custom-call" and "tpu_custom_call" in line.text):
            total += times * (size(line.result) + module.bytes_of(computation, line.operands))
    return total


def exhausted(message: str) -> str:
    """How much memory a program that did not compile for want of it would need, from libtpu's message."""
    figures = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm|\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    return "needs {} of {}".format(*filter(None, figures.groups())) if figures else message.splitlines()[0][:120]
