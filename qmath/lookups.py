"""Bits for the rows of a table by how often they are looked up.

The error of a row counts as often as the row is read: with p_r the probability of row r, and equal spreads,

    minimise  sum_r p_r 4^-b_r   where   sum_r b_r <= R (b + spare)     =>     b_r = b + log2(p_r / level) / 2       (1)

for rows above the level, and b for all others (reverse water-filling; Cover and Thomas, 2006, section 10.3). Words
follow Zipf's law: some hundred rows of a vocabulary make up most of a text, and their bits cost nothing beside those of
ten thousands of others.

Rows that no sample reads are not impossible. They share the probability n_1 / N, where n_1 rows were read once among N
lookups (Good, 1953), and no row counts as rarer than they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_bit_count, as_parameter
from qmath.sample import Floats

_HALVINGS = 60


def lookup_probabilities(counts: ArrayLike) -> Floats:
    """Return the probability of every row from how often samples read it, shape (rows,).

    Rows read c times out of N have (1 - n_1 / N) c / N; those never read share n_1 / N. Source: Good (1953).

    Raises:
        ValueError: For negative counts, anything but a vector, and if nothing was read.

    Example:
        >>> import qmath
        >>> qmath.lookup_probabilities([6, 1, 1, 0, 0]).tolist()
        [0.5625, 0.09375, 0.09375, 0.125, 0.125]
    """
    read = as_parameter(counts, "counts", non_negative=True)
    total = float(read.sum())
    if read.ndim != 1 or not total > 0:
        raise ValueError(f"counts: expected one number for each row, not all zero, found shape {read.shape}")
    unseen = int((read == 0).sum())
    missing = float((read == 1).sum()) / total if unseen else 0.0
    missing = min(missing, 1 - 1 / total) if total > 1 else 0.0
    return np.where(read > 0, (1 - missing) * read / total, missing / max(unseen, 1))


def lookup_bits(counts: ArrayLike, *, bits: int, max_bits: int = 8, spare: float = 0.25) -> NDArray[np.int64]:
    """Return the bits of every row of a table by Eq. 1 of `qmath.lookups`, at least `bits` and at most `max_bits`.

    `counts` says how often samples read each row, shape (rows,). The mean width is at most `bits` + `spare`. No row
    gains more over those never read than its probability over theirs. Returns int64 of shape (rows,).

    Raises:
        ValueError: As `lookup_probabilities`, for a negative `spare`, and unless 1 <= bits <= max_bits <= 16.

    Example:
        >>> import qmath
        >>> counts = [1000, 30, 1, 1, *[0] * 996]
        >>> qmath.lookup_bits(counts, bits=4)[:6].tolist()
        [8, 8, 8, 8, 4, 4]
    """
    low, high = as_bit_count(bits), as_bit_count(max_bits)
    room = float(as_parameter(spare, "spare", non_negative=True))
    if low > high:
        raise ValueError(f"max_bits: expected at least bits = {low}, found {high}")
    likely = lookup_probabilities(counts)

    def at(level: float) -> NDArray[np.int64]:
        with np.errstate(divide="ignore"):
            more = np.log2(likely / level) / 2
        return np.clip(low + np.rint(np.clip(more, 0, high - low)), low, high).astype(np.int64)

    least = float(likely[likely > 0].min())
    rarest = least if (likely > 0).all() else least / 4  # n_1 = 0: rows never read are rarer than any read
    ends = np.log2([rarest, 4 * float(likely.max())])
    found = at(2.0 ** ends[0])
    if found.mean() <= low + room:
        return found
    for _ in range(_HALVINGS):  # the lowest level with room
        middle = float(ends.mean())
        fits = at(2.0**middle).mean() <= low + room
        ends[int(fits)] = middle
    return at(float(2.0 ** ends[1]))
