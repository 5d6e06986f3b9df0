"""Rounding under a limit on the sums of neighbours, for processors that add products in pairs.

x86-64 without VNNI adds two products of a uint8 and an int8 in 16 bits, which saturate. Codes a, b of neighbouring
weights are safe with operands up to q if

    max(a, 0) + max(b, 0) <= L    and    max(-a, 0) + max(-b, 0) <= L,    L = floor(32767 / q)                (1)

Only pairs that break (1) need to move. The closest pair to (x, y) that keeps it, weighted by what the errors cost,

    minimise  u (a - x)^2 + v (b - y)^2   subject to  a + b = L                                                      (2)

has a = x - t v / (u + v) and b = y - t u / (u + v) with t = x + y - L > 0: the excess is shared in inverse proportion
to the weights u, v. On whole numbers, the best a is one of the two next to it, as (2) is a parabola along the line.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_data, as_parameter, check_finite


def round_pairs(
    weights: ArrayLike, limit: int, *, importance: ArrayLike = 1.0, highest: int = 127
) -> NDArray[np.int64]:
    """Round to whole numbers no two of which, side by side, add up to more than `limit` with the same sign.

    Args:
        weights: outputs x products, in steps; neighbours are the products 0 and 1, 2 and 3, ...
        limit: L of Eq. 1.
        importance: what a squared error costs, any shape that broadcasts: of a layer, the variance of each operand.
        highest: the largest magnitude of a code.

    Returns:
        Codes of the same shape: those of rounding to nearest, half to even, but for pairs that would break Eq. 1.

    Raises:
        ValueError: `weights` are not finite or have no two dimensions, or the limit is not positive.

    Example:
        >>> import qmath
        >>> qmath.round_pairs([[100.2, 60.0, 30.0, -127.0]], 128).tolist()
        [[84, 44, 30, -127]]
        >>> qmath.round_pairs([[100.2, 60.0, 30.0, -127.0]], 128, importance=[[9.0, 1.0, 1.0, 1.0]]).tolist()
        [[97, 31, 30, -127]]
    """
    given = as_data(weights, "weights").astype(np.float64)
    check_finite(given, "weights")
    if given.ndim != 2 or limit < 1:
        raise ValueError(f"expected weights in two dimensions and a positive limit, found {given.shape} and {limit}")
    codes = np.clip(np.rint(given), -highest, highest)
    even = given.shape[1] // 2 * 2  # an odd last product stands alone, and keeps the limit if `highest` does
    pairs = codes[:, :even].reshape(len(codes), -1, 2)
    cost = np.broadcast_to(as_parameter(importance, "importance", positive=True), given.shape)
    over = (np.abs(pairs.sum(axis=2)) > limit) & (pairs[..., 0] * pairs[..., 1] > 0)
    if over.any():
        exact = given[:, :even].reshape(pairs.shape)[over]
        pairs[over] = _on_the_line(exact, cost[:, :even].reshape(pairs.shape)[over], limit, highest)
        codes[:, :even] = pairs.reshape(len(codes), even)
    return np.clip(codes, -limit, limit).astype(np.int64)


def _on_the_line(
    pairs: NDArray[np.float64], cost: NDArray[np.float64], limit: int, highest: int
) -> NDArray[np.float64]:
    """The whole numbers with |a + b| = limit and equal signs that are closest to each pair (Eq. 2)."""
    sign = np.sign(pairs[:, :1])
    exact = np.abs(pairs)
    excess = exact.sum(axis=1) - limit
    first = exact[:, 0] - excess * cost[:, 1] / cost.sum(axis=1)
    lowest = max(limit - highest, 0)
    best, error = np.empty_like(exact), np.full(len(exact), np.inf)
    for shift in (0, 1):
        a = np.clip(np.floor(first) + shift, lowest, min(limit, highest))
        both = np.stack([a, limit - a], axis=1)
        theirs = (cost * (both - exact) ** 2).sum(axis=1)
        better = theirs < error
        best[better], error[better] = both[better], theirs[better]
    return best * sign
