"""plan -> plan: one grid per channel for activations, and bits that differ between channels (ACIQ, section 3).

A tensor between convolutions can have a step per channel at no cost where positive factors pass through it: with
r_c > 0, Conv(ReLU(y)) = Conv'(ReLU(y / r)), where the weights before it are divided by r and those after it are
multiplied by r. The division costs nothing, as those weights have a scale per output channel anyway; the multiplication
changes what is rounded. With the full factor, r_c proportional to the channel's range, every channel would use all
codes, but the weights of weak channels would vanish beside those of strong ones. The square root of that factor divides
the loss between the two sides.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output, is_non_negative, node_before
from qgraph.methods.aciq.config import Quota
from qgraph.observe.channel_laws import FAINTEST, ChannelPrior, channel_errors, channel_prior
from qgraph.observe.statistics import Observations
from qgraph.onnxfile.edit import constant
from qgraph.plan import codes as weights
from qgraph.plan.grids import regridded
from qgraph.plan.plan import MAX_BITS, MAX_SHIFTED_BITS, ActivationQuant, LayerQuant, QuantPlan, WeightQuant


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """How activations get a grid per channel.

    `clip`: "aciq" (analytic, from the channel's moments) or "max". `family`: the law of all channels, by default that
    which fits each best. `allocate`: whether channels get bits by the
    2/3-power rule. `deployable`: fold the factors into the weights around the tensor, where that is exact; otherwise
    every operand has its own step per channel, which only a simulation can compute.
    """

    clip: str = "aciq"
    allocate: bool = False
    deployable: bool = True
    family: Literal["laplace", "gaussian"] | None = None


def allocate_weights(plan: QuantPlan, view: GraphView, *, quota: Quota = "bits") -> QuantPlan:
    """Give output channels bits of their own: the least error, in whole bits, within a quota (ACIQ, Eq. 7).

    With the `quota` "bins", sum 2^M_i is what equal widths would have: bins grow with range^(2/3) (Eq. 10), and the
    weight takes at most as many bytes. With "bits", sum M_i is what equal widths would have: the same bytes exactly,
    and bins grow with the range itself. Channels of asymmetric grids get no more bits than integer kernels take without
    a zero point.
    """

    def allocate(layer: LayerQuant) -> LayerQuant:
        grid = layer.weight
        widest = MAX_BITS if grid.symmetric else MAX_SHIFTED_BITS
        if not grid.granularity.per_channel or grid.bits >= widest:
            return layer
        low, high = _channel_ends(view.by_name[layer.name], grid)
        if not (high - low).any():
            return layer
        bits = qmath.allocate_bits(high - low, bits=grid.bits, max_bits=widest, measure=quota)
        return dataclasses.replace(layer, weight=regridded(grid, low, high, channel_bits=tuple(int(b) for b in bits)))

    return plan.map_layers(allocate)


def scale_channels(
    plan: QuantPlan, view: GraphView, observed: Observations, *, config: ChannelConfig | None = None
) -> QuantPlan:
    """Give every non-negative activation below 8 bits a step per channel; notes say which keep one step, and why."""
    chosen = config or ChannelConfig()
    layers = {quant.name for quant in plan.layers}
    grids: dict[str, ActivationQuant] = {}
    notes = []
    for grid in plan.activations:
        if grid.bits == MAX_BITS:
            continue
        readers = [layer for layer in view.layers if layer.name in layers and layer.input is view.values[grid.tensor]]
        why = _obstacle(view.values[grid.tensor], grid, readers, plan, chosen.deployable)
        channels = observed[grid.tensor].channels
        if why or channels is None or not readers or not np.any(channels.max > 0):
            notes += [f"'{grid.tensor}' keeps one step for all channels: {why}"] if why else []
            continue
        grids[f"{grid.tensor}/{grid.role}"] = _channel_grid(grid, observed[grid.tensor], chosen)
    scaled = plan.map_activations(lambda a: grids.get(f"{a.tensor}/{a.role}", a))
    if chosen.deployable:
        scaled = _with_input_scales(scaled, view)
    return dataclasses.replace(scaled, notes=(*plan.notes, *notes))


def _channel_grid(grid: ActivationQuant, statistics: qmath.Statistics, config: ChannelConfig) -> ActivationQuant:
    prior = channel_prior(statistics, family=config.family)
    ranges = _ranges(statistics, prior, grid.bits, config.clip)
    bits = np.full(ranges.size, grid.bits)
    if config.allocate:
        bits = qmath.allocate_bits(ranges, bits=grid.bits, max_bits=MAX_BITS)
        ranges = _ranges(statistics, prior, bits, config.clip)
    steps = ranges / (2.0**bits - 1)
    factors = steps / steps.max()
    if config.deployable:
        factors = np.sqrt(factors)
    factors = factors.astype(np.float32)
    scale = float(np.float32(_best_scale(grid, statistics, prior, factors, bits, steps, config)))
    return dataclasses.replace(
        grid,
        scale=scale,
        channel_scale=tuple(float(f) for f in factors),
        channel_bits=tuple(int(b) for b in bits) if config.allocate else (),
    )


def _ranges(
    statistics: qmath.Statistics, prior: ChannelPrior, bits: int | NDArray[np.int64], clip: str
) -> NDArray[np.float64]:
    highest = np.asarray(statistics.channels.max, np.float64)
    if clip != "max":
        highest = np.minimum(prior.clips(bits), highest)
    return np.maximum(highest, FAINTEST * highest.max())


def _best_scale(
    grid: ActivationQuant,
    statistics: qmath.Statistics,
    prior: ChannelPrior,
    factors: NDArray[np.float32],
    bits: NDArray[np.int64],
    steps: NDArray[np.float64],
    config: ChannelConfig,
) -> float:
    """The common step: the one that spans every channel's range, or the one of least expected error."""
    from scipy import optimize  # takes a while to import

    needed = steps / factors
    if config.clip == "max" or not config.deployable:
        return float(needed.max())
    shaped = dataclasses.replace(grid, channel_scale=tuple(factors.tolist()), channel_bits=tuple(bits.tolist()))

    def loss(log_scale: float) -> float:
        scaled = dataclasses.replace(shaped, scale=float(np.exp(log_scale)))
        return float(channel_errors(scaled, statistics, prior).sum())

    low, high = np.log(needed.min()), np.log(needed.max())
    found = optimize.minimize_scalar(loss, bounds=(low - 1e-3, high + 1e-3), method="bounded")
    return float(np.exp(found.x))


def _with_input_scales(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """Multiply the factors of each tensor into the weights that read it."""
    factors = {grid.tensor: grid.channel_scale for grid in plan.activations if grid.channel_scale}

    def carry(quant: LayerQuant) -> LayerQuant:
        layer = view.by_name[quant.name]
        mine = factors.get(str(layer.input.name))
        if mine is None:
            return quant
        grid = dataclasses.replace(quant.weight, input_scale=mine)
        return dataclasses.replace(quant, weight=regridded(grid, *_channel_ends(layer, grid)))

    return plan.map_layers(carry)


def _channel_ends(layer: Layer, grid: WeightQuant) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The low and high end of every scaled output channel, or of all; symmetric about zero if the grid is."""
    weight = weights.scaled(layer.weight_array(), grid)
    low, high = (grid.granularity.reduce(end, weight).astype(np.float64) for end in (np.minimum, np.maximum))
    limit = np.maximum(-low, high)
    return (-limit, limit) if grid.symmetric else (np.minimum(low, 0.0), np.maximum(high, 0.0))


def _obstacle(value: ir.Value, grid: ActivationQuant, readers: list[Layer], plan: QuantPlan, deployable: bool) -> str:
    """Why a tensor cannot have a step per channel; empty if it can."""
    if grid.zero_point or not is_non_negative(value):
        return "it takes both signs"
    if any(layer.op != "Conv" for layer in readers):
        return "a reader is not a convolution"
    if not deployable:
        return ""
    if any(a.tensor == grid.tensor and a.role != grid.role for a in plan.activations):
        return "nodes other than layers read it too"
    others = {use.node.op_type for use in value.uses()} - {"Conv"}
    if others or value.is_graph_output() or len(list(value.uses())) != len(readers):
        return f"{' and '.join(sorted(others)) or 'another consumer'} reads it too"
    quantized = {quant.name: quant.weight for quant in plan.layers}
    producer = value.producer()
    if producer is not None and producer.op_type == "Clip" and np.any(constant(producer.inputs[1]) != 0):
        return "its Clip does not start at zero, so that positive factors do not pass through it"
    source = node_before(value)
    written = None if source is None or source.op_type != "Conv" else quantized.get(str(source.name))
    if source is None or written is None or fused_output(source.outputs[0]) is not value:
        return "no quantized convolution writes it"
    if written.granularity != qmath.Granularity(axis=0):
        return "the weights before it have no scale per channel"
    return ""
