"""plan -> plan: clip activations and weights by any clip method of qmath."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.observe.statistics import Observations
from qgraph.plan import codes as weights
from qgraph.plan.grids import activation_grid, regridded, weight_ends
from qgraph.plan.grouped import regrouped
from qgraph.plan.plan import MAX_BITS, ActivationQuant, LayerQuant, QuantPlan, WeightQuant
from qgraph.running.sessions import in_parallel
from qgraph.running.wording import option

PRIOR_TOLERANCE = 10**0.025  # 0.25 dB: networks lose accuracy beyond this
MAX_ENERGY_LOSS = 0.5  # share of a tensor's energy that a clip may cut before it is reported


class CalibrationWarning(UserWarning):
    """A clip method cuts off most of a tensor's energy; the message names the tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """The range chosen for one tensor, and the method that chose it."""

    low: float
    high: float
    method: str


def clip_activations(
    plan: QuantPlan, view: GraphView, observed: Observations, *, method: str, **options: Any
) -> QuantPlan:
    """Clip every activation to the range that `method` chooses from the tensor's histogram.

    Tensors that the graph guarantees to be non-negative are only clipped from above. Warns for every tensor of which a
    clip cuts more than half of the energy. `options` are those of the method, such as `percentile` of "percentile".
    """
    asked = [a for a in plan.activations if _has_spread(observed[a.tensor])]
    one_sided = [view.non_negative.get(a.tensor, False) or bool(observed[a.tensor].min >= 0) for a in asked]
    histograms = [observed[a.tensor].histogram for a in asked]
    bits = [a.bits for a in asked]
    found = clip_ranges(histograms, method=method, bits=bits, one_sided=one_sided, **options)
    ranges = dict(zip(asked, found, strict=True))

    def clip(activation: ActivationQuant) -> ActivationQuant:
        statistics, chosen = observed[activation.tensor], ranges.get(activation)
        if chosen is None:
            return activation
        low, high = chosen.low, chosen.high
        if chosen.method != "mse":  # the best step of "mse" may end beyond the data
            low, high = max(low, float(statistics.min)), min(high, float(statistics.max))
        _warn_of_loss(statistics, chosen, activation.tensor)
        return activation_grid(activation.tensor, low, high, bits=activation.bits, role=activation.role)

    return plan.map_activations(clip)


def clip_ranges(
    histograms: Sequence[qmath.Histogram],
    *,
    method: str,
    bits: Sequence[int],
    one_sided: Sequence[bool],
    **options: Any,
) -> list[Clipped]:
    """The range that a method chooses for each histogram.

    Where ACIQ's prior is rejected, the range of least squared error takes its place. That is where the prior's range
    makes an error more than 0.25 dB above the least possible on the histogram. It is common at 8 bits: the optimum then
    lies far in the tails, where Laplace and Gaussian laws fit worst.
    """

    def choose(index: int, method: str, **options: Any) -> Clipped:
        shape = {"bits": bits[index], "one_sided": one_sided[index]}
        found = qmath.clip_range(histograms[index], method=method, **shape, **options)
        return Clipped(low=found.low, high=found.high, method=method)

    if method != "aciq" or options or not histograms:
        return list(in_parallel(lambda index: choose(index, method, **options), range(len(histograms))))
    prior = qmath.prior_ranges(histograms, bits=bits, one_sided=one_sided)
    ends = zip(prior.low.tolist(), prior.high.tolist(), strict=True)
    chosen = [Clipped(low=low, high=high, method=method) for low, high in ends]
    rejected = np.flatnonzero(_fails(prior)).tolist()
    for index, exact in zip(rejected, in_parallel(lambda index: choose(index, "mse"), rejected), strict=True):
        chosen[index] = exact
    return chosen


