"""Statistics of a clipped random variable in closed form: what a ReLU or ReLU6 makes of a normalised layer.

y = min(max(z, low), high) for z = loc + scale U per channel. With u = (z - low)_+ and v = (z - high)_+, y = low + u - v
and u v = v^2 + (high - low) v. So, with the tail moments T_k(t) = E[(z - t)_+^k] (`Prior.unit_tail`):

    E[y] - low     = T_1(low) - T_1(high)
    E[(y - low)^2] = T_2(low) - T_2(high) - 2 (high - low) T_1(high)

Distributions without an end get one `reach` standard deviations from their location, as samples have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.distributions import Prior
from qmath.histogram import BINS, MIN_EXPONENT, Histogram, check_bins
from qmath.sample import Floats
from qmath.statistics import Statistics

_CHANNELS = 64  # whose distribution functions are held at once


def clipped_statistics(
    prior: Prior,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    reach: ArrayLike = 6.0,
    count: int = 1 << 20,
    bins: int = BINS,
) -> Statistics:
    """Return the statistics that values of `prior`, clipped to low..high, are expected to have.

    Args:
        prior: the distribution before the clip, with `loc` and `scale` (units of x) of shape (channels,).
        low: the lower bound, 0 for a ReLU; in the units of x.
        high: the upper bound, 6 for a ReLU6; in the units of x.
        reach: where the samples end, in units of `scale` from `loc`; one number or one per channel.
        count: the number of values per channel that the result is to stand for.
        bins: of the histogram over all channels, a power of two from 4 to 65536; 0 for none.

    Returns:
        The statistics of all values, with those of every channel as `channels`.

    Raises:
        ValueError: Unless low <= high, reach > 0, and count > 0.

    Example:
        >>> import qmath
        >>> relu = qmath.clipped_statistics(qmath.Gaussian([0.0, 1.0], [1.0, 0.5]), low=0.0)
        >>> relu.channels.mean.round(4).tolist(), relu.max
        ([0.3989, 1.0042], 6.0)
    """
    loc, scale = (np.atleast_1d(np.asarray(a, np.float64)) for a in np.broadcast_arrays(prior.loc, prior.scale))
    far = np.asarray(reach, np.float64)
    if not (low <= high and (far > 0).all() and count > 0):
        raise ValueError(f"expected low <= high, reach > 0 and count > 0, found {low}..{high}, {far}, {count}")
    start, end = np.clip(loc - far * scale, low, high), np.clip(loc + far * scale, low, high)
    mean, variance = _moments(prior, loc, scale, start, end)
    positive = _moments(prior, loc, scale, np.maximum(start, 0.0), np.maximum(end, 0.0))[0]
    channels = Statistics(count=count, min=start, max=end, mean=mean, variance=variance, mean_abs=2 * positive - mean)
    whole = {"min": float(start.min()), "max": float(end.max()), "mean": float(mean.mean())}
    return Statistics(
        count=count * loc.size,
        **whole,
        variance=float(variance.mean() + mean.var()),
        mean_abs=float(channels.mean_abs.mean()),
        histogram=_histogram(prior, loc, scale, start, end, count, bins) if bins else None,
        channels=channels,
    )


def _moments(prior: Prior, loc: Floats, scale: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The mean and variance of the values clipped to low..high."""
    first = [scale * prior.unit_tail((end - loc) / scale, 1) for end in (low, high)]
    second = [scale**2 * prior.unit_tail((end - loc) / scale, 2) for end in (low, high)]
    above = first[0] - first[1]
    square = second[0] - second[1] - 2 * (high - low) * first[1]
    return low + above, np.maximum(square - above**2, 0.0)


def _histogram(prior: Prior, loc: Floats, scale: Floats, low: Floats, high: Floats, count: int, bins: int) -> Histogram:
    """Expected counts over all channels, rounded so that they sum up to all values."""
    check_bins(bins)
    largest = float(max(np.abs(low).max(), np.abs(high).max()))
    exponent = max(int(np.frexp(largest)[1]), MIN_EXPONENT)
    edges = np.ldexp(np.arange(-(bins // 2), bins // 2 + 1) * (2.0 / bins), exponent)
    below = np.zeros(edges.size)
    for i in range(0, loc.size, _CHANNELS):
        part = slice(i, i + _CHANNELS)
        below += _below(prior, edges, *(a[part, None] for a in (loc, scale, low, high))).sum(axis=0)
    counts: NDArray[Any] = np.diff(np.rint(count * below)).astype(np.int64)
    return Histogram(counts=counts, exponent=exponent)


def _below(prior: Prior, edges: Floats, loc: Floats, scale: Floats, low: Floats, high: Floats) -> Floats:
    """The share of values in the bins below every edge; a value at an edge is in the bin away from zero."""
    inside = prior.unit_tail((loc - edges) / scale, 0)
    none = np.where(edges < 0, edges < low, edges <= low)
    every = np.where(edges < 0, edges >= high, edges > high)
    return np.where(every, 1.0, np.where(none, 0.0, inside))
