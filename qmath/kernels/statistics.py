"""One-pass statistics in Numba: ranges and sums per sample and channel, and counts per bin."""

# mypy: disable-error-code="no-untyped-def, call-arg"
from __future__ import annotations

import math

import numpy as np

from qmath.kernels.compiled import compiled
from qmath.kernels.vectors import greatest, least, widest_vectors

_REASSOCIATE = {"reassoc", "contract", "nsz"}
_PIECE = 1 << 12  # values read once from memory, then again from the first-level cache
_FULL = 1 << 31  # values that the 32-bit counters of `scan` are sure to hold


@compiled()
def scan(start, stop, before, after, rows, exponent, lows, highs, sums, counts, tables, cells, pairs):
    """Statistics of the samples start..stop, each on its own: `before` rows of (channels, `after`) values laid flat.

    Fills lows[s, c] (inf at first) and highs[s, c] (-inf) with the least and greatest value, and sums[:, s, c] with the
    sums of x, x^2 and |x| in float64, added in an order that depends on the shape of a sample alone. Fills `counts` and
    `tables`, to be added up (`counted`), with bins over [-2^e, 2^e), if there are any, and returns e, `exponent` or
    more. Stops at a sum of squares that is not finite, which the caller finds in `sums`. `cells` and their `pairs` are
    working space (`space`).
    """
    held, bins, size = 0, counts.size, rows.shape[1]
    within = after if after > _PIECE else size  # pieces do not cross multiples of this,
    step = _PIECE if after > _PIECE else _PIECE // after * after  # and short rows are kept whole
    for r in range(start * before, stop * before):
        values, s, first = rows[r], r // before, np.int64(0)  # of one type: a literal is compiled apart
        while first < size:
            piece = values[first : min(first + step, (first // within + 1) * within)]
            if after == 1:
                reach = _add_columns(piece, s, first, lows, highs, sums)
            else:
                reach = _add_rows(piece, min(after, piece.size), s, first // after, lows, highs, sums)
            if reach == np.inf:
                return exponent
            if bins:
                steps = max(0, math.frexp(reach)[1] - exponent) if reach > 0 else 0  # 2^e above the magnitude
                if held > _FULL or steps:
                    _settle(tables, counts, steps)
                    held = 0
                exponent += steps
                bin_cells(piece, rows.dtype.type(math.ldexp(bins / 2, -exponent)), np.int32(bins // 2), cells)
                tally(cells, pairs, piece.size, tables)
                held += piece.size
            first += piece.size
    return exponent


def space(bins):
    """Counts, and the working space of `scan`: tables of counts, and cells that are also read in pairs."""
    cells = np.zeros(_PIECE, np.int32)
    return np.zeros(bins, np.int64), np.zeros((4, bins), np.uint32), cells, cells.view(np.uint64)


def counted(counts, tables):
    """The counts that `scan` left in both."""
    return counts + tables.sum(axis=0, dtype=np.int64)


@compiled(fastmath=_REASSOCIATE)
def _add_rows(values, after, s, first, lows, highs, sums):
    """Take in rows of `after` values, for the channels of sample s from `first` on.

    Returns the largest magnitude, inf if squares are not finite.
    """
    widest_vectors()
    reach = 0.0
    for k in range(values.size // after):
        row, c = values[k * after : (k + 1) * after], first + k
        total = squares = magnitudes = 0.0
        for i in range(row.size):
            x = np.float64(row[i])
            total += x
            squares += x * x
            magnitudes += abs(x)
        sums[0, s, c] += total
        sums[1, s, c] += squares
        sums[2, s, c] += magnitudes
        if not np.isfinite(squares):
            return np.inf
        low, high = row[0], row[0]
        for i in range(row.size):
            low = least(row[i], low)
            high = greatest(row[i], high)
        lows[s, c] = least(lows[s, c], low)
        highs[s, c] = greatest(highs[s, c], high)
        reach = greatest(reach, np.float64(greatest(-low, high)))
    return reach


@compiled(fastmath=_REASSOCIATE)
def _add_columns(values, s, first, lows, highs, sums):
    """As `_add_rows`, for one value per channel."""
    widest_vectors()
    lows, highs, sums = lows[s, first:], highs[s, first:], sums[:, s, first:]
    squares, low, high = 0.0, values[0], values[0]
    for c in range(values.size):
        x = np.float64(values[c])
        sums[0, c] += x
        sums[1, c] += x * x
        sums[2, c] += abs(x)
        squares += x * x
    for c in range(values.size):
        lows[c] = least(values[c], lows[c])
        highs[c] = greatest(values[c], highs[c])
        low = least(values[c], low)
        high = greatest(values[c], high)
    return np.float64(greatest(-low, high)) if np.isfinite(squares) else np.inf


@compiled()
def bin_cells(values, factor, half, cells):
    """half + trunc(|x| factor) for x >= 0, else half - 1 - trunc(|x| factor); exact, as factor is a power of two."""
    widest_vectors()
    for i in range(values.size):
        x = values[i]
        k = np.int32(abs(x) * factor)
        cells[i] = half + k if x >= 0 else half - np.int32(1) - k


@compiled()
def tally(cells, pairs, size, tables):
    """Count the first `size` cells in four tables in turn, so that equal neighbours do not wait for one another.

    Equal neighbours are common: zeros after a ReLU. `pairs` are the cells two by two, one load for both.
    """
    first, second, third, fourth = tables[0], tables[1], tables[2], tables[3]
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for i in range(0, size // 4 * 2, 2):
        one, two = pairs[i], pairs[i + 1]
        first[one & low] += 1
        second[one >> half] += 1
        third[two & low] += 1
        fourth[two >> half] += 1
    for i in range(size // 4 * 4, size):
        first[np.uint32(cells[i])] += 1


@compiled()
def _settle(tables, counts, steps):
    """Move the contents of the tables to `counts`, then merge 2^steps bins into one, towards zero.

    Bin k on either side goes to bin k >> steps.
    """
    for k in range(counts.size):
        for t in range(4):
            counts[k] += tables[t, k]
            tables[t, k] = 0
    half, steps = counts.size // 2, min(steps, 62)
    if steps:
        for k in range(1, half):
            above, below = counts[half + k], counts[half - 1 - k]
            counts[half + k] = counts[half - 1 - k] = 0
            counts[half + (k >> steps)] += above
            counts[half - 1 - (k >> steps)] += below
