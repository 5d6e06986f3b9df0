"""Weight gradients of convolutions, computed outside the graph.

    dw[o, c, k] = sum over images n and positions t of g[n, o, t] x[n, c, s t + d k - p],    g = dL/dy

In ONNX operators this is a convolution with kernels as large as images, which takes onnxruntime longer than all the
rest of a layer's backward pass. Here images are laid end to end in rows with zeros between them, so that a tap of the
window is an offset into one long vector; dw is then a product of two matrices of such vectors (`contraction_kernels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from threading import local
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qgraph.gradient.contraction_kernels import HEIGHT, LANES, WIDTH, contract

Array: TypeAlias = NDArray[Any]

_POSITIONS = 1100  # length of vectors that together fit in the first-level cache
_SCRATCH = 1 << 18  # values of each operand that fit in the second-level cache
_PARTS = 4  # of the work, for any number of threads, so that sums do not depend on it
_PARTIAL_BYTES = 1 << 22  # of all partial sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """The geometry of a convolution over two axes; `begin` is the padding before the first position.

    Example:
        >>> from qgraph.gradient import Correlation
        >>> Correlation(kernel=(3, 3), begin=(1, 1)).strides
        (1, 1)
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    begin: tuple[int, int] = (0, 0)
    group: int = 1


