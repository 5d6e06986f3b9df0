"""Streaming statistics that do not depend on how samples are batched or ordered, to the last bit.

Ranges and counts are exact. The widths of histogram bins are powers of two: when a larger value arrives, neighbouring
bins merge in pairs, which moves no value to a wrong bin, so the result is the same as if the final range had been known
from the start. Sums are taken within each sample in an order that depends on its shape alone, and over samples without
rounding (`qmath.exact_sum`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent, frozen
from qmath._validation import as_axis, as_data, as_parameter
from qmath.exact_sum import UNIT_EXPONENT, ExactSum
from qmath.kernels.threads import over_threads

BINS = 4096
MIN_EXPONENT = -100  # data within 2^-100 of zero (usually all zero) are counted over [-2^-100, 2^-100)
_MOST_BINS = 1 << 16
_GRAIN = 1 << 17  # values per thread below which another thread costs more than it saves
_MOMENTS = ("mean", "variance", "mean_abs")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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
        counts = widened_counts(self.counts, exponent - self.exponent)
        return Histogram(counts=counts, exponent=max(exponent, self.exponent))

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


def widened_counts(counts: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Counts over a range 2^steps as wide: 2^steps neighbours on one side of zero share a bin.

    No change for steps <= 0.
    """
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics(ByContent):
    """Moments of a tensor (floats), or of each of its channels (float64 arrays).

    `count` is the number of values (per channel); `min`, `max`, `mean`, the biased `variance` (over `count`) and
    `mean_abs` are in the units of x (`variance` squared). `variance` is accurate to about 1e-15 (variance + mean^2),
    and 0 where all values are equal. `channels` holds the statistics per channel where they were asked for.

    Example:
        >>> import qmath
        >>> statistics = qmath.Statistics.of([[1.0, 2.0], [3.0, 6.0]], channel_axis=1)
        >>> statistics.mean, float(statistics.variance), statistics.channels.max.tolist()
        (3.0, 3.5, [3.0, 6.0])
    """

    count: int
    min: Any
    max: Any
    mean: Any
    variance: Any
    mean_abs: Any
    histogram: Histogram | None = None
    channels: Statistics | None = None

    def __post_init__(self) -> None:
        for name in ("min", "max", *_MOMENTS):
            if isinstance(getattr(self, name), np.ndarray):
                object.__setattr__(self, name, frozen(getattr(self, name)))

    @classmethod
    def of(cls, data: ArrayLike, *, channel_axis: int | None = None, bins: int = BINS) -> Statistics:
        """Return the statistics of one array; `channel_axis`, `bins` and errors as for `StatisticsAccumulator`.

        Raises:
            TypeError: When `data` does not hold real numbers.
            ValueError: For NaN or infinite values, a missing axis, or `bins` that is not a power of two from 4 to
                65536.

        Example:
            >>> import qmath
            >>> qmath.Statistics.of([-1.0, 2.0]).mean_abs
            1.5
        """
        accumulator = StatisticsAccumulator(bins=bins, channel_axis=channel_axis)
        accumulator.update(data)
        return accumulator.result()

    @property
    def std(self) -> Any:
        """Standard deviation, in the units of x."""
        return np.sqrt(self.variance)

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both data sets; moments are combined in float64, hence rounded, all else is exact.

        For results that do not depend on the order, merge accumulators. What only one of the two has (histogram,
        channels) is dropped.

        Raises:
            ValueError: For different numbers of channels or bins.

        Example:
            >>> import qmath
            >>> qmath.Statistics.of([1.0]).merge(qmath.Statistics.of([3.0])).mean
            2.0
        """
        if not (self.count and other.count):
            return self if self.count else other
        if np.shape(self.mean) != np.shape(other.mean):
            raise ValueError(
                f"statistics: expected equal channels, found {np.shape(self.mean)}, {np.shape(other.mean)}"
            )
        count = self.count + other.count
        share = other.count / count
        shift = other.mean - self.mean
        both = self.histogram is not None and other.histogram is not None
        return Statistics(
            count=count,
            min=np.minimum(self.min, other.min)[()],
            max=np.maximum(self.max, other.max)[()],
            mean=self.mean + shift * share,
            variance=self.variance * (1 - share) + other.variance * share + shift**2 * share * (1 - share),
            mean_abs=self.mean_abs * (1 - share) + other.mean_abs * share,
            histogram=self.histogram.merge(other.histogram) if both else None,  # type: ignore[union-attr, arg-type]
            channels=self.channels.merge(other.channels) if self.channels and other.channels else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, exact through JSON.

        Example:
            >>> import qmath
            >>> qmath.Statistics.of([1.0, 3.0], bins=4).to_dict()["mean"]
            2.0
        """
        result: dict[str, Any] = {"count": self.count}
        for name in ("min", "max", *_MOMENTS):
            result[name] = np.asarray(getattr(self, name)).tolist()
        if self.histogram is not None:
            filled = np.flatnonzero(self.histogram.counts)
            result["histogram"] = {
                "exponent": self.histogram.exponent,
                "bins": self.histogram.counts.size,
                "filled": filled.tolist(),
                "counts": self.histogram.counts[filled].tolist(),
            }
        if self.channels is not None:
            result["channels"] = self.channels.to_dict()
        return result

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Statistics:
        """Return the statistics that `to_dict` made plain: its inverse.

        Example:
            >>> import qmath
            >>> statistics = qmath.Statistics.of([1.0, 3.0])
            >>> qmath.Statistics.from_dict(statistics.to_dict()) == statistics
            True
        """
        moments = {name: _number(raw[name]) for name in ("min", "max", *_MOMENTS)}
        histogram = None
        if "histogram" in raw:
            counts = np.zeros(raw["histogram"]["bins"], np.int64)
            counts[raw["histogram"]["filled"]] = raw["histogram"]["counts"]
            histogram = Histogram(counts=counts, exponent=raw["histogram"]["exponent"])
        channels = cls.from_dict(raw["channels"]) if "channels" in raw else None
        return cls(count=raw["count"], **moments, histogram=histogram, channels=channels)


