"""Codes of a weight as text, so that a plan can hold those that rounding to nearest would not find again.

Each code takes `bits` bits, the lowest code as 0 and the highest bit first; the bytes are written in base 85.
"""

from __future__ import annotations

import base64
import math

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import PlanError


def to_text(codes: NDArray[np.integer], *, bits: int, lowest: int) -> str:
    """Codes lowest .. lowest + 2^bits - 1 as text, in row-major order."""
    above = (codes.astype(np.int16) - lowest).astype(np.uint8).reshape(-1, 1)
    return base64.b85encode(np.packbits(np.unpackbits(above, axis=1)[:, 8 - bits :]).tobytes()).decode()


def from_text(text: str, shape: tuple[int, ...], *, bits: int, lowest: int) -> NDArray[np.int8]:
    """The codes that `to_text` wrote; raises `PlanError` for anything else."""
    count = math.prod(shape)
    try:
        packed = np.frombuffer(base64.b85decode(text), np.uint8)
    except ValueError as error:
        raise PlanError(f"the codes of a weight are not base 85: {error}") from None
    if packed.size != -(-count * bits // 8):
        raise PlanError(
            f"a plan holds {packed.size} bytes of codes where a weight of shape {list(shape)} at {bits} bits has "
            f"{-(-count * bits // 8)}: it was edited, or is for other weights"
        )
    planes = np.unpackbits(packed)[: count * bits].reshape(count, bits)
    above = np.packbits(planes, axis=1).reshape(-1) >> (8 - bits)
    return (above.astype(np.int16) + lowest).astype(np.int8).reshape(shape)
