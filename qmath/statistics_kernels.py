"""One-pass statistics in Numba: sums per sample and channel, and counts per power-of-two bin."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

COLUMNS = 5  # minimum, maximum, sum, sum of squares, sum of magnitudes


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def row_sums(blocks: np.ndarray) -> np.ndarray:
    """(samples, before, channels, after) floats -> (samples, channels, COLUMNS), every sample on its own, in float64."""
    samples, before, channels, after = blocks.shape
    out = np.zeros((samples, channels, COLUMNS))
    for s in range(samples):
        for c in range(channels):
            low, high = math.inf, -math.inf
            total = squares = magnitudes = 0.0
            for a in range(before):
                for i in range(after):
                    x = np.float64(blocks[s, a, c, i])
                    low = min(low, x)
                    high = max(high, x)
                    total += x
                    squares += x * x
                    magnitudes += abs(x)
            out[s, c, 0] = low
            out[s, c, 1] = high
            out[s, c, 2] = total
            out[s, c, 3] = squares
            out[s, c, 4] = magnitudes
    return out


@njit(cache=True, nogil=True)
def count_into(values: np.ndarray, factor: float, counts: np.ndarray) -> None:
    """Add to `counts` the bins of `values`: half + trunc(x factor) for x >= 0, half - 1 - trunc(-x factor) below.

    Four tables in turn, so that equal neighbours (zeros after a ReLU) do not wait for each other.
    """
    bins = counts.size
    half = bins // 2
    tables = np.zeros((4, bins), np.int64)
    for i in range(values.size):
        scaled = np.float64(values[i]) * factor
        k = int(scaled)
        tables[i & 3, half + k if scaled >= 0 else half - 1 + k] += 1
    for t in range(4):
        for k in range(bins):
            counts[k] += tables[t, k]


@njit(cache=True, nogil=True)
def add_exactly(high: np.ndarray, low: np.ndarray, terms: np.ndarray) -> None:
    """Add every row of `terms` to the double-double accumulators high + low (Knuth's two-sum)."""
    for r in range(terms.shape[0]):
        for k in range(terms.shape[1]):
            a, b = high[k], terms[r, k]
            s = a + b
            v = s - a
            e = (a - (s - v)) + (b - v) + low[k]
            t = s + e
            low[k] = e - (t - s)
            high[k] = t
