"""Where a tensor lies in a file, and reading slices of it: what every checkpoint format comes down to."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken or not one that we read; the message says what was looked for and where."""


@dataclasses.dataclass(frozen=True)
class Region:
    """A strided tensor of `dtype` whose element 0 is at byte `offset` of `path`; strides count elements."""

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Bytes from the first element to the end of the last."""
        if 0 in self.shape:
            return 0
        return (1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))) * self.dtype.itemsize

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A copy of the slice (one slice object a dimension). The file is mapped for the call only, so only its pages are read."""
        if self.span == 0:
            return np.empty(self.shape, self.dtype)[index]
        mapped = np.memmap(self.path, np.uint8, mode="r", offset=self.offset, shape=(self.span,))
        strides = tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.array(np.ndarray(self.shape, self.dtype, buffer=mapped, strides=strides)[index])


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class RegionTensors:
    """Tensors that lie in files, by name."""

    def __init__(self, regions: Mapping[str, Region]):
        self.regions = dict(regions)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by its name."""
        return {name: region.shape for name, region in self.regions.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of one tensor."""
        return self.regions[name].read(index)
