"""Weights of k bits as k bit planes: eight weights to a byte in each."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from qgraph.plan.plan import WeightQuant

_BLOCK = 2**14  # bytes of a bit plane that are packed at a time


def pack_bits(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """The lowest `bits` bits of each code as planes of shape (bits, m), m = ceil(n / 8).

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
    """Bytes that a weight of this shape takes in the file at `bits` bits."""
    count = int(np.prod(shape))
    return count if bits == 8 else bits * -(-count // 8)


def stored_bytes(shape: tuple[int, ...], grid: WeightQuant) -> int:
    """Bytes that a weight of this shape takes in the file on this grid; channels of one width lie together."""
    if not grid.channel_bits:
        return weight_bytes(shape, grid.bits)
    share = int(np.prod(shape)) // len(grid.channel_bits)
    return sum(weight_bytes((share * count,), bits) for bits, count in Counter(grid.channel_bits).items())
