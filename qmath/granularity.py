"""Which values share the parameters of a grid: those of the whole tensor, of a slice, or of a group along an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Granularity:
    """One parameter per tensor (no axis), per slice along `axis`, or per `group` neighbours along `axis`.

    A slice (a channel) is everything that shares an index of the axis. Groups are the blocks of ONNX: every line of
    values along the axis is cut into groups of `group` values (the last may be shorter), each with its own parameter.
    Lists of parameters are in row-major order of `parameter_shape`.

    Raises:
        ValueError: For a group without an axis, or of less than one value.

    Example:
        >>> import qmath
        >>> qmath.Granularity(axis=0, group=2).parameter_shape((5, 3))
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
        """Whether there is one parameter per slice along an axis."""
        return self.axis is not None and self.group is None

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the parameters of a tensor: the same rank, with 1 for every axis whose values share them.

        Raises:
            ValueError: For a shape that lacks the axis.
        """
        if self.axis is None:
            return (1,) * len(shape)
        axis = as_axis(self.axis, len(shape))
        if self.group is None:
            return tuple(size if i == axis else 1 for i, size in enumerate(shape))
        return tuple(-(-size // self.group) if i == axis else size for i, size in enumerate(shape))

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of parameters of a tensor of this shape.

        Raises:
            ValueError: For a shape that lacks the axis.
        """
        return math.prod(self.parameter_shape(shape))

    def lay(self, parameters: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """Expand a list of parameters to an array that broadcasts with a tensor of this shape.

        A single parameter applies to all values.

        Raises:
            ValueError: When the number of parameters is neither 1 nor the tensor's.

        Example:
            >>> import qmath
            >>> qmath.Granularity(axis=0, group=2).lay([1, 2], (3,)).tolist()
            [1, 1, 2]
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
        """Reduce the values that share each parameter by `operation` (np.minimum, np.add, ...); returns a list.

        Raises:
            ValueError: For a tensor that lacks the axis.

        Example:
            >>> import numpy as np
            >>> import qmath
            >>> qmath.Granularity(axis=1).reduce(np.maximum, np.array([[1, 5], [3, 2]])).tolist()
            [3, 5]
        """
        if self.axis is None:
            return np.asarray(operation.reduce(x, axis=None)).reshape(1)
        axis = as_axis(self.axis, x.ndim)
        if self.group is None:
            return np.asarray(operation.reduce(x, axis=tuple(i for i in range(x.ndim) if i != axis)))
        return np.asarray(operation.reduceat(x, np.arange(0, x.shape[axis], self.group), axis=axis)).reshape(-1)

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the tensor as (parameters, values), one row per parameter in order; a view where possible.

        The row of a shorter group is padded with its last value.

        Raises:
            ValueError: For a tensor that lacks the axis.

        Example:
            >>> import numpy as np
            >>> import qmath
            >>> qmath.Granularity(axis=0, group=2).rows(np.array([1, 2, 3])).tolist()
            [[1, 2], [3, 3]]
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
        """Return the tensor of this shape from its `rows`: their inverse.

        Raises:
            ValueError: For a shape that the rows do not fill.

        Example:
            >>> import numpy as np
            >>> import qmath
            >>> qmath.Granularity(axis=0, group=2).from_rows(np.array([[1, 2], [3, 3]]), (3,)).tolist()
            [1, 2, 3]
        """
        if self.axis is None:
            return rows.reshape(shape)
        axis = as_axis(self.axis, len(shape))
        others = shape[:axis] + shape[axis + 1 :]
        if self.group is None:
            return np.moveaxis(rows.reshape(shape[axis], *others), 0, axis)
        split = np.moveaxis(rows.reshape(*self.parameter_shape(shape), self.group), -1, axis + 1)
        padded = split.reshape(*shape[:axis], -1, *shape[axis + 1 :])
        return padded[(slice(None),) * axis + (slice(shape[axis]),)]