class StatisticsAccumulator:
    """Statistics of data that arrive in batches; axis 0 of a batch is that of the samples.

    With `channel_axis` (negative counts from the end) also those of every channel; channel axis 0 means that a batch is
    one sample. `bins` is a power of two from 4 to 65536, or 0 for no histogram. `parallel` lets one update use several
    threads; a caller that runs several threads itself is better off without.

    Raises:
        ValueError: For another number of bins.

    Example:
        >>> import qmath
        >>> accumulator = qmath.StatisticsAccumulator()
        >>> for batch in ([[1.0], [2.0]], [[6.0]]):
        ...     accumulator.update(batch)
        >>> accumulator.result().mean, accumulator.result().count
        (3.0, 3)
    """

    def __init__(self, *, bins: int = BINS, channel_axis: int | None = None, parallel: bool = True) -> None:
        if bins != 0:
            check_bins(bins)
        self._bins = int(bins)
        self._parallel = parallel
        self._channel_axis = (
            None if channel_axis is None else as_axis(channel_axis, 64, "channel_axis") - 64 * (channel_axis < 0)
        )
        self._counts, self._exponent = np.zeros(self._bins, np.int64), MIN_EXPONENT
        self._count = 0  # values per channel
        self._range: NDArray[np.float64] | None = None  # (minimum and maximum, channels)
        self._sums = ExactSum(0)  # of x, x^2 and |x|, three per channel

    def update(self, batch: ArrayLike) -> None:
        """Take in one batch; an empty one changes nothing.

        Raises:
            TypeError: When the batch does not hold real numbers.
            ValueError: For NaN or infinite values, squares beyond float64, or another number of channels than before;
                the statistics are then left as they were.
        """
        from qmath.kernels.statistics import scan

        blocks = self._blocks(as_data(batch, "batch", allow_empty=True))
        if blocks.size == 0:
            return
        samples, _, channels, _ = blocks.shape
        if self._range is not None and self._range.shape[1] != channels:
            raise ValueError(f"batch: expected {self._range.shape[1]} channels as before, found {channels}")
        lows = np.full((samples, channels), np.inf, blocks.dtype)
        highs, sums = np.full_like(lows, -np.inf), np.zeros((3, samples, channels))
        grain = max(1, _GRAIN * samples // blocks.size) if self._parallel else samples
        parts = over_threads(scan, samples, grain, blocks, self._exponent, self._bins, lows, highs, sums)
        if not np.isfinite(sums[1]).all():
            _reject(blocks)
        ends = np.empty((2, channels))
        lows.min(axis=0, out=ends[0]), highs.max(axis=0, out=ends[1])
        self._include(ends + 0.0, sums, parts)  # -0.0 becomes 0.0
        self._count += blocks.size // channels

    def merge(self, other: StatisticsAccumulator) -> None:
        """Take in everything that another accumulator with the same bins and channels has seen; exact.

        Raises:
            ValueError: For other bins, another channel axis or another number of channels.
        """
        if (self._bins, self._channel_axis) != (other._bins, other._channel_axis):
            raise ValueError("accumulators: expected the same bins and channel_axis")
        if other._range is None:
            return
        if self._range is None:
            self._range, self._sums = other._range, ExactSum(other._range.shape[1] * 3)
        elif self._range.shape != other._range.shape:
            raise ValueError(f"channels: expected {self._range.shape[1]}, found {other._range.shape[1]}")
        self._widen_range(other._range)
        self._sums.merge(other._sums)
        self._count += other._count
        self._add_counts(other._counts, other._exponent)

    def result(self) -> Statistics:
        """Return the statistics of everything seen so far; count 0 and all zero when nothing was."""
        if self._range is None:
            return Statistics(count=0, min=0.0, max=0.0, mean=0.0, variance=0.0, mean_abs=0.0)
        sums = np.array(self._sums.integers(), dtype=object).reshape(3, -1).T
        low, high = self._range
        channels = None
        if self._channel_axis is not None:
            moments = np.array([_moments(row, self._count) for row in sums]).T
            channels = Statistics(count=self._count, min=low, max=high, **_named(moments, low < high))
        return Statistics(
            count=self._count * len(sums),
            min=float(low.min()),
            max=float(high.max()),
            **_named(_moments(sums.sum(axis=0), self._count * len(sums)), low.min() < high.max()),
            histogram=Histogram(counts=self._counts, exponent=self._exponent) if self._bins else None,
            channels=channels,
        )

    def _include(self, ends: NDArray[np.float64], sums: NDArray[np.float64], parts: list[Any]) -> None:
        """Take in ranges (2, channels), sums (3, samples, channels) and the (counts, exponent) of a batch's parts."""
        if self._range is None:
            self._range, self._sums = ends, ExactSum(ends.size // 2 * 3)
        self._widen_range(ends)
        self._sums.add(np.ascontiguousarray(sums.transpose(1, 0, 2)).reshape(sums.shape[1], -1))
        for counts, exponent in parts:
            self._add_counts(counts, int(exponent))

    def _add_counts(self, counts: NDArray[np.int64], exponent: int) -> None:
        if self._bins:
            widest = max(exponent, self._exponent)
            self._counts = widened_counts(self._counts, widest - self._exponent) + widened_counts(
                counts, widest - exponent
            )
            self._exponent = widest

    def _widen_range(self, ends: NDArray[np.float64]) -> None:
        """Extend the range in a new array, as results may share the old one."""
        if self._range is not None:
            low, high = np.minimum(self._range[0], ends[0]), np.maximum(self._range[1], ends[1])
            self._range = np.stack([low, high])

    def _blocks(self, array: NDArray[Any]) -> NDArray[Any]:
        """The batch as a contiguous array of shape (samples, before, channels, after)."""
        array = np.ascontiguousarray(array)
        shape = array.shape
        if self._channel_axis is None:
            samples = shape[0] if array.ndim else 1
            return array.reshape(samples, 1, 1, math.prod(shape[1:]))
        axis = as_axis(self._channel_axis, array.ndim, "channel_axis")
        samples = shape[0] if axis else 1
        return array.reshape(samples, math.prod(shape[1:axis]), shape[axis], math.prod(shape[axis + 1 :]))


def _moments(sums: NDArray[Any], count: int) -> tuple[float, float, float]:
    """Mean, variance and mean magnitude, each rounded once, from sums of x, x^2 and |x| in units of 2^-1074."""
    total, squares, magnitudes = sums
    unit = 1 << -UNIT_EXPONENT
    spread = max(count * squares * unit - total * total, 0)
    return total / (count * unit), spread / (count * count * unit * unit), magnitudes / (count * unit)


def _named(moments: Any, spread: Any) -> dict[str, Any]:
    """Moments by name; the variance of equal values is 0, whatever the rounding of their squares."""
    mean, variance, mean_abs = moments
    return {"mean": mean, "variance": variance * spread, "mean_abs": mean_abs}


def _reject(blocks: NDArray[Any]) -> None:
    bad = int(blocks.size - np.isfinite(blocks).sum())
    if bad:
        raise ValueError(f"batch: expected finite numbers, found {bad} NaN or infinite among {blocks.size}")
    raise ValueError(f"batch: values up to {np.abs(blocks).max():.3g} are too large: their squares overflow")


def _number(raw: Any) -> Any:
    return np.asarray(raw, np.float64) if isinstance(raw, list) else raw
