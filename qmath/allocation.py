"""Bits per channel under a quota of quantization bins: the 2/3-power rule and the integer optimum (ACIQ, section 3)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_parameter, check_choice
from qmath.pareto import knapsack
from qmath.sample import Floats

Measure = Literal["bins", "bits"]


def optimal_bins(
    alpha: ArrayLike, *, bits: float | None = None, quota: float | None = None, weights: ArrayLike | None = None
) -> Floats:
    """Return the optimal real-valued number of bins per channel, by ACIQ's 2/3-power rule.

    B_i = quota alpha_i^(2/3) / sum_j w_j alpha_j^(2/3), the minimiser of sum_i w_i alpha_i^2 / (3 B_i^2) subject to
    sum_i w_i B_i = quota, for channels with range [-alpha, alpha]. `alpha` has shape (channels,), in the units of x.
    The quota is given in bins, or as `bits`, which stands for sum_i w_i 2^bits. `weights` are the sizes of the
    channels, 1 by default. Returns shape (channels,). Source: ACIQ, Eq. 10, A.26.

    Raises:
        ValueError: For negative or all-zero ranges, sizes that are not positive, or unless exactly one of `bits` and
            `quota` is given.

    Example:
        >>> import qmath
        >>> qmath.optimal_bins([1.0, 8.0], bits=4).round(4).tolist()
        [6.4, 25.6]
    """
    ranges, sizes = _checked(alpha, weights)
    share = ranges ** (2 / 3)
    return np.asarray(share * (_quota(sizes, bits, quota, "bins") / float(sizes @ share)))


def allocate_bits_rounded(
    alpha: ArrayLike,
    *,
    bits: float | None = None,
    quota: float | None = None,
    min_bits: int = 2,
    max_bits: int = 8,
    weights: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Return the bits per channel of the 2/3-power rule, rounded: M_i = round(log2 B_i), within [min_bits, max_bits].

    B_i are the `optimal_bins`. Rounding breaks the quota in either direction; `allocate_bits` keeps it. Arguments as
    for `optimal_bins`; returns int64 of shape (channels,). Source: ACIQ, Eq. 11 as its text reads.

    Raises:
        ValueError: As `optimal_bins`, and unless 1 <= min_bits <= max_bits <= 16.

    Example:
        >>> import qmath
        >>> qmath.allocate_bits_rounded([0.5, 1.0, 8.0], bits=4).tolist()
        [2, 3, 5]
    """
    _check_limits(min_bits, max_bits)
    bins = optimal_bins(alpha, bits=bits, quota=quota, weights=weights)
    with np.errstate(divide="ignore"):
        exact = np.log2(bins)
    return np.clip(np.floor(exact + 0.5), min_bits, max_bits).astype(np.int64)


