"""plan -> plan: initialise the scales and offsets to learn (LSQ+, section 3.2)."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.graph.sites import GraphView
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.configurations import configuration_of
from qgraph.observe.statistics import Observations
from qgraph.plan.plan import MAX_BITS, ActivationQuant, LayerQuant, QuantPlan


def initialise(
    plan: QuantPlan, view: GraphView, observed: Observations | None, *, config: LsqPlusConfig | None = None
) -> QuantPlan:
    """Set grids below 8 bits from the weights and the observed activations; 8-bit grids keep their full range.

    `minmax` spans the range (Eq. 7); `lsq` is 2 mean|v| / sqrt(p); `lsqplus` is mu +- 3 sigma for weights and least
    squared error for activations (Eq. 8); `plan` leaves the plan as it is. Weights use all signed codes of Table 1,
    -2^(b-1)..2^(b-1)-1.
    """
    chosen = config or LsqPlusConfig()
    if chosen.initialisation == "plan":
        return plan
    plan = plan.map_layers(lambda quant: _layer(quant, view, chosen))
    if observed is None:
        return plan
    return plan.map_activations(lambda grid: _activation(grid, view, observed, chosen))


def _layer(quant: LayerQuant, view: GraphView, config: LsqPlusConfig) -> LayerQuant:
    grid = quant.weight
    if grid.bits == MAX_BITS:
        return quant
    rows = grid.granularity.rows(view.by_name[quant.name].weight_array().astype(np.float64))
    rows = np.where(np.abs(rows).max(axis=1, keepdims=True) > 0, rows, 1.0)  # zeros fit any scale
    scale: NDArray[np.float64]
    if config.initialisation == "minmax":
        scale, _ = qmath.minmax_parameters(rows.min(axis=1), rows.max(axis=1), bits=grid.bits, configuration=2)
    elif config.initialisation == "lsq":
        scale = qmath.lsq_scale(rows, bits=grid.bits, configuration=2, axis=0)
    else:
        scale = qmath.lsqplus_weight_scale(rows, bits=grid.bits, axis=0)
    scales = tuple(float(s) for s in scale.astype(np.float32))
    fresh = dataclasses.replace(grid, scale=scales, zero_point=(0,), gain=(1.0,), symmetric=False)
    return dataclasses.replace(quant, weight=fresh, bias_shift=())


def _activation(
    grid: ActivationQuant, view: GraphView, observed: Observations, config: LsqPlusConfig
) -> ActivationQuant:
    statistics = observed[grid.tensor]
    if grid.bits == MAX_BITS or not statistics.count or statistics.min == statistics.max:
        return grid
    configuration = configuration_of(view.values[grid.tensor], grid.bits, config.configuration, linear=config.linear)
    lowest = qmath.lsq_configuration(configuration).code_range(grid.bits)[0]
    held = float(statistics.min) if config.offsets == "minimum" and configuration in (3, 4) else None
    scale, offset = _parameters(statistics, grid.bits, configuration, config.initialisation, held)
    if held is not None:
        offset = held - lowest * scale
    return dataclasses.replace(
        grid, scale=float(np.float32(scale)), zero_point=-lowest, offset=float(np.float32(offset))
    )


def _parameters(
    statistics: qmath.Statistics, bits: int, configuration: int, method: str, held: float | None
) -> tuple[float, float]:
    """(scale, offset) by one of the three initialisations; `held` is a fixed lowest level."""
    if method == "minmax":
        scale, offset = qmath.minmax_parameters(statistics.min, statistics.max, bits=bits, configuration=configuration)
        return float(scale), float(offset)
    histogram = statistics.histogram
    if histogram is None:
        raise ValueError("the initialisations 'lsq' and 'lsqplus' need histograms")
    if method == "lsq":
        mean = float((histogram.counts * np.abs(histogram.centers)).sum() / histogram.total)
        p = qmath.lsq_configuration(configuration).code_range(bits)[1]
        return 2.0 * mean / np.sqrt(p), 0.0
    return qmath.mse_parameters(histogram, bits=bits, configuration=configuration, low=held)
