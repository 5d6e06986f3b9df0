"""Streaming statistics that do not depend on how samples are batched or ordered, to the last bit.

Ranges and counts (`qmath.histogram`) are exact. Sums are taken within each sample in an order that depends on its shape
alone, and over samples without rounding (`qmath.exact_sum`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent, frozen
from qmath._validation import as_axis, as_data
from qmath.exact_sum import UNIT_EXPONENT, ExactSum
from qmath.histogram import BINS, Histogram, check_bins
from qmath.scanning import scanned

_MOMENTS = ("mean", "variance", "mean_abs")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
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
        >>> statistics
        Statistics(4 values, 1..6, mean=3, std=1.871, 2 channels, histogram)
    """

    count: int
    min: Any
    max: Any
    mean: Any
    variance: Any
    mean_abs: Any
    histogram: Histogram | None = None
    channels: Statistics | None = None

    def __repr__(self) -> str:
        low, high = float(np.min(self.min, initial=np.inf)), float(np.max(self.max, initial=-np.inf))
        said = [f"{self.count:,} values", f"{low:.4g}..{high:.4g}"]
        if np.ndim(self.mean):
            said.insert(0, f"{np.size(self.mean)} channels")
        else:
            said.append(f"mean={float(self.mean):.4g}, std={float(np.sqrt(self.variance)):.4g}")
        channels = [] if self.channels is None else [f"{np.size(self.channels.mean)} channels"]
        said += channels + (["histogram"] if self.histogram is not None else [])
        return f"Statistics({', '.join(said)})"

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
        self._histogram = Histogram.empty(self._bins) if bins else None
        self._parallel = parallel
        self._channel_axis = (
            None if channel_axis is None else as_axis(channel_axis, 64, "channel_axis") - 64 * (channel_axis < 0)
        )
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
        blocks = self._blocks(as_data(batch, "batch", allow_empty=True))
        if blocks.size == 0:
            return
        samples, _, channels, _ = blocks.shape
        if self._range is not None and self._range.shape[1] != channels:
            raise ValueError(f"batch: expected {self._range.shape[1]} channels as before, found {channels}")
        exponent = self._histogram.exponent if self._histogram else 0
        scan = scanned(blocks, bins=self._bins, exponent=exponent, parallel=self._parallel)
        if self._range is None:
            self._range, self._sums = scan.ends, ExactSum(channels * 3)
        self._widen_range(scan.ends)
        self._sums.add(np.ascontiguousarray(scan.sums.transpose(1, 0, 2)).reshape(samples, -1))
        self._count += blocks.size // channels
        for counts, exponent in scan.counts:
            self._count_in(Histogram(counts=counts, exponent=exponent))

    def merge(self, other: StatisticsAccumulator) -> None:
        """Take in everything that another accumulator with the same bins and channels has seen; exact.

        Raises:
            ValueError: For other bins, another channel axis or another number of channels.

        Example:
            >>> import qmath
            >>> one, other = qmath.StatisticsAccumulator(), qmath.StatisticsAccumulator()
            >>> one.update([1.0, 2.0])
            >>> other.update([6.0])
            >>> one.merge(other)
            >>> one.result().mean
            3.0
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
        if other._histogram is not None:
            self._count_in(other._histogram)

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
            histogram=self._histogram,
            channels=channels,
        )

    def _count_in(self, histogram: Histogram) -> None:
        if self._histogram is not None:
            self._histogram = self._histogram.merge(histogram)

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


def _number(raw: Any) -> Any:
    return np.asarray(raw, np.float64) if isinstance(raw, list) else raw
