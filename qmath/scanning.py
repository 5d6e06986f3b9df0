"""One compiled pass over the values of a batch: ranges, sums and counts per bin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels.threads import over_threads
from qmath.sample import Floats

_GRAIN = 1 << 17  # values per thread below which another thread costs more than it saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a pass found.

    `ends` (2, channels) are the least and greatest values, `sums` (3, samples, channels) those of x, x^2 and |x|, each
    added in an order that depends on the shape of a sample alone. `counts` are pairs of counts in bins over [-2^e, 2^e)
    and e, to be added up; none without bins.
    """

    ends: Floats
    sums: Floats
    counts: list[tuple[NDArray[np.int64], int]]


def scanned(blocks: NDArray[Any], *, bins: int, exponent: int, parallel: bool) -> Scan:
    """Scan contiguous blocks (samples, before, channels, after), counting over [-2^exponent, 2^exponent) at the least.

    Raises:
        ValueError: For NaN or infinite values, and for squares beyond float64.
    """
    from qmath.kernels.statistics import counted, scan, space

    def part(start: int, stop: int) -> tuple[NDArray[np.int64], int]:
        counts, tables, *cells = space(bins)
        reach = scan(start, stop, before, after, rows, exponent, lows, highs, sums, counts, tables, *cells)
        return counted(counts, tables), int(reach)

    samples, before, channels, after = blocks.shape
    rows = blocks.reshape(samples * before, channels * after)
    lows = np.full((samples, channels), np.inf, blocks.dtype)
    highs, sums = np.full_like(lows, -np.inf), np.zeros((3, samples, channels))
    grain = max(1, _GRAIN * samples // blocks.size) if parallel else samples
    parts = over_threads(part, samples, grain)
    if not np.isfinite(sums[1]).all():
        _reject(blocks)
    ends = np.empty((2, channels))
    lows.min(axis=0, out=ends[0]), highs.max(axis=0, out=ends[1])
    return Scan(ends=ends + 0.0, sums=sums, counts=parts if bins else [])  # -0.0 becomes 0.0


def _reject(blocks: NDArray[Any]) -> None:
    bad = int(blocks.size - np.isfinite(blocks).sum())
    if bad:
        raise ValueError(f"batch: expected finite numbers, found {bad} NaN or infinite among {blocks.size}")
    raise ValueError(f"batch: values up to {np.abs(blocks).max():.3g} are too large: their squares overflow")
