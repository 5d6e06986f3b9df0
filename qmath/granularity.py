"""What shares the parameters of a grid: a whole tensor, each slice along an axis, or each group along an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Granularity:
    """One parameter per tensor (no axis), per channel along `axis`, or per `group` neighbours along `axis`.

    Channels are slices: everything that shares an index of the axis. Groups are ONNX's blocks: every line of values
    along the axis is cut into groups of `group` values (the last may be shorter), and each has its own parameter. Lists
    of parameters are in row-major order of `parameter_shape`. Raises ValueError for groups without an axis or values.

    >>> Granularity(axis=0, group=2).parameter_shape((5, 3))
    (3, 3)
    """

    axis: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.group is not None and (self.axis is None or self.group < 1):
            raise ValueError(f"group: expected at least 1 value along an axis, found {self.group} along {self.axis}")

    def __str__(self) -> str:
        if self.axis is None:
            return "per tensor"
        return f"per {'channel' if self.group is None else f'group of {self.group}'} along axis {self.axis}"

    @property
    def per_channel(self) -> bool:
        """Whether slices along an axis share a parameter, and nothing more or less."""
        return self.axis is not None and self.group is None

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the parameters of a tensor: of the same rank, 1 along the axes that share them."""
        if self.axis is None:
            return (1,) * len(shape)
        axis = as_axis(self.axis, len(shape))
        if self.group is None:
            return tuple(size if i == axis else 1 for i, size in enumerate(shape))
        return tuple(-(-size // self.group) if i == axis else size for i, size in enumerate(shape))

    def count(self, shape: tuple[int, ...]) -> int:
        """How many parameters a tensor of this shape has."""
        return math.prod(self.parameter_shape(shape))

    def lay(self, parameters: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """A list of parameters as an array that broadcasts with a tensor of this shape; one stands for all.

        Raises ValueError for another number of parameters than the tensor has.
        """
        array = np.asarray(parameters)
        if array.size == 1:
            return array.reshape((1,) * len(shape))
        wanted = self.parameter_shape(shape)
        if array.size != math.prod(wanted):
            raise ValueError(
                f"parameters: expected {math.prod(wanted)} {self} of a tensor of shape {list(shape)}, or 1 for all, "
                f"found {array.size}"
            )
        array = array.reshape(wanted)
        if self.group is None or self.axis is None:
            return array
        axis = as_axis(self.axis, len(shape))
        return np.take(np.repeat(array, self.group, axis=axis), np.arange(shape[axis]), axis=axis)

    def reduce(self, operation: np.ufunc, x: NDArray[Any]) -> NDArray[Any]:
        """A list with one number per parameter: `operation` (np.minimum, np.add, ...) over the values that share it."""
        if self.axis is None:
            return np.asarray(operation.reduce(x, axis=None)).reshape(1)
        axis = as_axis(self.axis, x.ndim)
        if self.group is None:
            return np.asarray(operation.reduce(x, axis=tuple(i for i in range(x.ndim) if i != axis)))
        return np.asarray(operation.reduceat(x, np.arange(0, x.shape[axis], self.group), axis=axis)).reshape(-1)

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        """The tensor as (parameters, values): a row for each parameter, in order. A view where that is possible.

        The row of a shorter group repeats its last value.
        """
        if self.axis is None:
            return x.reshape(1, -1)
        axis = as_axis(self.axis, x.ndim)
        if self.group is None:
            return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        missing = -x.shape[axis] % self.group
        if missing:
            x = np.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], mode="edge")
        split = x.reshape(*x.shape[:axis], -1, self.group, *x.shape[axis + 1 :])
        return np.moveaxis(split, axis + 1, -1).reshape(-1, self.group)

    def from_rows(self, rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The tensor of this shape whose `rows` these are."""
        if self.axis is None:
            return rows.reshape(shape)
        axis = as_axis(self.axis, len(shape))
        others = shape[:axis] + shape[axis + 1 :]
        if self.group is None:
            return np.moveaxis(rows.reshape(shape[axis], *others), 0, axis)
        split = np.moveaxis(rows.reshape(*self.parameter_shape(shape), self.group), -1, axis + 1)
        padded = split.reshape(*shape[:axis], -1, *shape[axis + 1 :])
        return padded[(slice(None),) * axis + (slice(shape[axis]),)]
