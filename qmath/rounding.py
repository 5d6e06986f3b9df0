"""Q-Rater's rounding: to nearest, after a shift that depends on the sign and the rounded magnitude of a value.

With v = x / scale clipped to the codes, w_r = floor(v + 0.5) and gamma_n in [-1, 1],

    code = clamp(floor(v + 0.5 + f_r))                                     Eq. 3, 5
    f_r = 0.5 sign(v gamma_n) |gamma_n|^|w_r|                              Eq. 4, 1st order
    f_r = 0.5 sign(v gamma_n (gamma_s h - |w_r|)) |gamma_n|^E              Eq. 6, 2nd order

where h = 2^(bits-1) is the number of magnitudes of a signed grid and beta = h / 2. Eq. 6 prints the exponent as E =
||w_r| - gamma_s h - beta|. The text and Figure 5, where the distortion grows with the distance from gamma_s h, call for
E = |||w_r| - gamma_s h| - beta|, which is the default here. The paper's grids are signed; on an unsigned one h =
2^bits, so that gamma_s spans every magnitude there too. Clamping keeps gamma_n = 1 from leaving the grid.

The equations are followed to the letter, including at ties, where floor is not symmetric in the sign. Clipped values
are such ties where |f_r| is 0.5 at the last magnitude (gamma_n = 1, or an exponent of 0) and points inwards: positive
ones keep the last code, negative ones move one code inwards.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_bit_count, as_parameter, check_choice
from qmath.staircase import RoundingTable, magnitudes

Exponent = Literal["distance", "printed"]
"""Reading of Eq. 6's exponent: `distance` is |||w_r| - gamma_s h| - beta|, `printed` is ||w_r| - gamma_s h - beta|."""

_SMALLEST = float(np.finfo(np.float64).smallest_subnormal)


def rounding_offset(
    v: ArrayLike,
    gamma_n: ArrayLike,
    gamma_s: ArrayLike | None = None,
    *,
    bits: int,
    signed: bool = True,
    exponent: Exponent = "distance",
) -> NDArray[np.float64]:
    """Return Q-Rater's shift before rounding, f_r in [-0.5, 0.5]: Eq. 4, or Eq. 6 when `gamma_s` is given.

    f_r = 0.5 sign(v gamma_n) |gamma_n|^|w_r|, or 0.5 sign(v gamma_n (gamma_s h - |w_r|)) |gamma_n|^E, in steps of the
    grid; see `qmath.rounding` for h and E. `v` is x / scale clipped to the codes; `v`, `gamma_n` in [-1, 1] and
    `gamma_s` in [0, 1] broadcast. The shift is 0 (rounding to nearest) where `gamma_n` or `v` is 0 and, in Eq. 6, where
    |w_r| = gamma_s h. Source: Q-Rater (Kim et al. 2021), Eq. 4 and 6.

    Raises:
        ValueError: For parameters outside their range, or values that are not finite.

    Example:
        >>> import qmath
        >>> qmath.rounding_offset([-1.3, 0.4, 2.2], 0.5, bits=4).tolist()
        [-0.25, 0.5, 0.125]
    """
    half = magnitudes(as_bit_count(bits, low=2 if signed else 1), signed)
    check_choice(exponent, "exponent", get_args(Exponent))
    v = as_parameter(v, "v")
    strength = _within(gamma_n, "gamma_n", -1.0)
    magnitude = np.abs(np.floor(v + 0.5))
    if gamma_s is None:
        return 0.5 * np.sign(v) * np.sign(strength) * np.abs(strength) ** magnitude
    beyond = magnitude - _within(gamma_s, "gamma_s", 0.0) * half
    distance = np.abs(beyond) if exponent == "distance" else beyond
    sign = np.sign(v) * np.sign(strength) * np.sign(-beyond)
    return 0.5 * sign * np.abs(strength) ** np.abs(distance - half / 2)


def rounding_table(
    gamma_n: float,
    gamma_s: float | None = None,
    *,
    bits: int,
    signed: bool = True,
    exponent: Exponent = "distance",
) -> RoundingTable:
    """Return Q-Rater's rounding as a staircase: Eq. 3 and 4, or Eq. 5 and 6 when `gamma_s` is given.

    The staircase is exact, edges included. `gamma_n` = 0 gives rounding to nearest with ties upwards, whatever
    `gamma_s`. The parameters are the scalars of `rounding_offset`. Source: Q-Rater (Kim et al. 2021), section 4.

    Raises:
        ValueError: For parameters outside their range, or that are not scalars.

    Example:
        >>> import qmath
        >>> table = qmath.rounding_table(-0.5, bits=3)
        >>> table.edges.tolist(), table.codes.tolist()
        ([-2.5625, -1.625, -0.75, 0.75, 1.625, 2.5625], [-3, -2, -1, 0, 1, 2, 3])
    """
    largest = magnitudes(as_bit_count(bits, low=2 if signed else 1), signed) - 1
    above = np.arange(1, largest + 1)
    rounded = np.concatenate([-above[::-1], [0, 0, 0], above]) if signed else np.concatenate([[0, 0], above])
    inside = rounded.astype(np.float64)  # one value of every cell: cell 0 is split by sign
    zero = largest + 1 if signed else 0
    inside[zero + 1] = 0.25
    starts = rounded - 0.5
    starts[zero], starts[zero + 1] = 0.0, _SMALLEST
    if signed:
        inside[zero - 1] = -0.25
        starts[0] = -largest  # values are clipped to the codes first
    _check_scalars(gamma_n, gamma_s)
    shift = rounding_offset(inside, gamma_n, gamma_s, bits=bits, signed=signed, exponent=exponent)
    lower = rounded - (shift < 0)  # floor(v + 0.5 + shift) is `lower` below the break of the cell, one more above
    breaks = np.where(shift < 0, rounded - 0.5 - shift, rounded + 0.5 - shift)
    ends = np.append(starts[1:], np.nextafter(largest, np.inf))
    edges = np.concatenate([starts, np.clip(breaks, starts, ends)])
    codes = np.clip(np.concatenate([lower, lower + 1]), -largest if signed else 0, largest)
    return _staircase(edges, codes, ends, bits=bits, signed=signed)


def _staircase(
    edges: NDArray[np.float64], codes: NDArray[np.int64], ends: NDArray[np.float64], *, bits: int, signed: bool
) -> RoundingTable:
    """Join two pieces per cell into steps of different codes; a second piece that starts at the cell's end is empty."""
    cells = ends.size
    kept = np.concatenate([edges[:cells] < edges[cells:], edges[cells:] < ends])
    edges, codes = edges[kept], codes[kept]
    order = np.argsort(edges)
    edges, codes = edges[order], codes[order]
    changes = np.flatnonzero(np.diff(codes)) + 1
    return RoundingTable(bits=bits, signed=signed, edges=edges[changes], codes=codes[np.append(0, changes)])


def _within(value: ArrayLike, name: str, low: float) -> NDArray[np.float64]:
    array = as_parameter(value, name)
    if ((array < low) | (array > 1)).any():
        raise ValueError(f"{name}: expected numbers from {low:g} to 1, found {array}")
    return array


def _check_scalars(*values: float | None) -> None:
    for value in values:
        if np.ndim(value):  # type: ignore[arg-type]
            raise ValueError(f"gamma_n, gamma_s: expected scalars, found shape {np.shape(value)}")  # type: ignore[arg-type]