class _Layout(NamedTuple):
    """The memory layout of values while they are multiplied.

    `together` images stand end to end in `rows` of `pitch` values each, x once for every remainder of a position modulo
    the strides, `span` values apart and `lead` after the start. Their vectors are processed in `pieces`. `in_place`:
    images stay where they are, one at a time.
    """

    in_place: bool
    together: int
    pieces: int
    pitch: int
    rows: int
    span: int
    lead: int

    @classmethod
    def of(cls, x: Array, g: Array, c: Correlation, *, images: int, whole: bool) -> tuple[_Layout, NDArray[np.int64]]:
        """The layout for parts of that many images, and every tap's offset in it.

        `whole`: the output channels of a group are whole tiles, so that they can be read where they are.
        """
        (down, down_phase), (across, across_phase) = (
            np.divmod(np.arange(c.kernel[a]) * c.dilations[a] - c.begin[a], c.strides[a]) for a in (0, 1)
        )
        rows, pitch = (
            int(max(-(-x.shape[a + 2] // c.strides[a]) - min(steps[0], 0), g.shape[a + 2] + max(steps[-1], 0)))
            for a, steps in enumerate((down, across))
        )
        same = x.shape[2:] == g.shape[2:] and (rows, pitch) == g.shape[2:]
        in_place = bool(same and len(down) == len(across) == 1 and whole and rows * pitch >= _POSITIONS / 2)
        positions = np.clip(_SCRATCH // max(x.shape[1], g.shape[1]), _POSITIONS, 4 * _POSITIONS)
        together = 1 if in_place else min(max(round(positions / (rows * pitch)), 1), images)
        lead = int(max(-(down[0] * pitch + across[0]), 0))
        tail = int(max(down[-1] * pitch + across[-1], 0)) + LANES
        span = rows * pitch if in_place else lead + together * rows * pitch + tail
        pieces = max(round(together * rows * pitch / _POSITIONS), 1)
        offsets = lead + (down_phase * c.strides[1] * span + down * pitch)[:, None] + across_phase * span + across
        layout = cls(in_place=in_place, together=together, pieces=pieces, pitch=pitch, rows=rows, span=span, lead=lead)
        return layout, offsets.ravel()


class _Work:
    """One contraction, in parts that any thread may compute at any time."""

    def __init__(self, x: Array, g: Array, correlation: Correlation) -> None:
        x, g = (a[:, :, None] if a.ndim == 3 else a for a in (x, g))  # one axis is the second of two
        self._x, self._g, self._correlation = np.ascontiguousarray(x), np.ascontiguousarray(g), correlation
        group, taps = correlation.group, int(np.prod(correlation.kernel))
        self._outer, self._columns = g.shape[1] // group, x.shape[1] // group * taps
        self._height = HEIGHT if self._outer > HEIGHT // 4 else 1
        tiles = group * -(-self._outer // self._height)
        shape = (tiles * self._height, -(-self._columns // WIDTH) * WIDTH)
        apart = _images_apart(len(x), g[0, 0].size, int(np.prod(shape)) * x.itemsize)
        self._images = _ranges(len(x), apart)
        self._bands = _ranges(tiles, max(_PARTS // apart, 1))
        self._layout, self._offsets = _Layout.of(
            x, g, correlation, images=self._images[-1][1], whole=not self._outer % self._height
        )
        y = self._layout
        width = -(-y.together * y.rows * y.pitch // LANES) * LANES
        phases = int(np.prod(correlation.strides))
        self._room = (
            0
            if y.in_place
            else LANES + max(count for _, count in self._bands) * self._height * width + x.shape[1] * phases * y.span
        )
        self._sums = np.zeros((len(self._images), *shape), x.dtype)

    @property
    def parts(self) -> int:
        return len(self._images) * len(self._bands)

    def run(self, part: int) -> None:
        """Compute one part, in memory that the thread keeps: new pages would cost as much as the work."""
        which, band = divmod(part, len(self._bands))
        c, layout, out = self._correlation, tuple(self._layout), self._sums[which]
        images, tiles = self._images[which], self._bands[band]
        contract(
            self._x,
            self._g,
            *images,
            *tiles,
            c.group,
            self._height,
            layout,
            c.strides,
            self._offsets,
            _scratch(self._room, out.dtype),
            out,
        )

    def result(self) -> Array:
        """dL/dw (O, C / group, K, K)."""
        group, total = self._correlation.group, self._sums.sum(axis=0)
        dense = total.reshape(group, -1, total.shape[1])[:, : self._outer, : self._columns]
        return np.ascontiguousarray(dense).reshape(group * self._outer, -1, *self._correlation.kernel)


def weight_gradients(
    operands: Sequence[tuple[Array, Array, Correlation]], *, pool: Executor | None = None, threads: int = 1
) -> list[Array]:
    """Return dL/dw (O, C / group, K, K) for every (x, dL/dy, geometry) of a two-dimensional convolution of x with w.

    Args:
        operands: x (N, C, H, W) and dL/dy (N, O, H', W'), both float32 or both float64.
        pool: threads that help.
        threads: the number of threads that work, including the calling one. Results do not depend on it.

    Example:
        >>> import numpy as np
        >>> from qgraph.gradient import Correlation, weight_gradients
        >>> x, dy = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
        >>> weight_gradients([(x, dy, Correlation(kernel=(2, 2)))])[0].tolist()
        [[[[4.0, 4.0], [4.0, 4.0]]]]
    """
    works = [_Work(x, g, correlation) for x, g, correlation in operands]
    waiting = [(work, part) for work in works for part in range(work.parts)]

    def drain() -> None:
        while True:
            try:
                work, part = waiting.pop()
            except IndexError:
                return
            work.run(part)

    helpers = [pool.submit(drain) for _ in range(threads - 1)] if pool is not None else []
    drain()
    for helper in helpers:
        helper.result()
    return [work.result() for work in works]


_kept = local()


def _scratch(size: int, dtype: np.dtype[Any]) -> Array:
    """Memory for `size` values, reused by all calls of a thread that it is large enough for."""
    room: Array | None = getattr(_kept, dtype.name, None)
    if room is None or room.size < size:
        room = np.empty(size, dtype)
        setattr(_kept, dtype.name, room)
    return room


def _images_apart(images: int, positions: int, nbytes: int) -> int:
    """The number of parts of the images: a power of two, each worth a vector, and partial sums not too large."""
    most = min(images, _PARTS, max(_PARTIAL_BYTES // nbytes, 1), max(images * positions // (_POSITIONS * 3 // 4), 1))
    return 1 << (most.bit_length() - 1)


def _ranges(size: int, parts: int) -> list[tuple[int, int]]:
    """Consecutive (start, count) that cover 0..size, of nearly equal length, none empty."""
    bounds = [size * part // min(parts, size) for part in range(min(parts, size) + 1)]
    return [(a, b - a) for a, b in pairwise(bounds)]
