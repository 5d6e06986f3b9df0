"""The distribution of each channel of an activation, from its moments, and the error of a grid per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.plan.plan import ActivationQuant

FAINTEST = 2.0**-8  # range taken for a channel that never fires, relative to the strongest


def channel_errors(
    grid: ActivationQuant, statistics: qmath.Statistics, prior: ChannelPrior | None = None
) -> NDArray[np.float64]:
    """Expected squared error of every channel of a grid with a step per channel, from its moments (ACIQ, A.18, A.19).

    A channel that never reached the end of its grid has rounding error only. Values that a Clip holds at its bound are
    not part of the distribution: if there are many, the error is overestimated.
    """
    step = grid.scale * np.asarray(grid.channel_scale)
    bits = np.asarray(grid.channel_bits or grid.bits)
    prior = prior or channel_prior(statistics)
    rounding = step**2 / 12 * np.where(prior.heavy, prior.laplace.positive_mass, prior.gaussian.positive_mass)
    reached = statistics.channels.max > step * (2.0**bits - 0.5)
    return np.where(reached, prior.errors(step * 2.0**bits, bits), rounding)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ChannelPrior:
    """The rectified distribution of every channel: Gaussian, or Laplace where `heavy`."""

    laplace: qmath.Prior
    gaussian: qmath.Prior
    heavy: NDArray[np.bool_]

    def clips(self, bits: int | NDArray[np.int64]) -> NDArray[np.float64]:
        """The optimal range of every channel."""
        return np.where(self.heavy, *(qmath.prior_clip(prior, bits) for prior in (self.laplace, self.gaussian)))

    def errors(self, clip: NDArray[np.float64], bits: NDArray[np.int64]) -> NDArray[np.float64]:
        both = (qmath.expected_error(prior, clip, bits) for prior in (self.laplace, self.gaussian))
        return np.where(self.heavy, *both)


def channel_prior(
    statistics: qmath.Statistics,
    *,
    floor: float = 0.0,
    faintest: float = FAINTEST,
    family: Literal["laplace", "gaussian"] | None = None,
) -> ChannelPrior:
    """Distributions with each channel's mean and variance, of the `family` or that whose expected maximum fits best.

    Of n values, one is expected above the largest: n P(X > max) = 1. The family of the whole tensor would mislead: a
    mixture of Gaussians of many widths has the tails of a Laplace distribution. The distributions are those of X -
    `floor`. For channels whose mean is below `faintest` times the tensor's, that value is taken.
    """
    channels = statistics.channels
    if channels is None:
        raise ValueError("statistics per channel are needed")
    mean = np.maximum(channels.mean - floor, faintest * max(statistics.mean - floor, 1e-30))
    second = np.maximum(np.square(channels.mean - floor) + channels.variance, mean**2)
    laplace, gaussian = (qmath.rectified_prior(family, mean, second) for family in (qmath.Laplace, qmath.Gaussian))
    if family is not None:
        return ChannelPrior(laplace=laplace, gaussian=gaussian, heavy=np.full(mean.shape, family == "laplace"))
    beyond = [
        np.log(np.maximum(channels.count * prior.sf(channels.max - floor), 1e-300)) for prior in (laplace, gaussian)
    ]
    return ChannelPrior(laplace=laplace, gaussian=gaussian, heavy=np.abs(beyond[0]) < np.abs(beyond[1]))
