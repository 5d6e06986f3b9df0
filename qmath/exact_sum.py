"""Sums of floats without rounding, so that neither the order nor the grouping of the terms can show.

A double is a whole number of 2^-1074. A sum of doubles is kept as one wide integer in limbs of 32 bits, each in an
int64 that leaves room for 2^30 additions before carries must be passed on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT_EXPONENT = -1074  # a sum is this power of two times a whole number
_LIMBS = 68  # 2098 bits of the doubles, and room for their number
_ADDITIONS = 1 << 29  # after which carries are passed on


class ExactSum:
    """`size` independent sums of doubles."""

    def __init__(self, size: int) -> None:
        self._limbs = np.zeros((size, _LIMBS), np.int64)
        self._pending = 0

    def add(self, terms: NDArray[np.float64]) -> None:
        """Add every row of `terms` (rows, size); all must be finite."""
        from qmath.kernels.statistics import add_to_limbs

        for first in range(0, len(terms), _ADDITIONS):
            part = np.ascontiguousarray(terms[first : first + _ADDITIONS])
            if self._pending + len(part) > _ADDITIONS:
                self._carry()
            add_to_limbs(self._limbs, part.view(np.int64))
            self._pending += len(part)

    def merge(self, other: ExactSum) -> None:
        """Add the sums of another, of the same size."""
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
        """Bring every limb but the last into 0..2^32-1."""
        limbs: NDArray[Any] = self._limbs
        for k in range(_LIMBS - 1):
            limbs[:, k + 1] += limbs[:, k] >> 32
            limbs[:, k] &= 0xFFFFFFFF
        self._pending = 0
