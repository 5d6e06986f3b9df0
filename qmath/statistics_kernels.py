"""One-pass statistics in Numba: sums per sample and channel, and counts per power-of-two bin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

MINIMUM, MAXIMUM, SUM, SQUARES, MAGNITUDES = range(5)
_REASSOCIATE = {"reassoc", "contract", "nsz"}
_SHORT_ROW = 8  # below this many values per row, the loop over channels is the one to vectorise


@njit(cache=True, nogil=True, fastmath=_REASSOCIATE)
def _add_row(row: np.ndarray) -> tuple[float, float, float]:
    total = squares = magnitudes = 0.0
    for i in range(row.size):
        x = np.float64(row[i])
        total += x
        squares += x * x
        magnitudes += abs(x)
    return total, squares, magnitudes


@njit(cache=True, nogil=True)
def _range32(row: np.ndarray) -> tuple[int, int]:
    """Range as integers in the order of the floats: one vector instruction per value, and NaN lies outside of it."""
    bits = row.view(np.int32)
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low = min(low, key)
        high = max(high, key)
    return low, high


@njit(cache=True, nogil=True)
def _range64(row: np.ndarray) -> tuple[int, int]:
    bits = row.view(np.int64)
    low, high = np.int64(0x7FFFFFFFFFFFFFFF), np.int64(-0x8000000000000000)
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))
        low = min(low, key)
        high = max(high, key)
    return low, high


@njit(cache=True, nogil=True)
def _rows(blocks: np.ndarray, keys: np.ndarray, sums: np.ndarray, find_range: Any) -> None:
    samples, before, channels, _ = blocks.shape
    for s in range(samples):
        for c in range(channels):
            for a in range(before):
                row = blocks[s, a, c]
                low, high = find_range(row)
                keys[MINIMUM, s, c] = min(keys[MINIMUM, s, c], low)
                keys[MAXIMUM, s, c] = max(keys[MAXIMUM, s, c], high)
                total, squares, magnitudes = _add_row(row)
                sums[0, s, c] += total
                sums[1, s, c] += squares
                sums[2, s, c] += magnitudes


@njit(cache=True, nogil=True, fastmath=_REASSOCIATE)
def _columns(blocks: np.ndarray, ranges: np.ndarray, sums: np.ndarray) -> None:
    samples, before, channels, after = blocks.shape
    for s in range(samples):
        for a in range(before):
            for i in range(after):
                for c in range(channels):
                    x = np.float64(blocks[s, a, c, i])
                    ranges[MINIMUM, s, c] = min(ranges[MINIMUM, s, c], x)
                    ranges[MAXIMUM, s, c] = max(ranges[MAXIMUM, s, c], x)
                    sums[0, s, c] += x
                    sums[1, s, c] += x * x
                    sums[2, s, c] += abs(x)


def row_sums(blocks: np.ndarray) -> np.ndarray:
    """(samples, before, channels, after) floats -> (5, samples, channels): minimum, maximum, sums of x, x^2 and |x|.

    Every sample on its own, in an order that depends on the sample's shape alone; float64. NaN gives NaN or infinity.
    """
    samples, _, channels, after = blocks.shape
    out = np.zeros((5, samples, channels))
    out[MINIMUM], out[MAXIMUM] = np.inf, -np.inf
    if after < _SHORT_ROW:
        _columns(blocks, out[:2], out[2:])
        return out
    integer, find_range = _ORDER[blocks.dtype]
    keys = np.empty((2, samples, channels), integer)
    keys[MINIMUM], keys[MAXIMUM] = np.iinfo(integer).max, np.iinfo(integer).min
    _rows(blocks, keys, out[2:], find_range)
    mask = np.iinfo(integer).max
    out[:2] = np.where(keys < 0, keys ^ mask, keys).view(blocks.dtype)
    return out


_ORDER: dict[np.dtype[Any], tuple[Any, Callable[..., Any]]] = {
    np.dtype(np.float32): (np.int32, _range32),
    np.dtype(np.float64): (np.int64, _range64),
}


@njit(cache=True, nogil=True)
def count_into(values: np.ndarray, factor: float, counts: np.ndarray) -> None:
    """Add to `counts` the bins of `values`: half + trunc(x factor) for x >= 0, half - 1 + trunc(x factor) below.

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