def allocate_bits(
    alpha: ArrayLike,
    *,
    bits: float | None = None,
    quota: float | None = None,
    min_bits: int = 2,
    max_bits: int = 8,
    weights: ArrayLike | None = None,
    measure: Measure = "bins",
) -> NDArray[np.int64]:
    """Return the integer bits per channel with the least squared error within the quota: the exact optimum.

    M_i in [min_bits, max_bits] minimise sum_i w_i alpha_i^2 / (3 4^M_i). With `measure` "bins" (the paper's) the quota
    bounds sum_i w_i 2^M_i; with "bits" it bounds sum_i w_i M_i, the memory. It is given as such, or through `bits`, the
    width that every channel would have. Without weights and with an integer for `bits`, the quota of bins is met with
    equality; otherwise what is left is less than any channel could use. Arguments as for `optimal_bins`; returns int64
    of shape (channels,).

    Without weights: in bins, every upgrade M -> M + 1 costs 2^M and gains 3/4 alpha^2 4^-M, and since the costs divide
    each other, pairing items from the smallest cost up is optimal; in bits, all upgrades cost the same and the largest
    gains win. With weights: `qmath.knapsack`. Source: ACIQ, section 3, solved in integers.

    Raises:
        ValueError: As `allocate_bits_rounded`, and for a quota below min_bits everywhere.

    Example:
        >>> import qmath
        >>> qmath.allocate_bits([0.5, 1.0, 8.0], bits=4).tolist()
        [3, 3, 5]
    """
    _check_limits(min_bits, max_bits)
    ranges, sizes = _checked(alpha, weights)
    check_choice(measure, "measure", ("bins", "bits"))
    total = _quota(sizes, bits, quota, measure)
    widths = np.arange(min_bits, max_bits + 1)
    spent = 2.0**widths if measure == "bins" else widths.astype(np.float64)
    least = float(sizes.sum() * spent[0])
    if total < least * (1 - 1e-12):
        raise ValueError(
            f"a quota of {total:g} {measure} does not hold {min_bits} bits everywhere, which takes {least:g}"
        )
    errors = ranges[:, None] ** 2 / (3 * 4.0**widths)
    if weights is not None:
        chosen = knapsack(sizes[:, None] * errors, sizes[:, None] * spent, total).choices
        return np.asarray(min_bits + chosen)
    gains = errors[:, :-1] - errors[:, 1:]
    spare = total - least + 1e-9 * least
    if measure == "bits":
        taken = np.argsort(-gains, axis=None, kind="stable")[: int(spare)]
        upgrades = np.bincount(taken // max(gains.shape[1], 1), minlength=ranges.size)
    else:
        upgrades = _fill_divisible(gains, int(spare / 2.0**min_bits))
    return np.asarray(min_bits + upgrades, dtype=np.int64)


def _fill_divisible(gains: Floats, capacity: int) -> NDArray[np.int64]:
    """Upgrades per channel of the best set whose costs, 2^j for column j, add up to at most `capacity`.

    From the smallest cost up: an odd unit of capacity can serve only one item of this cost, the best; all others are
    paired, best with next best, into items of the next cost. Gains fall along a row while costs rise, so no optimum
    skips an upgrade.
    """
    upgrades = np.zeros(gains.shape[0], np.int64)
    items: list[tuple[float, Any]] = []
    taken: list[Any] = []
    for column in range(gains.shape[1]):
        items += [(float(gain), channel) for channel, gain in enumerate(gains[:, column])]
        items.sort(key=lambda item: -item[0])
        if column == gains.shape[1] - 1:
            taken += [node for _, node in items[:capacity]]
            break
        if capacity % 2 and items:
            taken.append(items.pop(0)[1])
        capacity //= 2
        items = [_paired(items[i : i + 2]) for i in range(0, len(items), 2)]
    while taken:
        node = taken.pop()
        if isinstance(node, tuple):
            taken += node
        else:
            upgrades[node] += 1
    return upgrades


def _paired(items: list[tuple[float, Any]]) -> tuple[float, Any]:
    """One item of twice the cost, made of two (or of a last single one)."""
    return sum(gain for gain, _ in items), tuple(node for _, node in items)


def _checked(alpha: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    ranges = as_parameter(alpha, "alpha")
    if ranges.ndim != 1 or np.any(ranges < 0) or not ranges.any():
        raise ValueError(f"alpha needs one non-negative range per channel, not all zero; found shape {ranges.shape}")
    sizes = np.ones(ranges.size) if weights is None else as_parameter(weights, "weights")
    if sizes.shape != ranges.shape or np.any(sizes <= 0):
        raise ValueError(f"weights needs one positive size for each of {ranges.size} channels, found {sizes.shape}")
    return ranges, sizes


def _check_limits(min_bits: int, max_bits: int) -> None:
    if not 1 <= min_bits <= max_bits <= 16:
        raise ValueError(f"1 <= min_bits <= max_bits <= 16 expected, found {min_bits} and {max_bits}")


def _quota(sizes: Floats, bits: float | None, quota: float | None, measure: str) -> float:
    if bits is not None and quota is None:
        quota = float(sizes.sum()) * (2.0**bits if measure == "bins" else bits)
    elif bits is not None or quota is None:
        raise ValueError("give exactly one of bits (the mean width) and quota (the total)")
    if not (np.isfinite(quota) and quota > 0):
        raise ValueError(f"the quota must be finite and positive, found {quota}")
    return float(quota)
