"""Rescaling of codes between grids: when the order of float32 operations cannot change the result.

The sum of two codes on grids a and b, written on grid y, is

    v = (s_a (a - z_a) + s_b (b - z_b)) / s_y + z_y,    code = clip(round(v))                                        (1)

Kernels compute v in float32 in different orders, with or without fused products, so that v carries an error of a few
units in its last place. The code differs only where v lies that close to a rounding threshold n + 1/2. There are 65,536
pairs of codes: `add_margin` visits all of them in float64.

Margins can be had by choice. Let all steps be whole multiples of a unit, P_a, P_b and P_y units, with P_y odd. Then

    2 (P_a A + P_b B) = P_y (2 n + 1)

has no solution, because the left side is even and the right side odd; no sum is closer to a threshold than 1 / (2 P_y),
and `odd_steps` makes such steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_parameter

_ROUNDINGS = 6 * 2.0**-24  # of every intermediate result: ratio, product, sum, fixed part


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How close results come to a rounding threshold, and how far float32 may move them; both in codes.

    Example:
        >>> import qmath
        >>> qmath.Margin(distance=0.01, error=1e-5).holds, qmath.Margin(distance=0.0, error=1e-5).holds
        (True, False)
    """

    distance: float
    error: float

    @property
    def holds(self) -> bool:
        """Whether every order of evaluation in float32 gives the same codes."""
        return self.error < self.distance


def add_margin(
    a: tuple[float, int], b: tuple[float, int], y: tuple[float, int], *, highest: tuple[int, int] = (255, 255)
) -> Margin:
    """The margin of adding codes, Eq. 1 of the module, over all pairs of uint8 codes.

    Args:
        a, b, y: scale and zero point of both operands and of the result.
        highest: the highest code of either operand.

    Raises:
        ValueError: a scale that is not a positive number.

    Example:
        >>> import qmath
        >>> qmath.add_margin((0.5, 0), (0.25, 0), (0.75, 0)).holds  # 2/3 a + 1/3 b is never n + 1/2
        True
        >>> qmath.add_margin((0.5, 0), (0.25, 0), (0.5, 0)).holds  # b / 2 often is
        False
    """
    scale = as_parameter([a[0], b[0], y[0]], "scales", positive=True)
    first, second = (
        (np.arange(top + 1) - zero) * (step / scale[2])
        for top, zero, step in zip(highest, (a[1], b[1]), scale[:2], strict=True)
    )
    fixed = (a[1] * scale[0] + b[1] * scale[1]) / scale[2] + y[1]
    largest = float(np.abs(first).max() + np.abs(second).max() + fixed)
    return _margin(first[:, None] + second + y[1], largest)


def odd_steps(scale: ArrayLike, unit: float) -> NDArray[np.float64]:
    """Each scale rounded up to an odd number of units.

    Example:
        >>> import qmath
        >>> qmath.odd_steps([0.9, 5.0, 5.1], 1.0).tolist()
        [1.0, 5.0, 7.0]
    """
    units = np.ceil(as_parameter(scale, "scale", positive=True) / float(as_parameter(unit, "unit", positive=True)))
    return np.asarray((units + (units % 2 == 0)) * unit)


def short_steps(scale: ArrayLike, bits: ArrayLike) -> NDArray[np.float64]:
    """Each scale rounded up to a number of at most `bits` significant bits: at most 2^(1 - bits) larger.

    Products of such numbers are exact in float32 as long as their bits add up to 24.

    Example:
        >>> import qmath
        >>> qmath.short_steps([1.01, 3.0], 4).tolist()
        [1.125, 3.0]
    """
    mantissa, exponent = np.frexp(as_parameter(scale, "scale", positive=True))
    ones = 2.0 ** np.asarray(bits)
    return np.asarray(np.ldexp(np.ceil(mantissa * ones) / ones, exponent))


def significant_bits(scale: ArrayLike) -> NDArray[np.int64]:
    """How many significant bits each number has, without trailing zeros.

    Example:
        >>> import qmath
        >>> qmath.significant_bits([1.0, 0.75, 5.0]).tolist()
        [1, 2, 3]
    """
    whole = np.ldexp(np.frexp(as_parameter(scale, "scale", positive=True))[0], 53).astype(np.int64)
    return np.asarray(53 - np.log2((whole & -whole).astype(np.float64)).astype(np.int64))


def _margin(values: NDArray[np.float64], largest: float) -> Margin:
    inside = values[(values > -1) & (values < 256)]  # all others are cut off, whatever their error
    distance = np.abs(inside - np.floor(inside) - 0.5).min(initial=0.5)
    return Margin(distance=float(distance), error=_ROUNDINGS * max(largest, 1.0))
