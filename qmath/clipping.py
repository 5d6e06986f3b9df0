"""Optimal clipping thresholds under a prior (ACIQ, sections 2 and A.1-A.4), in closed form or by root finding.

Everything is homogeneous: the threshold for a distribution of scale b is b times that of the unit distribution, so one
equation is solved per bit-width, whatever the number of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from qmath._validation import as_bits, as_parameter, check_choice
from qmath.distributions import Gaussian, HasPrior, Laplace, Prior, as_prior
from qmath.error import cell_integrals
from qmath.late import LateModule
from qmath.sample import Floats

special, optimize = LateModule("scipy.special"), LateModule("scipy.optimize")
GridKind = Literal["midrise", "midtread"]


def laplace_clip(
    b: ArrayLike, bits: ArrayLike, *, relu: bool = False, exact: bool = False, grid: GridKind = "midrise"
) -> Floats:
    """Return the clipping threshold of a Laplace distribution that minimises ACIQ's A.9, or A.18 after a ReLU.

    clip* = b W0(3 4^bits), or b W0(12 4^bits) with `relu`, where W0 is the principal branch of Lambert's W function.
    `b` is the scale in the units of x, of any shape that broadcasts with `bits` (integers 1..16); the result is in the
    units of x. With `exact`, the minimiser of the true error instead, for the `grid` named: "midrise" as in the paper,
    or "midtread" as in ONNX (2^bits - 1 symmetric levels; 2^bits levels after a ReLU). Source: ACIQ, Eq. 6, A.10, A.18.

    Raises:
        ValueError: For b <= 0, bits outside 1..16 (2..16 for the symmetric mid-tread grid), or another `grid`.

    Example:
        >>> import qmath
        >>> qmath.laplace_clip(1.0, [2, 3, 4]).round(4).tolist()
        [2.8307, 3.8972, 5.0286]
    """
    scale, bits = as_parameter(b, "b", positive=True), as_bits(bits)
    if exact:
        return scale * _exact_units(Laplace, bits, relu, grid)
    return np.asarray(scale * special.lambertw((12.0 if relu else 3.0) * 4.0**bits).real)


def gauss_clip(
    sigma: ArrayLike, bits: ArrayLike, *, relu: bool = False, exact: bool = False, grid: GridKind = "midrise"
) -> Floats:
    """Return the clipping threshold of a Gaussian distribution that minimises ACIQ's A.13, or A.19 after a ReLU.

    clip* = sigma u, where u is the root of the derivative for U ~ N(0, 1):

        u / (3 4^bits) = 2 E[(U - u)_+]        or u / (12 4^bits) on the left with `relu`

    The last term of A.14 is misprinted as 2u / (3 4^bits). `sigma` is the standard deviation in the units of x, of any
    shape that broadcasts with `bits`; the options are those of `laplace_clip`. Source: ACIQ, A.13, A.14, A.19.

    Raises:
        ValueError: For sigma <= 0, and as `laplace_clip`.

    Example:
        >>> import qmath
        >>> qmath.gauss_clip(1.0, [2, 3, 4]).round(4).tolist()
        [1.7106, 2.1516, 2.5591]
    """
    scale, bits = as_parameter(sigma, "sigma", positive=True), as_bits(bits)
    if exact:
        return scale * _exact_units(Gaussian, bits, relu, grid)
    return np.asarray(scale * _per_bits(lambda m: _gauss_unit(m + 1 if relu else m), bits))


def prior_clip(prior: Prior | HasPrior, bits: ArrayLike, *, exact: bool = False, grid: GridKind = "midrise") -> Floats:
    """Return the optimal clipping threshold of a prior: a distance from prior.loc, or from zero if one-sided.

    Two-sided: `laplace_clip` or `gauss_clip` of its scale, for the range loc - clip..loc + clip. One-sided, for the
    range [0, clip]: the minimiser of E[(X - c)_+^2] + p c^2 / (12 4^bits) with p = P(X > 0), which is A.18 or A.19 for
    loc = 0 and generalises them to any location. The result has the broadcast shape of loc, scale and `bits`, in the
    units of x. Source: ACIQ, sections 2 and A.1-A.4.

    Raises:
        TypeError: For a prior that is none.
        ValueError: For bits outside 1..16, another `grid`, or `exact` with a one-sided prior of loc other than 0.

    Example:
        >>> import qmath
        >>> rectified = qmath.Laplace(1.0, 0.5, one_sided=True)
        >>> round(float(qmath.prior_clip(rectified, 4)), 4)
        3.7024
    """
    prior, bits = as_prior(prior), as_bits(bits)
    relu = prior.one_sided
    if exact and relu and np.any(np.asarray(prior.loc) != 0):
        raise ValueError("exact clips of a one-sided prior need loc = 0: for others, minimise qmath.exact_error")
    if exact or not relu or np.all(np.asarray(prior.loc) == 0):
        solve = laplace_clip if isinstance(prior, Laplace) else gauss_clip
        return solve(prior.scale, bits, relu=relu, exact=exact, grid=grid)
    return prior.scale * _rectified_root(prior, bits)


def _per_bits(solve, bits: np.ndarray) -> Floats:  # type: ignore[no-untyped-def]
    """solve(m) for every distinct bit-width, spread over the array."""
    distinct, where = np.unique(bits, return_inverse=True)
    return np.array([solve(int(m)) for m in distinct])[where].reshape(bits.shape)


@cache
def _gauss_unit(bits: int) -> float:
    """Root of u / (3 4^bits) - 2 E[(U - u)_+], which rises through zero exactly once."""
    return float(_tail_root(Gaussian.unit_tail, np.zeros(1), np.array([1 / (3 * 4.0**bits)]))[0])


def _rectified_root(prior: Prior, bits: np.ndarray) -> Floats:
    """c / scale where p c / (6 4^bits) = 2 E[(Z - c)_+]."""
    centre, slope = np.broadcast_arrays(np.asarray(prior.loc) / prior.scale, prior.positive_mass / (6 * 4.0**bits))
    return _tail_root(prior.unit_tail, centre, slope)


def _tail_root(unit_tail: Callable[..., Any], centre: Floats, slope: Floats) -> Floats:
    """c where slope c = 2 E[(U + centre - c)_+], by Newton's method from zero.

    The difference of the two sides rises and is concave in c, so every tangent lies above it and the iterates climb
    monotonically to the root; after a step of 1e-9 of c the error is of the order of its square.
    """
    c = np.zeros(slope.shape)
    for _ in range(200):
        value = slope * c - 2 * unit_tail(c - centre, 1)
        step = value / (slope + 2 * unit_tail(c - centre, 0))
        c = c - step
        if np.all(np.abs(step) <= 1e-9 * np.abs(c)):
            break
    return np.asarray(c)


def _exact_units(family: type[Prior], bits: np.ndarray, relu: bool, grid: str) -> Floats:
    check_choice(grid, "grid", ("midrise", "midtread"))
    if grid == "midtread" and not relu:
        as_bits(bits, low=2)
    return _per_bits(lambda m: _exact_unit(family, 2 ** (m if relu else m - 1), grid), bits)


@cache
def _exact_unit(family: type[Prior], cells: int, grid: str) -> float:
    """The clip c with the least exact error for the right half of the unit distribution, with `cells` codes there.

    With levels c k_i and thresholds midway between them, only the levels matter to first order, so dE/dc = -2 sum_i k_i
    E[(X - c k_i); cell i]. A scan of its sign finds the minima and brentq sharpens each; from 64 cells on, the error
    has a single minimum, close to that of the approximation.
    """
    prior = family(0.0, 1.0, True)
    shape = (np.arange(cells) + 0.5) / cells if grid == "midrise" else np.arange(cells) / (cells - 1)

    def integrals(c: float, order: Literal[1, 2]) -> Floats:
        return cell_integrals(prior, c * shape, c * (shape[1:] + shape[:-1]) / 2, order=order)

    def slope(c: float) -> float:
        return float(-2 * integrals(c, 1) @ shape)

    near = float((laplace_clip if family is Laplace else gauss_clip)(1.0, max(cells.bit_length() - 1, 1), relu=True))
    scan = near * (np.linspace(0.05, 2.5, 50) if cells < 64 else np.array([0.9, 1.0, 1.1]))
    slopes = np.array([slope(c) for c in scan])
    rises = np.flatnonzero((slopes[:-1] < 0) & (slopes[1:] >= 0))
    roots = [optimize.brentq(slope, scan[i], scan[i + 1], xtol=1e-14, rtol=1e-14) for i in rises]
    return float(min(roots, key=lambda c: integrals(c, 2).sum()))
