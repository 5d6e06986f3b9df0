"""Sums of floats without rounding, so that neither the order nor the grouping of the terms matters.

A double is an integer multiple of 2^-1074. A sum of doubles is kept as one wide integer in limbs of 32 bits, each in an
int64, which leaves room for 2^30 additions before carries must be propagated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT_EXPONENT = -1074  # a sum is an integer times two to this power
_LIMBS = 68  # 2098 bits for the doubles, and room for how many they are
_ADDITIONS = 1 << 29  # after which carries are propagated


class ExactSum:
    """`size` independent exact sums of doubles."""

    def __init__(self, size: int) -> None:
        self._limbs = np.zeros((size, _LIMBS), np.int64)
        self._pending = 0

    def add(self, terms: NDArray[np.float64]) -> None:
        """Add every row of `terms` (rows, size); all must be finite."""
        for first in range(0, len(terms), _ADDITIONS):
            part = np.ascontiguousarray(terms[first : first + _ADDITIONS])
            if self._pending + len(part) > _ADDITIONS:
                self._carry()
            self._add(part.view(np.int64))
            self._pending += len(part)

    def _add(self, bits: NDArray[np.int64]) -> None:
        """Add doubles viewed as integers (rows, size): mantissa times two to a power, in 32-bit pieces."""
        place = (bits >> 52) & 0x7FF
        normal = place > 0
        mantissa = (bits & 0xFFFFFFFFFFFFF) | (normal.astype(np.int64) << 52)
        place -= normal
        limb, shift = place >> 5, place & 31
        low, high = (mantissa & 0xFFFFFFFF) << shift, (mantissa >> 32) << shift
        sign, first = np.where(bits >= 0, 1, -1), limb + np.arange(bits.shape[1]) * _LIMBS
        pieces = (low & 0xFFFFFFFF, (low >> 32) + (high & 0xFFFFFFFF), high >> 32)
        for offset, piece in enumerate(pieces):
            np.add.at(self._limbs.reshape(-1), (first + offset).ravel(), (sign * piece).ravel())

    def merge(self, other: ExactSum) -> None:
        """Add the sums of another `ExactSum` of the same size."""
        other._carry()
        self._carry()
        self._limbs += other._limbs

    def integers(self) -> list[int]:
        """Every sum as an integer, in units of 2^-1074."""
        self._carry()
        words = np.ascontiguousarray(self._limbs[:, :-1]).astype("<u4")
        top = self._limbs[:, -1]  # signed
        bits = 32 * (_LIMBS - 1)
        return [
            int.from_bytes(row.tobytes(), "little") + (int(high) << bits) for row, high in zip(words, top, strict=True)
        ]

    def _carry(self) -> None:
        """Propagate carries, so that every limb but the last lies in 0..2^32-1."""
        limbs: NDArray[Any] = self._limbs
        for k in range(_LIMBS - 1):
            limbs[:, k + 1] += limbs[:, k] >> 32
            limbs[:, k] &= 0xFFFFFFFF
        self._pending = 0
