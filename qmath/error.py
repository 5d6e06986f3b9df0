"""Expected squared error of a clipped uniform quantizer under a prior: the papers' closed forms, and the exact value.

Two grids appear, and each function says which one it uses:

* mid-rise (ACIQ): 2^bits cells of equal width over [-clip, clip], each represented by its midpoint; zero is no level.
* mid-tread (ONNX): levels at integer multiples of a step, zero among them; symmetric: 2^bits - 1 levels from -clip to
  clip; after a ReLU: 2^bits levels from 0 to clip.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from qmath._validation import as_bit_count, as_bits, as_parameter
from qmath.distributions import HasPrior, Prior, as_prior
from qmath.sample import Floats

_NARROW = 0.25  # cells narrower than this many scales are integrated by quadrature: the closed forms would cancel
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


def expected_error(prior: Prior | HasPrior, clip: ArrayLike, bits: ArrayLike, *, relu: bool = False) -> Floats:
    """Return ACIQ's approximate mean squared error of clipping at `clip` and rounding on the mid-rise grid.

    Two-sided, with clip measured from prior.loc: 2 E[(X - loc - clip)_+^2] + clip^2 / (3 4^bits), which is A.9 for
    Laplace (2 b^2 exp(-clip/b) + ...) and A.13 for the Gaussian. With `relu`, or a one-sided prior, clip is measured
    from zero: E[(X - clip)_+^2] + P(X > 0) clip^2 / (12 4^bits), which for loc = 0 is A.18 and A.19.

    Two approximations: the density is flat within each cell, and a clipped value is represented by the clip itself
    rather than by the last midpoint. At 2 bits the error at the optimum comes out 40-47% low; `exact_error` makes
    neither. `clip`, `bits` and the prior's parameters broadcast; the result is in the squared units of x. Source: ACIQ,
    A.9, A.13, A.18, A.19.

    It is the error of the prior, not of the data that the prior was fitted to: `PriorFit.error_ratio` compares the two.
    `prior` may also be a fit.

    Raises:
        TypeError: For a prior that is none.
        ValueError: For a clip that is not positive, or bits outside 1..16.

    Example:
        >>> import qmath
        >>> prior = qmath.Laplace()
        >>> round(float(qmath.expected_error(prior, qmath.laplace_clip(1.0, 4), 4)), 4)
        0.046
    """
    prior, clip, bits = as_prior(prior), as_parameter(clip, "clip", positive=True), as_bits(bits)
    loc, scale = np.asarray(prior.loc), np.asarray(prior.scale)
    cells = 4.0**bits
    if relu or prior.one_sided:
        tail = scale**2 * prior.unit_tail((clip - loc) / scale, 2)
        return np.asarray(tail + prior.positive_mass * clip**2 / (12 * cells))
    return np.asarray(2 * scale**2 * prior.unit_tail(clip / scale, 2) + clip**2 / (3 * cells))


def midrise_levels(clip: float, bits: int, *, relu: bool = False) -> Floats:
    """Return the 2^bits midpoints of ACIQ's grid over [-clip, clip], or [0, clip] with `relu`.

    Level i is clip ((2 i + 1) / 2^bits - 1), or clip (i + 1/2) / 2^bits with `relu`. Shape (2^bits,), in the units of
    `clip`. Source: ACIQ, Eq. 2 and A.16.

    Raises:
        ValueError: For a clip that is not positive, or bits outside 1..16.

    Example:
        >>> import qmath
        >>> qmath.midrise_levels(1.0, 2).tolist()
        [-0.75, -0.25, 0.25, 0.75]
    """
    cells = 2 ** as_bit_count(bits)
    middle = (np.arange(cells) + 0.5) / cells
    return np.asarray(float(as_parameter(clip, "clip", positive=True)) * (middle if relu else 2 * middle - 1))


def midtread_levels(clip: float, bits: int, *, relu: bool = False) -> Floats:
    """Return the levels of the ONNX grid: 2^bits - 1 from -clip to clip, or 2^bits from 0 to clip with `relu`.

    Level k is k clip / (2^(bits-1) - 1), or k clip / (2^bits - 1) with `relu`. Shape (levels,), in the units of `clip`.

    Raises:
        ValueError: For a clip that is not positive, or bits outside 2..16 (1..16 with `relu`).

    Example:
        >>> import qmath
        >>> qmath.midtread_levels(1.5, 2).tolist()
        [-1.5, 0.0, 1.5]
    """
    top = 2 ** (as_bit_count(bits, low=1 if relu else 2) - (0 if relu else 1)) - 1
    return np.asarray(float(as_parameter(clip, "clip", positive=True)) / top * np.arange(0 if relu else -top, top + 1))


def exact_error(prior: Prior | HasPrior, levels: ArrayLike, *, thresholds: ArrayLike | None = None) -> Floats:
    """Return E[(X - Q(X))^2] under the prior without approximation, for any scalar quantizer.

    Q(x) is `levels[i]` for x between `thresholds[i-1]` and `thresholds[i]`; without thresholds, the nearest level.
    Every cell is integrated through the prior's partial moments (ACIQ, Eq. 3 without its approximations); cells
    narrower than a quarter of the scale by 10-point Gauss-Legendre quadrature, accurate to rounding there. The atom at
    zero of a one-sided prior counts with its own error.

    `levels` ascend, shape (n,); `thresholds` never fall, shape (n - 1,). The result has the broadcast shape of
    prior.loc and prior.scale, in the squared units of x.

    Raises:
        TypeError: For a prior that is none.
        ValueError: For levels or thresholds of another shape or order.

    Example:
        >>> import qmath
        >>> levels = qmath.midtread_levels(float(qmath.laplace_clip(1.0, 4)), 4)
        >>> round(float(qmath.exact_error(qmath.Laplace(), levels)), 4)
        0.0552
    """
    prior, q = as_prior(prior), as_parameter(levels, "levels").ravel()
    t = (q[1:] + q[:-1]) / 2 if thresholds is None else np.asarray(thresholds, dtype=np.float64).ravel()
    if np.any(np.diff(q) <= 0):
        raise ValueError("levels must be strictly ascending")
    if t.shape != (q.size - 1,) or np.any(np.isnan(t)) or np.any(np.diff(t) < 0):
        raise ValueError(f"{q.size} levels need {q.size - 1} non-decreasing thresholds, found {t.size}")
    loc, scale = np.broadcast_arrays(np.asarray(prior.loc), np.asarray(prior.scale))
    error = cell_integrals(prior, q, t, order=2).sum(axis=-1)
    if prior.one_sided:
        at_zero = q[np.searchsorted(t, 0.0)]
        error = error + at_zero**2 * prior.unit_tail(loc / scale, 0)
    return np.asarray(error)


def cell_integrals(prior: Prior, q: Floats, t: Floats, *, order: Literal[1, 2]) -> Floats:
    """Integral of (x - q_i)^order f(x) over each cell [t_{i-1}, t_i], along the last axis.

    For a one-sided prior only the part above zero counts.
    """
    loc, scale = np.broadcast_arrays(np.asarray(prior.loc), np.asarray(prior.scale))
    floor = 0.0 if prior.one_sided else -np.inf
    ends = np.maximum(np.concatenate(([floor], t, [np.inf])), floor)
    u = (ends - loc[..., None]) / scale[..., None]
    level = (q - loc[..., None]) / scale[..., None]
    low, high = u[..., :-1], u[..., 1:]
    right = _right_side(prior, np.maximum(low, 0), np.maximum(high, 0), level, order)
    left = _right_side(prior, np.maximum(-high, 0), np.maximum(-low, 0), -level, order)
    return np.asarray((right + (left if order == 2 else -left)) * scale[..., None] ** order)


def _right_side(prior: Prior, low: Floats, high: Floats, q: Floats, order: Literal[1, 2]) -> Floats:
    """The same integral for the unit distribution over 0 <= low <= high."""
    wide = high - low > _NARROW
    result = np.where(wide, 1.0, 0.0)
    result[wide] = _above(prior, low[wide], q[wide], order) - _above(prior, high[wide], q[wide], order)
    narrow = ~wide & (high > low)
    middle, half = (high[narrow] + low[narrow]) / 2, (high[narrow] - low[narrow]) / 2
    x = middle[:, None] + half[:, None] * _NODES
    values = (x - q[narrow][:, None]) ** order * prior.unit_pdf(x)
    result[narrow] = half * (values @ _WEIGHTS)
    return result


def _above(prior: Prior, t: Floats, q: Floats, order: Literal[1, 2]) -> Floats:
    """Integral of (x - q)^order f(x) from t to infinity, in powers of (x - t)."""
    reach = np.where(np.isfinite(t), t, 0.0)
    gap = reach - q
    mass, first = prior.unit_tail(reach, 0), prior.unit_tail(reach, 1)
    value = first + gap * mass
    if order == 2:
        value = prior.unit_tail(reach, 2) + 2 * gap * first + gap * gap * mass
    return np.where(np.isfinite(t), value, 0.0)
