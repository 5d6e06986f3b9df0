"""One view of data for every estimator: weighted points, from an array or from a histogram.

A histogram is anything with integer `counts` and float `edges`, one more edge than counts. Its bins are represented by
their centres here; where the spread within a bin matters (`qmath.stop_loss`), the edges are used instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath._validation import as_parameter

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Points in ascending order with their weights; `edges` bound the bins when the points are bin centres."""

    points: Floats
    weights: Floats
    edges: Floats | None = None

    @property
    def total(self) -> float:
        return float(self.weights.sum())

    @property
    def low(self) -> float:
        """Smallest value (lower edge of the first non-empty bin)."""
        return float(self.points[0] if self.edges is None else self.edges[0])

    @property
    def high(self) -> float:
        """Largest value (upper edge of the last non-empty bin)."""
        return float(self.points[-1] if self.edges is None else self.edges[-1])

    def rectified(self) -> Sample:
        """The sample of max(x, 0): negative values are moved to zero, or to the bin that starts there."""
        if self.low >= 0:
            return self
        if self.edges is None:
            return Sample(points=np.maximum(self.points, 0.0), weights=self.weights)
        kept = self.edges >= 0
        edges = np.unique(np.append(self.edges[kept], 0.0))
        below = np.concatenate(([0.0], np.cumsum(self.weights)))
        if edges.size == 1:
            raise ValueError("no positive value: nothing is left after a ReLU")
        weights = np.diff(np.interp(edges, self.edges, below))
        weights[0] += self.total - weights.sum()
        return Sample(points=(edges[:-1] + edges[1:]) / 2, weights=weights, edges=edges)


def is_histogram(data: Any) -> bool:
    return hasattr(data, "counts") and hasattr(data, "edges")


def sample_of(data: Any, *, name: str = "data") -> Sample:
    """The sample in an array-like or a histogram (empty outer bins dropped); ValueError when it is empty."""
    if isinstance(data, Sample):
        return data
    if is_histogram(data):
        return _from_histogram(data, name)
    points = np.sort(as_parameter(data, name), axis=None)
    return Sample(points=points, weights=np.ones(points.size))


def _from_histogram(histogram: Any, name: str) -> Sample:
    counts = np.asarray(histogram.counts, dtype=np.float64)
    edges = np.asarray(histogram.edges, dtype=np.float64)
    if edges.shape != (counts.size + 1,):
        raise ValueError(f"{name} has {counts.size} counts and {edges.size} edges: one edge more than counts expected")
    if not (np.all(counts >= 0) and np.all(np.isfinite(counts))):
        raise ValueError(f"{name} holds negative or non-finite counts")
    filled = np.flatnonzero(counts)
    if filled.size == 0:
        raise ValueError(f"{name} is an empty histogram: every count is zero")
    first, last = int(filled[0]), int(filled[-1]) + 1
    kept = edges[first : last + 1]
    return Sample(points=(kept[:-1] + kept[1:]) / 2, weights=counts[first:last], edges=kept)
