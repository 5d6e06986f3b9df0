"""One-pass statistics in Numba: ranges and sums per sample and channel, and counts per power-of-two bin."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np
from numba import njit

_REASSOCIATE = {"reassoc", "contract", "nsz"}
_BLOCK = 1 << 12  # values that are read from memory once, then again from the first-level cache


def float_keys(*shape: int) -> np.ndarray:
    """Least and greatest key of no values, (2, *shape).

    A key is an int64 in the order of the floats: their bits, all but the sign flipped where the sign is set.
    """
    ends = np.iinfo(np.int64)
    return np.stack([np.full(shape, ends.max), np.full(shape, ends.min)])


def keyed_floats(keys: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The floats of `dtype` that keys stand for, as float64, -0.0 as 0.0."""
    integer = np.dtype(f"i{dtype.itemsize}")
    bits = np.where(keys < 0, keys ^ np.iinfo(integer).max, keys).astype(integer)
    return bits.view(dtype).astype(np.float64) + 0.0


@njit(cache=True, nogil=True)
def scan(start, stop, blocks, bits, minimum_exponent, bins, keys, sums):
    """Statistics of the samples start..stop of `blocks` (samples, before, channels, after), each on its own.

    Fills keys[:, s, c] with least and greatest value as `float_keys` (`bits` are the blocks seen as integers), and
    sums[:, s, c] with those of x, x^2 and |x| in float64, added in an order that the shape of a sample alone decides.
    Returns counts in `bins` bins over [-2^e, 2^e) (none for 0 bins) and e. Stops where a sum of squares is not finite,
    which then tells.
    """
    tables = np.zeros((4, bins), np.int64)
    cells = np.empty(_BLOCK, np.int32)
    exponent = minimum_exponent
    _, before, channels, after = blocks.shape
    for s in range(start, stop):
        for a in range(before):
            if after == 1:
                _add_each(blocks[s, a].reshape(-1), bits[s, a].reshape(-1), keys[:, s], sums[:, s])
                continue
            for c in range(channels):
                for first in range(0, after, _BLOCK):
                    block = blocks[s, a, c, first : first + _BLOCK]
                    low, high = _range32(block) if block.itemsize == 4 else _range64(block)
                    total, squares, magnitudes = _sums(block)
                    keys[0, s, c] = min(keys[0, s, c], low)
                    keys[1, s, c] = max(keys[1, s, c], high)
                    sums[0, s, c] += total
                    sums[1, s, c] += squares
                    sums[2, s, c] += magnitudes
        if not np.isfinite(sums[1, s].sum()):
            return tables[0], exponent
        if bins:
            needed = max(exponent, _exponent(keys[0, s].min(), keys[1, s].max(), blocks.itemsize))
            _widen(tables, needed - exponent)
            exponent = needed
            _count(blocks[s].reshape(-1), math.ldexp(bins / 2, -exponent), tables, cells)
    return tables.sum(axis=0), exponent


@njit(cache=True, nogil=True)
def _add_each(values, bits, keys, sums):
    """One value for each channel."""
    mask = np.int64(0x7FFFFFFF) if values.itemsize == 4 else np.int64(0x7FFFFFFFFFFFFFFF)
    for c in range(values.size):
        x, b = np.float64(values[c]), np.int64(bits[c])
        key = b ^ ((b >> 63) & mask)
        keys[0, c] = min(keys[0, c], key)
        keys[1, c] = max(keys[1, c], key)
        sums[0, c] += x
        sums[1, c] += x * x
        sums[2, c] += abs(x)


@njit(cache=True, nogil=True, fastmath=_REASSOCIATE)
def _sums(row):
    total = squares = magnitudes = 0.0
    for i in range(row.size):
        x = np.float64(row[i])
        total += x
        squares += x * x
        magnitudes += abs(x)
    return total, squares, magnitudes


@njit(cache=True, nogil=True)
def _range32(row):
    """Least and greatest key of float32 values: one vector instruction each, which floats, having NaN, do not get."""
    bits = row.view(np.int32)
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low = min(low, key)
        high = max(high, key)
    return np.int64(low), np.int64(high)


@njit(cache=True, nogil=True)
def _range64(row):
    """As `_range32`, of float64 values."""
    bits = row.view(np.int64)
    low, high = np.int64(0x7FFFFFFFFFFFFFFF), np.int64(-0x8000000000000000)
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))
        low = min(low, key)
        high = max(high, key)
    return low, high


@njit(cache=True, nogil=True)
def _exponent(low, high, itemsize):
    """The e of 2^e, the least power of two above every magnitude between two keys (too large for subnormal ones)."""
    magnitude = max(high, ~low)  # the bits of the larger end without its sign
    return (magnitude >> 23) - 126 if itemsize == 4 else (magnitude >> 52) - 1022


@njit(cache=True, nogil=True)
def _count(values, factor, tables, cells):
    """Add to `tables` the bins of `values`: half + trunc(|x| factor) for x >= 0, else half - 1 - trunc(|x| factor).

    Exact, as factor is a power of two. Four tables in turn, so that equal neighbours (zeros after a ReLU) do not wait
    for each other.
    """
    half = np.int32(tables.shape[1] // 2)
    first, second, third, fourth = tables[0], tables[1], tables[2], tables[3]
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        _cells(block, values.dtype.type(factor), half, cells)
        whole = block.size // 4 * 4
        for i in range(0, whole, 4):
            first[np.uint32(cells[i])] += 1
            second[np.uint32(cells[i + 1])] += 1
            third[np.uint32(cells[i + 2])] += 1
            fourth[np.uint32(cells[i + 3])] += 1
        for i in range(whole, block.size):
            first[np.uint32(cells[i])] += 1


@njit(cache=True, nogil=True)
def _cells(values, factor, half, cells):
    for i in range(values.size):
        x = values[i]
        k = np.int32(abs(x) * factor)
        cells[i] = half + k if x >= 0 else half - np.int32(1) - k


@njit(cache=True, nogil=True)
def _widen(tables, steps):
    """Merge 2^steps bins into one, towards zero: the k-th on either side goes to the (k >> steps)-th."""
    half = tables.shape[1] // 2
    steps = min(steps, 62)
    if steps > 0:
        for t in range(tables.shape[0]):
            for k in range(1, half):
                above, below = tables[t, half + k], tables[t, half - 1 - k]
                tables[t, half + k] = tables[t, half - 1 - k] = 0
                tables[t, half + (k >> steps)] += above
                tables[t, half - 1 - (k >> steps)] += below


@njit(cache=True, nogil=True)
def add_to_limbs(limbs, terms):
    """Add every row of `terms` (rows, sums), doubles seen as int64, to the wide integers `limbs` (sums, limbs)."""
    for r in range(terms.shape[0]):
        for k in range(terms.shape[1]):
            bits = terms[r, k]
            place = (bits >> 52) & 0x7FF
            mantissa = bits & 0xFFFFFFFFFFFFF
            if place:
                mantissa |= 0x10000000000000
                place -= 1
            limb, shift = place >> 5, place & 31
            low = (mantissa & 0xFFFFFFFF) << shift
            high = (mantissa >> 32) << shift
            sign = 1 if bits >= 0 else -1
            limbs[k, limb] += sign * (low & 0xFFFFFFFF)
            limbs[k, limb + 1] += sign * ((low >> 32) + (high & 0xFFFFFFFF))
            limbs[k, limb + 2] += sign * (high >> 32)
