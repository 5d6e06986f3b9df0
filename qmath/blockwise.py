"""Grids for groups of neighbours in a matrix whose steps are whole multiples of one unit per channel.

A scale for every group of K neighbours follows the weights more closely than one per channel, but a kernel that adds up
integers has one scale per channel. Both hold if the step of a group is a whole multiple of the channel's unit:

    w_k ~ u m_g (c_k - z_g)        c_k in 0..L,  m_g in 1, 2, ...,  L = 2^bits - 1 levels above the lowest           (1)

m_g (c_k - z_g) is a whole number, which a kernel adds up in the units u. A file holds the codes c in few bits, and m_g
and z_g once a group. For a kernel on bytes no number may exceed `most`; then 1 <= m_g <= most / max(z_g, L - z_g).

The search minimises sum_k h_k (w_k - u m_g (c_k - z_g))^2 with weights h. Given u, groups are independent, and for each
of them the steps from the whole range down to half of it are tried, with the zero points that clip both ends about
alike. Given m, z and the codes, the best unit is the projection of the channel on its whole numbers,

    u = sum_k h_k w_k n_k / sum_k h_k n_k^2,        n_k = m_g (c_k - z_g)                                            (2)

and the two steps alternate, as in Lloyd's algorithm (Lloyd, 1982).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_axis, as_bit_count, as_data, as_parameter, check_finite
from qmath.kernels.threads import over_threads

MOST_MULTIPLE = 255
_VALUES = 2**18  # of a block of channels
_ROUNDS = 2
_BLOCK = 128  # columns of one part of the work


@dataclass(frozen=True, slots=True)
class GroupGrids:
    """Units per channel, shape (channels,), and multiples and zero points, shape (groups, channels): Eq. 1.

    `error` is the weighted squared error of every channel, in the squared units of w.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> found = qmath.group_grids(np.array([[1.0], [-1.0], [0.25], [-0.25]]), bits=2, group=2, symmetric=True)
        >>> (found.unit * found.multiple).round(2).tolist()
        [[1.0], [0.25]]
    """

    unit: NDArray[np.float32]
    multiple: NDArray[np.int32]
    zero_point: NDArray[np.int32]
    error: NDArray[np.float64]


def group_grids(
    w: ArrayLike,
    *,
    bits: int,
    group: int,
    axis: int = 0,
    symmetric: bool = False,
    most: int | None = None,
    importance: ArrayLike | None = None,
) -> GroupGrids:
    """Return the grids of Eq. 1 of `qmath.blockwise` with about the least squared error.

    Groups of `group` neighbours run along `axis` of the matrix w, channels along the other; the last group may be
    shorter. Zero points count from the lowest of the 2^bits codes; `symmetric` leaves that code out, and zero is in the
    middle. `most` bounds the whole numbers that a kernel multiplies, such as 127; None bounds the multiples alone, at
    255. `importance` weighs the squared errors along `axis`, shape (w.shape[axis],): the mean square of the input that
    each row is multiplied with makes them errors of the output.

    Raises:
        ValueError: For anything but a matrix, no group, NaN and infinities, bits outside 1..8, and a `most` that leaves
            no multiple.
        TypeError: For anything but real numbers.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> w = np.random.default_rng(0).laplace(size=(256, 8)).astype(np.float32)
        >>> by_group = qmath.group_grids(w, bits=4, group=32, most=64)
        >>> low, high = qmath.weight_range(w, bits=4, axis=1)
        >>> per_channel = qmath.Grid.affine(low, high, bits=4, axis=1)
        >>> bool(by_group.error.sum() < ((w - qmath.fake_quantize(w, per_channel)) ** 2).sum())
        True
    """
    bits = as_bit_count(bits, low=2 if symmetric else 1, high=8)
    matrix = as_data(w, "w")
    check_finite(matrix, "w")
    if matrix.ndim != 2 or group < 1:
        raise ValueError(
            f"expected a matrix and groups of at least 1, found shape {matrix.shape} and groups of {group}"
        )
    levels = 2**bits - 1 - symmetric
    if most is not None and most < levels:
        raise ValueError(f"most: expected at least {levels}, so that codes of {bits} bits fit, found {most}")
    lines = matrix if as_axis(axis, 2) == 0 else matrix.T
    weights = np.ones(len(lines)) if importance is None else as_parameter(importance, "importance", non_negative=True)
    if weights.shape != (len(lines),):
        raise ValueError(f"importance: expected {len(lines)} numbers, found shape {weights.shape}")
    columns = max(_VALUES // max(len(lines), 1), 1)  # channels are independent: few of them are copied at a time
    blocks = [lines[:, first : first + columns] for first in range(0, lines.shape[1], columns)]
    return _joined([_of_block(block, weights, group, levels, symmetric, most) for block in blocks])


def _of_block(
    lines: NDArray[Any], weights: NDArray[Any], group: int, levels: int, symmetric: bool, most: int | None
) -> GroupGrids:
    """The grids of some channels, the columns of `lines`."""
    missing = -len(lines) % group  # zeros, which every grid holds
    x = np.pad(lines.astype(np.float32, copy=False), ((0, missing), (0, 0))).reshape(-1, group, lines.shape[1])
    h = np.pad(weights.astype(np.float32), (0, missing)).reshape(-1, group)
    unit = _first_units(x, levels, symmetric, most)
    best = _at(unit, x, h, levels, symmetric, most)
    for _ in range(_ROUNDS - 1):
        found = _at(_projected(best, x, h, levels), x, h, levels, symmetric, most)
        best = _better(best, found)
    return best


def _joined(parts: list[GroupGrids]) -> GroupGrids:
    return GroupGrids(*(np.concatenate([getattr(p, n) for p in parts], axis=-1) for n in GroupGrids.__slots__))


def _first_units(x: NDArray[np.float32], levels: int, symmetric: bool, most: int | None) -> NDArray[np.float32]:
    """Units at which the widest group of each channel takes the largest multiple."""
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    limit = np.maximum(high, -low).max(axis=0)
    span = 2 * limit if symmetric else (high - low).max(axis=0)
    unit = limit / most if most is not None else span / (levels * MOST_MULTIPLE)
    tiny = float(np.finfo(np.float32).tiny) * 2
    return np.asarray(np.where(limit > 0, np.maximum(unit, tiny), 1), np.float32)


def _at(unit: NDArray[np.float32], x: NDArray[np.float32], h: NDArray[np.float32], *form: Any) -> GroupGrids:
    """The best multiples and zero points for these units."""
    levels, symmetric, most = form
    shape = len(x), x.shape[2]
    multiple, zero, error = np.ones(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    limit = most or levels * MOST_MULTIPLE

    def fill(start: int, stop: int) -> None:
        from qmath.kernels import blockwise as kernels

        for first, g in product(range(start, stop), range(len(x))):
            part = slice(first * _BLOCK, min((first + 1) * _BLOCK, shape[1]))
            block, kept = np.ascontiguousarray(x[g, :, part]), (multiple[g, part], zero[g, part], error[g, part])
            kernels.search(block, h[g], unit[part], levels, symmetric, limit, MOST_MULTIPLE, *kept)

    over_threads(fill, -(-shape[1] // _BLOCK), 4)
    return GroupGrids(unit=unit, multiple=multiple, zero_point=zero, error=error.sum(axis=0, dtype=np.float64))


def _projected(found: GroupGrids, x: NDArray[np.float32], h: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """The units of Eq. 2."""
    from qmath.kernels import blockwise as kernels

    products, squares = np.zeros(x.shape[2]), np.zeros(x.shape[2])
    kernels.moments(0, x.shape[2], x, h, found.multiple, found.zero_point, found.unit, levels, products, squares)
    better = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0).astype(np.float32)
    return np.where(better > np.finfo(np.float32).tiny, better, found.unit)


def _better(one: GroupGrids, other: GroupGrids) -> GroupGrids:
    """For each channel the grids with the smaller error."""
    take = other.error < one.error
    pairs = ((getattr(one, name), getattr(other, name)) for name in GroupGrids.__slots__)
    return GroupGrids(*(np.where(take, new, old) for old, new in pairs))
