"""Store weights of k < 8 bits in k bits: as k bit planes, with eight weights to a byte in each.

Bit plane i of the two's-complement codes holds bit i of every weight, and five standard operators unpack them.
onnxruntime folds these when it loads the file, so that unpacking costs nothing per inference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.lowering.nodes import Nodes
from qgraph.onnxfile.lazy_array import Later
from qgraph.plan.codes import stored
from qgraph.plan.plan import WeightQuant

_BLOCK = 2**14  # bytes of a bit plane packed at a time


def pack_bits(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """The lowest `bits` bits of n codes as planes of shape (bits, m), with m = ceil(n / 8).

    Bit j of byte i in plane b is bit b of code j * m + i.
    """
    flat = codes.reshape(-1)
    width = -(-flat.size // 8)
    padded = np.zeros(8 * width, np.uint8)
    padded[: flat.size] = flat.view(np.uint8)
    lanes, result = padded.reshape(8, 1, width), np.empty((bits, width), np.uint8)
    places = np.arange(bits, dtype=np.uint8).reshape(1, -1, 1)
    shifts = np.arange(8, dtype=np.uint8).reshape(8, 1, 1)
    for start in range(0, width, _BLOCK):
        block = slice(start, start + _BLOCK)
        planes = (lanes[:, :, block] >> places) & 1
        np.bitwise_or.reduce(planes << shifts, axis=0, out=result[:, block])
    return result


def weight_bytes(shape: tuple[int, ...], bits: int) -> int:
    """The bytes that a weight of this shape takes in the file at `bits` bits."""
    count = int(np.prod(shape))
    return count if bits == 8 else bits * -(-count // 8)


def stored_bytes(shape: tuple[int, ...], grid: WeightQuant) -> int:
    """The bytes that a weight of this shape takes in the file on this grid; each width is packed separately."""
    if not grid.channel_bits:
        return weight_bytes(shape, grid.bits)
    share = int(np.prod(shape)) // len(grid.channel_bits)
    return sum(weight_bytes((share * count,), bits) for bits, count in Counter(grid.channel_bits).items())


class StoredCodes:
    """Puts the codes of weights into a graph; without `packed`, weights of few bits take a byte each."""

    def __init__(self, nodes: Nodes, *, packed: bool) -> None:
        self.nodes = nodes
        self.packed = packed
        self.known: dict[tuple[str, WeightQuant], ir.Value] = {}  # of integer kernels and of floats alike

    def codes(self, stem: str, codes: Later, grid: WeightQuant, finer: tuple[int, ...], *, shifted: bool) -> ir.Value:
        """The codes times `finer`, less their zero points where `shifted`.

        Channels of the same width are packed together, then gathered back into their order.
        """
        if grid.unit:
            return self.grouped(stem, codes, grid, to=ir.DataType.INT8)
        axis, widths = grid.granularity.axis or 0, np.asarray(grid.channel_bits)
        zero = np.asarray(grid.zero_point, np.int8) if shifted else np.zeros(1, np.int8)
        zero = grid.granularity.lay(zero, codes.shape) if zero.size > 1 else zero
        if not grid.channel_bits:
            return self._integers(stem, codes, grid, zero, grid.bits, finer[0])
        parts, order = [], np.argsort(widths, kind="stable")
        for bits, factor in sorted(set(zip(grid.channel_bits, finer, strict=True))):
            alike = codes.map(*_chosen(widths == bits, codes.shape, axis), np.int8)
            points = np.compress(widths == bits, zero, axis=axis) if zero.size > 1 else zero
            parts.append(self._integers(f"{stem}.{bits}", alike, grid, points, bits, factor))
        together = parts[0] if len(parts) == 1 else self.nodes.op("Concat", *parts, axis=axis)
        if (order == np.arange(order.size)).all():
            return together
        places = np.argsort(order).astype(np.min_scalar_type(order.size))
        indices = self.nodes.op("Cast", self.nodes.constant(f"{stem}.order", places), to=ir.DataType.INT64)
        return self.nodes.op("Gather", together, indices, axis=axis)

    def grouped(self, stem: str, codes: Later, grid: WeightQuant, *, to: ir.DataType) -> ir.Value:
        """The codes less the zero points of their groups, times the multiples of these: units of their channels."""
        if not self.packed:
            whole = self.nodes.constant(f"{stem}.q", codes.map(lambda c: stored(c, grid), codes.shape, np.int32))
            return self.nodes.op("Cast", whole, to=to)
        if grid.bits == 8:
            result = self.nodes.op("Cast", self._once(stem, codes, grid), to=ir.DataType.INT32)
        else:
            result = self._unpack(self._planes(stem, codes, grid, grid.bits), codes.shape, grid.bits)
        if any(grid.zero_point):
            zero = np.asarray(grid.zero_point, np.int8)
            result = self.nodes.op("Sub", result, self._spread(f"{stem}.z", zero, codes.shape, grid))
        multiples = self._spread(f"{stem}.m", grid.multiples.astype(np.uint8), codes.shape, grid)
        return self.nodes.op("Cast", self.nodes.op("Mul", result, multiples), to=to)

    def _spread(self, name: str, numbers: NDArray[Any], shape: tuple[int, ...], grid: WeightQuant) -> ir.Value:
        """One number for each group, repeated for its members."""
        axis, group = grid.granularity.axis or 0, grid.granularity.group or 1
        groups = np.arange(shape[axis]) // group
        index = self.nodes.shared(groups.astype(np.min_scalar_type(groups[-1])))
        wide = self.nodes.op("Cast", index, to=ir.DataType.INT32)
        laid = self.nodes.constant(name, numbers.reshape(grid.granularity.parameter_shape(shape)))
        held = self.nodes.op("Cast", laid, to=ir.DataType.INT32)
        return self.nodes.op("Gather", held, wide, axis=axis)

    def _planes(self, stem: str, codes: Later, grid: WeightQuant, bits: int) -> ir.Value:
        width = -(-codes.size // 8)
        return self._once(stem, codes.map(lambda c: pack_bits(c, bits), (bits, width), np.uint8), grid)

    def _once(self, stem: str, codes: Later, grid: WeightQuant) -> ir.Value:
        """The constant that holds these codes of a weight, stored once for its grid."""
        if (stem, grid) not in self.known:
            self.known[stem, grid] = self.nodes.constant(f"{stem}.q", codes)
        return self.known[stem, grid]

    def _integers(
        self, stem: str, codes: Later, grid: WeightQuant, zero: NDArray[np.int8], bits: int, finer: int
    ) -> ir.Value:
        """The codes less `zero`, times `finer`; 8-bit codes have neither."""
        if bits == 8:
            return self._once(stem, codes, grid)
        if self.packed:
            shaped = self._unpack(self._planes(stem, codes, grid, bits), codes.shape, bits, finer)
            if zero.any():
                points = self.nodes.constant(f"{stem}.z", zero * np.int8(finer))
                shaped = self.nodes.op("Sub", shaped, self.nodes.op("Cast", points, to=ir.DataType.INT32))
            return self.nodes.op("Cast", shaped, to=ir.DataType.INT8)
        return self.nodes.constant(f"{stem}.q", codes.map(lambda c: (c - zero) * np.int8(finer), codes.shape, np.int8))

    def _unpack(self, planes: ir.Value, shape: tuple[int, ...], bits: int, finer: int = 1) -> ir.Value:
        """The codes unpacked from bit planes, times `finer`, as int32.

        Shifts bit j to the top and then to the bottom, and sums the planes weighted by 1, 2, ..., -2^(bits-1).
        """
        size = math.prod(shape)
        lanes = self.nodes.shared(np.arange(7, -1, -1, dtype=np.uint8).reshape(8, 1, 1))
        top = self.nodes.op("BitShift", planes, lanes, direction="LEFT")
        bit = self.nodes.op("BitShift", top, self.nodes.shared(np.uint8(7)), direction="RIGHT")
        worth = finer * np.array([[*(2**i for i in range(bits - 1)), -(2 ** (bits - 1))]], np.int8)
        flat = self.nodes.op("MatMulInteger", self.nodes.shared(worth), bit)
        if size % 8:
            flat = self.nodes.op("Reshape", flat, self.nodes.shared(np.array([-1], np.int64)))
            ends = [self.nodes.shared(np.array([end], np.int64)) for end in (0, size)]
            flat = self.nodes.op("Slice", flat, *ends)
        return self.nodes.op("Reshape", flat, self.nodes.shared(np.array(shape, np.int64)))


def _chosen(
    mask: NDArray[np.bool_], shape: tuple[int, ...], axis: int
) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], tuple[int, ...]]:
    """A function that takes the channels in a mask out of a weight of this shape, and the shape of its result."""
    taken = tuple(int(mask.sum()) if i == axis else size for i, size in enumerate(shape))
    return lambda codes: np.compress(mask, codes, axis=axis), taken
