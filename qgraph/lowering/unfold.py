"""A convolution as one product: what a window covers becomes a row, tap by tap, with the inputs innermost.

    y[n, p] = sum_t x[n, stride p + dilation t - pad] W[t] = rows(x)[n, p] W        W: taps x inputs, outputs

On codes, the rows are bytes that are only copied, and the product is one that integer kernels are fast at. Padding is
the code of zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

V = TypeVar("V")
_TO_THE_END = np.iinfo(np.int64).max


class Makes(Protocol[V]):
    """What adds nodes and constants to a graph."""

    def op(self, op_type: str, /, *inputs: V, **attributes: Any) -> V: ...

    def shared(self, array: NDArray[Any], /) -> V: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a convolution moves over its operand, with a number for each spatial axis, or two of padding."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, weight: Sequence[int], attributes: Mapping[str, Any]) -> Window:
        """From the shape of the weight and the attributes of a Conv that names its padding."""
        kernel = tuple(weight[2:])
        ones = (1,) * len(kernel)
        return cls(
            kernel=kernel,
            strides=tuple(attributes.get("strides", ones)),
            dilations=tuple(attributes.get("dilations", ones)),
            pads=tuple(attributes.get("pads", (0,) * (2 * len(kernel)))),
        )

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of an operand with its channels last."""
        return tuple(range(1, 1 + len(self.kernel)))


def rows(graph: Makes[V], codes: V, zero: V, window: Window) -> V:
    """The rows of a convolution's operand, N x C x positions: N x positions x (taps, inputs)."""
    if any(window.pads):
        before, after = np.split(np.array(window.pads, np.int64), 2)
        plain = np.zeros(2, np.int64)
        codes = graph.op("Pad", codes, graph.shared(np.concatenate([plain, before, plain, after])), zero)
    last = graph.op("Transpose", codes, perm=[0, *(axis + 1 for axis in window.axes), 1])
    if max(*window.kernel, *window.strides) == 1:
        return last
    taps = [_tap(graph, last, tap, window) for tap in itertools.product(*map(range, window.kernel))]
    return graph.op("Concat", *taps, axis=len(window.axes) + 1) if len(taps) > 1 else taps[0]


def _tap(graph: Makes[V], last: V, tap: Sequence[int], window: Window) -> V:
    """What one tap of the kernel meets at every position."""
    starts = [at * step for at, step in zip(tap, window.dilations, strict=True)]
    left = [(size - 1 - at) * step for size, at, step in zip(window.kernel, tap, window.dilations, strict=True)]
    ends = [-distance if distance else _TO_THE_END for distance in left]
    bounds = (np.array(numbers, np.int64) for numbers in (starts, ends, window.axes, window.strides))
    return graph.op("Slice", last, *map(graph.shared, bounds))


def matrix(graph: Makes[V], weight: V, window: Window, outputs: int) -> V:
    """The weight of a convolution as (taps, inputs) x outputs; onnxruntime folds it while it loads the file."""
    moved = graph.op("Transpose", weight, perm=[*(axis + 1 for axis in window.axes), 1, 0])
    return graph.op("Reshape", moved, graph.shared(np.array([-1, outputs], np.int64)))


def channels_first(graph: Makes[V], result: V, window: Window) -> V:
    """The product as the convolution's result, N x outputs x positions."""
    return graph.op("Transpose", result, perm=[0, len(window.axes) + 1, *window.axes])
