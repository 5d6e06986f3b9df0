"""Streaming statistics that do not depend on how the data are split or ordered.

Ranges and counts are exact. Histogram bins are powers of two wide: when a larger value arrives, neighbouring bins
merge in
pairs, which moves no value to a wrong bin, so that the result is that of the final range from the start. Sums are taken
per sample in a fixed order and combined over samples in double-double arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 4096
MIN_EXPONENT = -126  # range of data that are all zero: [-2**-126, 2**-126)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """Counts in equal bins over [-2**exponent, 2**exponent); bin `half` starts at 0, negative bins hold their
    upper edge.
    """

    counts: NDArray[np.int64]
    exponent: int

    @classmethod
    def of(cls, data: ArrayLike, *, bins: int = BINS) -> Histogram:
        """Histogram of an array of any shape; raises ValueError for NaN, infinite or missing values."""
        histogram = Statistics.of(data, bins=bins).histogram
        if histogram is None:
            raise ValueError("a histogram needs data")
        return histogram

    @property
    def width(self) -> float:
        return math.ldexp(2.0 / self.counts.size, self.exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        half = self.counts.size // 2
        return np.arange(-half, half + 1) * self.width

    @property
    def centers(self) -> NDArray[np.float64]:
        half = self.counts.size // 2
        return (np.arange(-half, half) + 0.5) * self.width

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def widened(self, exponent: int) -> Histogram:
        """The same data over a larger power-of-two range: bins merged in pairs, exactly."""
        counts = self.counts
        for _ in range(exponent - self.exponent):
            counts = _halved(counts)
        return Histogram(counts=counts, exponent=max(exponent, self.exponent))

    def merge(self, other: Histogram) -> Histogram:
        """Histogram of both data sets; raises ValueError for different numbers of bins."""
        if other.counts.size != self.counts.size:
            raise ValueError(f"cannot merge histograms of {self.counts.size} and {other.counts.size} bins")
        exponent = max(self.exponent, other.exponent)
        counts = self.widened(exponent).counts + other.widened(exponent).counts
        return Histogram(counts=counts, exponent=exponent)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.exponent == other.exponent and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Moments of a tensor (scalars), or of each of its channels (arrays); `variance` is the biased one, over
    `count`.
    """

    count: int
    min: Any
    max: Any
    mean: Any
    variance: Any
    mean_abs: Any
    histogram: Histogram | None = None
    channels: Statistics | None = None

    @classmethod
    def of(cls, data: ArrayLike, *, channel_axis: int | None = None, bins: int = BINS) -> Statistics:
        """Statistics of one array, axis 0 running over samples; raises ValueError as
        `StatisticsAccumulator.update` does.
        """
        accumulator = StatisticsAccumulator(bins=bins, channel_axis=channel_axis)
        accumulator.update(data)
        return accumulator.result()

    @property
    def std(self) -> Any:
        return np.sqrt(self.variance)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, exact through JSON."""
        result: dict[str, Any] = {"count": self.count}
        for name in ("min", "max", "mean", "variance", "mean_abs"):
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
        """The inverse of `to_dict`."""
        moments = {n: _number(raw[n]) for n in ("min", "max", "mean", "variance", "mean_abs")}
        histogram = None
        if "histogram" in raw:
            counts = np.zeros(raw["histogram"]["bins"], np.int64)
            counts[raw["histogram"]["filled"]] = raw["histogram"]["counts"]
            histogram = Histogram(counts=counts, exponent=raw["histogram"]["exponent"])
        channels = cls.from_dict(raw["channels"]) if "channels" in raw else None
        return cls(count=raw["count"], **moments, histogram=histogram, channels=channels)

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Statistics) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


class StatisticsAccumulator:
    """Statistics of data that arrive in batches; axis 0 of a batch runs over samples.

    With `channel_axis` (never 0; negative counts from the end), also those of every channel.
    """

    def __init__(self, *, bins: int = BINS, channel_axis: int | None = None) -> None:
        if bins == 1 or bins < 0 or bins & (bins - 1):
            raise ValueError(f"bins must be a power of two, or 0 for no histogram, not {bins}")
        if channel_axis == 0:
            raise ValueError("channel_axis 0 is the axis of samples: move the channels to another axis")
        self._channel_axis = channel_axis
        self._counts = np.zeros(bins, np.int64)
        self._exponent = MIN_EXPONENT
        self._count = 0  # values per channel
        self._range: NDArray[np.float64] | None = None  # channels x (min, max)
        self._sums: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def update(self, batch: ArrayLike) -> None:
        """Take in one batch; raises ValueError for NaN or infinite values, or another number of channels."""
        from qmath.statistics_kernels import add_exactly, count_into, row_sums

        blocks = self._blocks(batch)
        if blocks.size == 0:
            return
        rows = row_sums(blocks)
        low, high = rows[0].min(axis=0), rows[1].max(axis=0)
        if not np.isfinite(rows).all():
            self._reject(blocks)
        if self._range is None or self._sums is None:
            self._range = np.stack([low, high])
            self._sums = np.zeros(3 * low.size), np.zeros(3 * low.size)
        elif self._range.shape[1] != low.size:
            raise ValueError(f"expected {self._range.shape[1]} channels, found {low.size}")
        self._range = np.stack([np.minimum(self._range[0], low), np.maximum(self._range[1], high)])
        add_exactly(*self._sums, np.ascontiguousarray(np.moveaxis(rows[2:], 0, 2)).reshape(rows.shape[1], -1))
        if self._counts.size:
            self._grow(max(-float(low.min()), float(high.max()), 0.0))
            half = self._counts.size // 2
            count_into(blocks.reshape(-1), math.ldexp(float(half), -self._exponent), self._counts)
        self._count += blocks.size // blocks.shape[2]

    def result(self) -> Statistics:
        """Everything seen so far; all zero with count 0 where nothing was."""
        if self._range is None or self._sums is None:
            return Statistics(count=0, min=0.0, max=0.0, mean=0.0, variance=0.0, mean_abs=0.0)
        low, high = self._range
        sums = self._sums[0].reshape(-1, 3)
        channels = None
        if self._channel_axis is not None:
            channels = Statistics(count=self._count, min=low, max=high, **_moments(sums.T, self._count))
        total = np.array([math.fsum(column) for column in sums.T])
        count = self._count * len(sums)
        histogram = Histogram(counts=self._counts.copy(), exponent=self._exponent) if self._counts.size else None
        moments = {name: float(value) for name, value in _moments(total, count).items()}
        return Statistics(
            count=count,
            min=float(low.min()),
            max=float(high.max()),
            **moments,
            histogram=histogram,
            channels=channels,
        )

    def _blocks(self, batch: ArrayLike) -> NDArray[Any]:
        """The batch as contiguous floats of shape (samples, before, channels, after)."""
        array = np.asarray(batch)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"statistics need real numbers, not {array.dtype}")
        if array.dtype not in (np.float32, np.float64) or not array.dtype.isnative:
            array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
        array = np.ascontiguousarray(array)
        samples = array.shape[0] if array.ndim else 1
        if self._channel_axis is None:
            return array.reshape(samples, 1, 1, array.size // samples if samples else 0)
        axis = self._channel_axis + array.ndim if self._channel_axis < 0 else self._channel_axis
        if not 0 < axis < array.ndim:
            raise ValueError(f"channel_axis {self._channel_axis} is not an axis of a batch of shape {array.shape}")
        shape = array.shape
        return array.reshape(samples, math.prod(shape[1:axis]), shape[axis], math.prod(shape[axis + 1 :]))

    def _grow(self, magnitude: float) -> None:
        """Widen the histogram so that magnitude < 2**exponent."""
        exponent = max(math.frexp(magnitude)[1] if magnitude > 0 else MIN_EXPONENT, MIN_EXPONENT)
        steps = exponent - self._exponent
        if steps <= 0:
            return
        for _ in range(min(steps, self._counts.size.bit_length())):
            self._counts = _halved(self._counts)
        self._exponent = exponent

    @staticmethod
    def _reject(blocks: NDArray[Any]) -> None:
        bad = int(blocks.size - np.isfinite(blocks).sum())
        if bad:
            raise ValueError(f"{bad} of {blocks.size} values are NaN or infinite")
        raise ValueError(f"values up to {np.abs(blocks).max():.3g} are too large: their squares overflow")


def _halved(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts over twice the range: both halves merge towards zero in pairs."""
    quarter = counts.size // 4
    merged = counts.reshape(-1, 2).sum(axis=1)
    result = np.zeros_like(counts)
    result[quarter : quarter + merged.size] = merged
    return result


def _moments(sums: NDArray[np.float64], count: int) -> dict[str, Any]:
    """Mean, variance and mean magnitude from the sums of x, x^2 and |x|."""
    mean = sums[0] / count
    return {"mean": mean, "variance": np.maximum(sums[1] / count - mean**2, 0.0), "mean_abs": sums[2] / count}


def _number(raw: Any) -> Any:
    return np.asarray(raw, np.float64) if isinstance(raw, list) else raw
