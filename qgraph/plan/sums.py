"""plan -> plan: weight scales at which every bias fits the accumulator; layers without such a scale run in floats.

An integer kernel adds a bias b as a whole number of accumulator steps, in 32 bits:

    step = s_x s_w gain / finer        code of the bias: round(b / step)

Where the weights of a channel are almost zero (pruned, or switched off by BatchNormalization), the step is tiny and the
code overflows; onnxruntime, which rounds the biases of convolutions itself, does not check. Such a channel gets the
scale at which its bias has 2^30 steps; what its weights lose is less than float32 resolves in the bias. For a channel
whose weights are all zero, any scale will do: it gets one at which its bias is exact to 20 bits. A step also has to be
a normal number, or kernels flush it to zero; a layer whose steps are all smaller runs in floats.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.onnxfile.edit import constant
from qgraph.plan import codes
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, WeightQuant

MOST_STEPS = 2.0**30  # of a bias; as many are left for the products
_EXACT_STEPS = 2.0**20  # of the bias of a channel whose weights are all zero
_SMALLEST_STEP = 2.0**-120


def with_room_for_biases(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """The plan with a wider weight scale for every channel whose bias would overflow the accumulator."""
    grids = plan.operand_grids

    def widen(quant: LayerQuant) -> LayerQuant:
        layer = view.by_name[quant.name]
        operand = nearest(layer.input, grids)
        integer = operand is not None and _adds_integers(layer, quant)
        return _widened(layer, quant, operand) if integer else quant  # type: ignore[arg-type]

    return plan.map_layers(widen)


def with_shared_weights(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """The plan with one grid for all layers that read the same weight, so that files hold it once.

    Applies where the grids differ only in width or scale, and takes the most bits and the largest scale.
    """
    groups: dict[ir.Value, list[LayerQuant]] = {}
    for quant in plan.layers:
        groups.setdefault(view.by_name[quant.name].weight, []).append(quant)
    shared = {quant.name: _shared(group, quant) for group in groups.values() for quant in group}
    return plan.map_layers(lambda quant: dataclasses.replace(quant, weight=shared[quant.name]))


def _shared(group: list[LayerQuant], quant: LayerQuant) -> WeightQuant:
    """The grid of one of the layers that read a weight; what runs in floats takes that of integer kernels."""
    firm = [one.weight for one in group if one.runs != "floats"] or [one.weight for one in group]
    common = _common(firm) or (firm[0] if len(set(firm)) == 1 else None)
    plain = common is not None and common.bits >= quant.weight.bits and not common.input_scale
    return common if common is not None and plain else quant.weight


def _common(grids: list[WeightQuant]) -> WeightQuant | None:
    """The grid that can replace all of these; None where they differ in more than width and scale."""
    bits = max(grid.bits for grid in grids)
    widest = [grid for grid in grids if grid.bits == bits]
    one = widest[0]
    special = any(
        grid.channel_bits or grid.granularity.group is not None or grid.input_scale or grid.rounding or grid.codes
        for grid in grids
    )
    shapes = {(len(grid.scale), grid.granularity) for grid in grids}
    if len(set(grids)) == 1 or special or len(shapes) > 1 or any(replace(g, scale=one.scale) != one for g in widest):
        return None
    return replace(one, scale=tuple(max(scales) for scales in zip(*(g.scale for g in widest), strict=True)))


def bias_fits(layer: Layer, quant: LayerQuant, operand: ActivationQuant) -> bool:
    """Whether the bias of a layer, including its shift, fits the 32-bit accumulator of an integer kernel."""
    if not _adds_integers(layer, quant):
        return True
    step = codes.accumulator_scale(quant.weight, operand).astype(np.float64)
    return bool((np.rint(_total_bias(layer, quant) / step) < 2 * MOST_STEPS).all())


def _adds_integers(layer: Layer, quant: LayerQuant) -> bool:
    """Whether the layer may run on an integer kernel that adds a bias; none exists for groups without units."""
    grid = quant.weight
    return layer.has_integer_kernel and quant.runs == "integers" and (grid.granularity.group is None or bool(grid.unit))


def _widened(layer: Layer, quant: LayerQuant, operand: ActivationQuant) -> LayerQuant:
    grid = quant.weight
    step = float(operand.scale) * codes.kernel_scale(grid).astype(np.float64)
    if step.max() < _SMALLEST_STEP:
        return dataclasses.replace(quant, runs="floats")
    bias = _total_bias(layer, quant)
    if len(step) == 1:
        bias = bias.max(initial=0, keepdims=True)
    needed = np.maximum(bias / MOST_STEPS, _SMALLEST_STEP)
    chosen = np.where(_without_weights(layer, len(step)) & (bias > 0), bias / _EXACT_STEPS, np.maximum(step, needed))
    if np.array_equal(chosen, step):
        return quant
    return dataclasses.replace(quant, weight=_times(grid, chosen / step))


def _times(grid: WeightQuant, factors: NDArray[np.float64]) -> WeightQuant:
    """The grid with the scale of every channel times a factor, rounded up where that is above 1."""
    scale = (np.asarray(grid.unit or grid.scale) * factors).astype(np.float32)
    scale = np.atleast_1d(np.where(factors > 1, np.nextafter(scale, np.float32(np.inf)), scale))
    wider = tuple(float(s) for s in scale)
    if not grid.unit:
        return dataclasses.replace(grid, scale=wider, codes="")
    steps = (grid.multiples * np.expand_dims(scale, 1 - (grid.channel_axis or 0))).astype(np.float32)
    return dataclasses.replace(grid, scale=tuple(float(s) for s in steps.ravel()), unit=wider, codes="")


def _total_bias(layer: Layer, quant: LayerQuant) -> NDArray[np.float64]:
    """The magnitude of the total bias of every output channel; a single zero if there is none."""
    bias = constant(layer.bias)
    if layer.op == "MatMul":
        return np.zeros(1)
    total = np.zeros((1, layer.weight_array().shape[layer.output_axis]))
    if bias is not None:
        total = total + np.atleast_2d(bias.astype(np.float64) * layer.bias_factor)
    if quant.bias_shift:
        total = total + np.asarray(quant.bias_shift)
    return np.asarray(np.abs(total).max(axis=0))


def _without_weights(layer: Layer, scales: int) -> NDArray[np.bool_]:
    """Which channels have only zero weights; one answer for the whole tensor if it has one scale."""
    weight = layer.weight_array()
    if scales == 1:
        return np.array([not weight.any()])
    return np.asarray(~weight.any(axis=tuple(i for i in range(weight.ndim) if i != layer.scale_axis)))
