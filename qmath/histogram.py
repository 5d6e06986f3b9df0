"""Histograms whose bins have powers of two as widths, so that any two of them merge exactly.

When a larger value arrives, neighbouring bins merge in pairs, which moves no value to a wrong bin: the result is the
same as if the final range had been known from the start.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent, frozen
from qmath._validation import as_data, as_parameter
from qmath.scanning import scanned

BINS = 4096
MIN_EXPONENT = -100  # data within 2^-100 of zero (usually all zero) are counted over [-2^-100, 2^-100)
_MOST_BINS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Histogram(ByContent):
    """Counts in equal bins over [-2^exponent, 2^exponent); values at an edge belong to the bin away from zero.

    The number of bins is a power of two. 2^exponent is the least power of two above the largest magnitude, and never
    below 2^-100.

    Raises:
        ValueError: For counts that are negative, not integers, or whose number is not a power of two from 4 to 65536.

    Example:
        >>> import qmath
        >>> histogram = qmath.Histogram.of([-0.2, 0.1, 0.1, 0.9], bins=4)
        >>> histogram.counts.tolist(), histogram.edges.tolist()
        ([0, 1, 2, 1], [-1.0, -0.5, 0.0, 0.5, 1.0])
    """

    counts: NDArray[np.int64]
    exponent: int

    def __repr__(self) -> str:
        reach = 2.0**self.exponent
        return f"Histogram({int(self.counts.sum()):,} values in {self.counts.size} bins over {-reach:g}..{reach:g})"

    def __post_init__(self) -> None:
        counts = as_parameter(self.counts, "counts", non_negative=True)
        check_bins(counts.size)
        if counts.ndim != 1 or (counts != np.floor(counts)).any():
            raise ValueError(f"counts: expected a 1-D array of whole numbers, found shape {counts.shape}")
        object.__setattr__(self, "counts", frozen(self.counts, np.int64))

    @classmethod
    def of(cls, data: ArrayLike, *, bins: int = BINS) -> Histogram:
        """Return the histogram of an array of any shape, of `bins` bins.

        Raises:
            TypeError: When `data` does not hold real numbers.
            ValueError: For NaN, infinite or missing values, or `bins` that is not a power of two from 4 to 65536.

        Example:
            >>> import qmath
            >>> qmath.Histogram.of([1.0, 3.0], bins=8).counts.tolist()
            [0, 0, 0, 0, 0, 1, 0, 1]
        """
        check_bins(bins)
        array = as_data(data, "data")
        blocks = np.ascontiguousarray(array).reshape(len(array) if array.ndim else 1, 1, 1, -1)
        scan = scanned(blocks, bins=bins, exponent=MIN_EXPONENT, parallel=True)
        return functools.reduce(cls.merge, (cls(counts=counts, exponent=exponent) for counts, exponent in scan.counts))

    @classmethod
    def empty(cls, bins: int) -> Histogram:
        """Return the histogram of no values, which merges with any of as many bins.

        Example:
            >>> import qmath
            >>> qmath.Histogram.empty(4).merge(qmath.Histogram.of([1.0], bins=4)).total
            1
        """
        return cls(counts=np.zeros(bins, np.int64), exponent=MIN_EXPONENT)

    @property
    def width(self) -> float:
        """Width of a bin, in the units of x."""
        return math.ldexp(2.0 / self.counts.size, self.exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins in the units of x, one more than bins."""
        half = self.counts.size // 2
        return np.arange(-half, half + 1, dtype=np.float64) * self.width

    @property
    def centers(self) -> NDArray[np.float64]:
        """Centres of the bins, in the units of x."""
        half = self.counts.size // 2
        return (np.arange(-half, half, dtype=np.float64) + 0.5) * self.width

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def widened(self, exponent: int) -> Histogram:
        """Return the same data over [-2^exponent, 2^exponent), or over the present range when that is larger; exact.

        Example:
            >>> import qmath
            >>> qmath.Histogram.of([-0.2, 0.1, 0.1, 0.9], bins=4).widened(1).counts.tolist()
            [0, 1, 3, 0]
        """
        steps = exponent - self.exponent
        if steps <= 0:
            return self
        joined = 1 << min(steps, self.counts.size.bit_length() - 2)  # at the most, each half becomes one bin
        merged = np.add.reduceat(self.counts, np.arange(0, self.counts.size, joined))
        counts = np.zeros_like(self.counts)
        first = (counts.size - merged.size) // 2
        counts[first : first + merged.size] = merged
        return Histogram(counts=counts, exponent=exponent)

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of both data sets; exact.

        Raises:
            ValueError: For different numbers of bins.

        Example:
            >>> import qmath
            >>> one, other = (qmath.Histogram.of(x, bins=4) for x in ([0.1, 0.9], [1.5]))
            >>> one.merge(other).counts.tolist()
            [0, 0, 2, 1]
        """
        if other.counts.size != self.counts.size:
            raise ValueError(
                f"histograms: expected equal numbers of bins, found {self.counts.size}, {other.counts.size}"
            )
        exponent = max(self.exponent, other.exponent)
        counts = self.widened(exponent).counts + other.widened(exponent).counts
        return Histogram(counts=counts, exponent=exponent)


def check_bins(bins: int) -> None:
    """Raise ValueError unless `bins` is a power of two from 4 to 65536."""
    whole = isinstance(bins, int | np.integer) and not isinstance(bins, bool)
    if not whole or not 4 <= bins <= _MOST_BINS or bins & (bins - 1):
        raise ValueError(f"bins: expected a power of two from 4 to {_MOST_BINS}, found {bins!r}")
