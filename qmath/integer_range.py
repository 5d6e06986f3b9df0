"""Interval arithmetic on the sums that integer kernels add up: what no input can exceed.

A layer computes sum_k x_k w_k in 32 bits from codes x_k of its operand and w_k of its weight, both less their zero
points. With x_k anywhere in [low, high], each product lies between x w at the two ends, so that

    sum_k min(0, w_k low, w_k high)  <=  any sum over some of the k  <=  sum_k max(0, w_k low, w_k high)

Sums over some of the k are what padding leaves. Both ends are attained by some input, so the interval cannot be made
smaller without knowing more about the inputs. What stays within 32 bits is right on every processor in whatever order
it is added, because integers wrap; where two products are first added in 16 bits, which saturate, the pairs count too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_data, check_finite

INT16, INT32 = (-(2**15), 2**15 - 1), (-(2**31), 2**31 - 1)
EXACT_IN_FLOAT = (-(2**24), 2**24)
"""Whole numbers that float32 represents exactly, so that rescaling them rounds once."""

Range = tuple[NDArray[np.int64], NDArray[np.int64]]


def sum_range(weights: ArrayLike, low: int, high: int, *, bias: ArrayLike = 0) -> Range:
    """The least and greatest sum of each row of `weights` with operands from `low` to `high`.

    Args:
        weights: whole numbers, outputs x products, less their zero point.
        low, high: the range of the operand, less its zero point.
        bias: added to each sum: a number, or one for each output.

    Returns:
        Two arrays of int64, one number for each row.

    Raises:
        ValueError: the range is empty, or `weights` are not whole numbers in two dimensions.

    Example:
        >>> import numpy as np
        >>> from qmath import sum_range
        >>> least, greatest = sum_range(np.array([[3, -2, 1]]), 0, 255, bias=10)
        >>> least.tolist(), greatest.tolist()
        ([-500], [1030])
    """
    below, above = _products(weights, low, high)
    return below.sum(axis=1) + np.asarray(bias, np.int64), above.sum(axis=1) + np.asarray(bias, np.int64)


def pair_range(weights: ArrayLike, low: int, high: int) -> Range:
    """The least and greatest sum of two neighbouring products, k = 0 and 1, 2 and 3, ..., of each row of `weights`.

    x86-64 without VNNI adds such pairs in 16 bits, which saturate. Arguments, results and errors as in `sum_range`; an
    odd last product stands alone.

    Example:
        >>> import numpy as np
        >>> from qmath import pair_range
        >>> least, greatest = pair_range(np.array([[100, 100, -128, 127]]), 0, 255)
        >>> least.tolist(), greatest.tolist()
        ([-32640], [51000])
    """
    found = []
    for products in _products(weights, low, high):
        padded = np.pad(products, ((0, 0), (0, products.shape[1] % 2)))
        found.append(padded[:, ::2] + padded[:, 1::2])
    return found[0].min(axis=1, initial=0), found[1].max(axis=1, initial=0)


def within(found: Range, limits: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each range keeps to `limits`, both included."""
    return (found[0] >= limits[0]) & (found[1] <= limits[1])


def _products(weights: ArrayLike, low: int, high: int) -> Range:
    rows = as_data(weights, "weights")
    check_finite(rows, "weights")
    if rows.ndim != 2 or (rows != np.rint(rows)).any():
        raise ValueError(f"weights: expected whole numbers of shape (outputs, products), found shape {rows.shape}")
    if low > high:
        raise ValueError(f"the operand ranges from {low} to {high}: low must not exceed high")
    ends = rows.astype(np.int64) * np.array([low, high], np.int64).reshape(2, 1, 1)
    return np.minimum(ends.min(axis=0), 0), np.maximum(ends.max(axis=0), 0)
