"""How kernels walk over an array with one set of parameters per slice along an axis, on several threads.

A C-contiguous array of shape (..., channels, ...) is a list of rows of `inner` values each; row r belongs to channel
r mod channels. When the axis is the last one (inner = 1), a row is one value, and a kernel that walks along the
parameters instead is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath._threads import over_threads
from qmath._validation import as_axis

_GRAIN = 1 << 17  # values per thread below which another thread costs more than it saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """An array seen as (outer, channels, inner)."""

    outer: int
    channels: int
    inner: int

    @classmethod
    def of(cls, array: NDArray[Any], axis: int | None, channels: int) -> Rows:
        """The view for parameters along `axis`; ValueError when that axis is missing or not `channels` long."""
        if axis is None:
            return cls(outer=1, channels=1, inner=array.size)
        axis = as_axis(axis, array.ndim)
        shape = array.shape
        if shape[axis] != channels:
            raise ValueError(
                f"x: expected {channels} slices along axis {axis}, one per parameter, found shape {shape}"
            )
        return cls(outer=math.prod(shape[:axis]), channels=channels, inner=math.prod(shape[axis + 1 :]))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.outer, self.channels, self.inner

    @property
    def parameter_shape(self) -> tuple[int, int, int]:
        return 1, self.channels, 1

    @staticmethod
    def flat(array: NDArray[Any]) -> NDArray[Any]:
        """The values in C order, copied only when they are not so already."""
        return np.ascontiguousarray(array).reshape(-1)

    def run(self, by_row: Callable[..., bool], by_column: Callable[..., bool], *arguments: Any) -> bool:
        """Run a kernel over all values, on several threads where it pays; true when any part returned true.

        `by_row(start, stop, inner, *arguments)` treats the values start..stop, `by_column(start, stop, *arguments)`
        serves arrays whose last axis holds the channels.
        """
        size = self.outer * self.channels * self.inner
        if self.inner == 1 and self.channels > 1:
            parts = over_threads(by_column, self.outer, max(1, _GRAIN // self.channels), *arguments)
        else:
            parts = over_threads(by_row, size, _GRAIN, self.inner, *arguments)
        return any(parts)


def output_like(data: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """`out` if it fits `data`, a new array if it is None, else ValueError."""
    if out is None:
        return np.empty(data.shape, data.dtype)
    fits = isinstance(out, np.ndarray) and out.shape == data.shape and out.dtype == data.dtype
    if not (fits and out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out: expected a writeable C-contiguous {data.dtype} array of shape {data.shape}")
    return out