def prior_rejected(statistics: qmath.Statistics, *, bits: int, non_negative: bool = False) -> bool:
    """Whether the error of ACIQ's clip at `bits` is more than 0.25 dB above the least possible on the histogram."""
    if not _has_spread(statistics):
        return False
    one_sided = non_negative or bool(statistics.min >= 0)
    prior = qmath.prior_ranges([statistics.histogram], bits=bits, one_sided=one_sided)
    return bool(_fails(prior)[0])


def rejected_priors(view: GraphView, observed: Observations, grids: Sequence[ActivationQuant]) -> dict[str, bool]:
    """`prior_rejected` for the tensor of every grid at its bits, by name; tensors without a histogram are left out."""
    asked = [grid for grid in grids if grid.tensor in observed.tensors and _has_spread(observed[grid.tensor])]
    if not asked:
        return {}
    prior = qmath.prior_ranges(
        [histogram for grid in asked if (histogram := observed[grid.tensor].histogram) is not None],
        bits=[grid.bits for grid in asked],
        one_sided=[view.non_negative.get(grid.tensor, False) or observed[grid.tensor].min >= 0 for grid in asked],
    )
    return {grid.tensor: bool(failed) for grid, failed in zip(asked, _fails(prior), strict=True)}


def _fails(prior: qmath.PriorRanges) -> NDArray[np.bool_]:
    return ~(prior.error <= PRIOR_TOLERANCE * prior.least)


def _has_spread(statistics: qmath.Statistics) -> bool:
    return bool(statistics.count and statistics.histogram is not None and statistics.min < statistics.max)


def _warn_of_loss(statistics: qmath.Statistics, chosen: Clipped, tensor: str) -> None:
    histogram = statistics.histogram
    if histogram is None:
        return
    beyond = histogram.centers - np.clip(histogram.centers, chosen.low, chosen.high)
    lost = (histogram.counts * beyond**2).sum() / (histogram.counts * histogram.centers**2).sum()
    if lost > MAX_ENERGY_LOSS:
        warnings.warn(
            f"clip method '{chosen.method}' cuts {lost:.0%} of the energy of '{tensor}' ({statistics.min:.4g}.."
            f"{statistics.max:.4g} becomes {chosen.low:.4g}..{chosen.high:.4g}); try {option('clip', 'mse')}",
            CalibrationWarning,
            stacklevel=4,
        )


def clip_weights(
    plan: QuantPlan, view: GraphView, *, method: str, observed: Observations | None = None, **options: Any
) -> QuantPlan:
    """Clip weights below 8 bits to the ranges that `method` chooses, one per scale of the grid.

    Both ends are chosen unless the grid is symmetric. At 8 bits, steps are too fine for clipping to pay, and grids keep
    the full range (which ACIQ does for all weights). Grids of groups have the least squared error as they are; where
    the inputs were observed, the error is weighted by their mean squares. `options` are those of the method.
    """

    def clip(layer: LayerQuant) -> LayerQuant:
        grid = layer.weight
        if min(grid.widths) == MAX_BITS:
            return layer
        weight = weights.scaled(view.by_name[layer.name].weight_array(), grid)
        if grid.unit:
            importance = _mean_squares(view.by_name[layer.name], grid, observed)
            return (
                layer if importance is None else dataclasses.replace(layer, weight=regrouped(weight, grid, importance))
            )
        return dataclasses.replace(layer, weight=regridded(grid, *weight_ends(weight, grid, method, **options)))

    return plan.map_layers(clip)


def _mean_squares(layer: Layer, grid: WeightQuant, observed: Observations | None) -> NDArray[np.float64] | None:
    """The mean square of every input that the layer multiplies, divided by its factor where it has one."""
    channels = None if observed is None or layer.weight_only else observed.operand(layer).channels
    if channels is None or not np.size(channels.mean):
        return None
    factors = np.asarray(grid.input_scale or 1.0, np.float64)
    squares = np.square(channels.mean) + channels.variance
    return np.divide(squares, factors**2, out=np.zeros_like(squares), where=factors > 0)
