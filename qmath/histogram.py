"""Counts in bins that are powers of two wide, centred on zero, so that histograms widen and merge exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent, frozen
from qmath._validation import as_parameter

BINS = 4096
MIN_EXPONENT = -100  # data within 2^-100 of zero, all zero above all, are counted over [-2^-100, 2^-100)
_MOST_BINS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram(ByContent):
    """Counts in equal bins over [-2^exponent, 2^exponent); values at an edge belong to the bin away from zero.

    The number of bins is a power of two. 2^exponent is the least power of two above the largest magnitude, never below
    2^-100. Raises ValueError for counts that are negative, not whole, or not so many.
    """

    counts: NDArray[np.int64]
    exponent: int

    def __post_init__(self) -> None:
        counts = as_parameter(self.counts, "counts", non_negative=True)
        check_bins(counts.size)
        if counts.ndim != 1 or (counts != np.floor(counts)).any():
            raise ValueError(f"counts: expected a 1-D array of whole numbers, found shape {counts.shape}")
        object.__setattr__(self, "counts", frozen(self.counts, np.int64))

    @classmethod
    def of(cls, data: ArrayLike, *, bins: int = BINS) -> Histogram:
        """Histogram of an array of any shape; raises ValueError for NaN, infinite or missing values."""
        from qmath.statistics import Statistics

        check_bins(bins)
        histogram = Statistics.of(data, bins=bins).histogram
        if histogram is None:
            raise ValueError(f"data: expected at least one value, found shape {np.shape(data)}")
        return histogram

    @property
    def width(self) -> float:
        """Width of a bin, in the units of x."""
        return math.ldexp(2.0 / self.counts.size, self.exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Ends of the bins, one more than bins."""
        half = self.counts.size // 2
        return np.arange(-half, half + 1, dtype=np.float64) * self.width

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middles of the bins."""
        half = self.counts.size // 2
        return (np.arange(-half, half, dtype=np.float64) + 0.5) * self.width

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def widened(self, exponent: int) -> Histogram:
        """The same data over [-2^exponent, 2^exponent), or over the present range when that is larger; exact."""
        counts = widened_counts(self.counts, exponent - self.exponent)
        return Histogram(counts=counts, exponent=max(exponent, self.exponent))

    def merge(self, other: Histogram) -> Histogram:
        """Histogram of both data sets, exact; raises ValueError for different numbers of bins."""
        if other.counts.size != self.counts.size:
            raise ValueError(
                f"histograms: expected equal numbers of bins, found {self.counts.size}, {other.counts.size}"
            )
        exponent = max(self.exponent, other.exponent)
        counts = self.widened(exponent).counts + other.widened(exponent).counts
        return Histogram(counts=counts, exponent=exponent)


def widened_counts(counts: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Counts over a range 2^steps as wide, 2^steps neighbours on one side of zero in a bin; steps <= 0 do nothing."""
    if steps <= 0:
        return counts
    steps = min(steps, counts.size.bit_length() - 2)  # then each half is one bin
    merged = np.add.reduceat(counts, np.arange(0, counts.size, 1 << steps))
    wider = np.zeros_like(counts)
    first = (counts.size - merged.size) // 2
    wider[first : first + merged.size] = merged
    return wider


def check_bins(bins: int) -> None:
    """Raise ValueError unless `bins` is a power of two from 4 to 65536."""
    whole = isinstance(bins, int | np.integer) and not isinstance(bins, bool)
    if not whole or not 4 <= bins <= _MOST_BINS or bins & (bins - 1):
        raise ValueError(f"bins: expected a power of two from 4 to {_MOST_BINS}, found {bins!r}")
