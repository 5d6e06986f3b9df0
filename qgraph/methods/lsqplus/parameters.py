"""(network, plan) -> the parameters to train."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from itertools import accumulate

import numpy as np

import qmath
from qgraph.errors import UsageError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import is_non_negative, nearest
from qgraph.lowering.places import shift_bias
from qgraph.methods.lsqplus.batch_norm import EPSILON
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.configurations import configuration_of, offset_kind
from qgraph.methods.lsqplus.equalise import equalise
from qgraph.methods.lsqplus.trained import Kind, Slot, Trained, TrainedGrid
from qgraph.methods.lsqplus.weight_quantizer import Floats, WeightGrid
from qgraph.onnxfile.edit import add_initializer, constant
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.plan.grids import weight_ends
from qgraph.plan.plan import MAX_BITS, ActivationQuant, LayerQuant, QuantPlan
from qgraph.running.wording import option


def absorb(net: Model, plan: QuantPlan, config: LsqPlusConfig, batch_norms: Collection[str] = ()) -> Trained:
    """Everything that `plan` quantizes, as parameters: weights with their `gain`, biases with their `bias_shift`.

    The activation grids that layers read are trained. Other 8-bit grids between layers, such as those of sums, are left
    out and measured again after training; so are 8-bit inputs, whose range is known.

    `batch_norms` are tensors: the convolutions that write them get a BatchNormalization, at first without effect (see
    `batch_norm`).

    Rounding schemes are dropped: weights start at the values of their codes, which rounding to nearest keeps. Steps per
    channel of activations move into weights (`equalise`). Weights with zero points start on the symmetric grid of least
    squared error.
    """
    net, plan = equalise(net, plan)
    net = _with_biases(net, plan)
    view = GraphView(net)
    layers = [_plain(quant, view.by_name[quant.name]) for quant in plan.layers]
    read: dict[tuple[str, str], list[Layer]] = {}
    grids = _read_grids(view, plan, read)
    trained = QuantPlan(
        model=net.digest, recipe="lsqplus", layers=tuple(q for q, _ in layers), activations=tuple(grids)
    )
    described = [_trained_grid(view, grid, read[grid.tensor, grid.role], config) for grid in grids]
    parts: list[tuple[str, Kind, Floats, float, float]] = []
    for quant, weight in layers:
        layer = view.by_name[quant.name]
        parts += _layer_parts(quant, weight, layer, normalised=str(layer.output.name) in batch_norms)
    for grid, made in zip(grids, described, strict=True):
        parts += _grid_parts(view, grid, made)
    stops = list(accumulate(int(array.size) for _, _, array, _, _ in parts))
    slots = {
        name: Slot(name=name, kind=kind, start=stop - array.size, shape=array.shape, unit=unit, factor=factor)
        for (name, kind, array, unit, factor), stop in zip(parts, stops, strict=True)
    }
    return Trained(
        net=net,
        plan=trained,
        grids=tuple(described),
        weights={q.name: WeightGrid(quant=q.weight) for q, _ in layers},
        slots=slots,
        start=np.concatenate([array.reshape(-1) for _, _, array, _, _ in parts]).astype(np.float32),
    )


def _with_biases(net: Model, plan: QuantPlan) -> Model:
    """The network with `bias_shift` added to its biases, and a bias for every layer that can have one."""
    copy = net.ir_model.clone()
    view = GraphView(dataclasses.replace(net, ir_model=copy))
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        if quant.bias_shift:
            shift_bias(copy.graph, layer, np.asarray(quant.bias_shift, np.float64))
        elif layer.op != "MatMul" and layer.bias is None:
            if len(layer.node.inputs) < 3:
                layer.node.resize_inputs(3)
            zeros = np.zeros(layer.output_channels, np.float32)
            layer.node.replace_input_with(2, add_initializer(copy.graph, f"{layer.name}/bias", zeros))
    return normalise(dataclasses.replace(net, ir_model=copy, digest=""))


def _plain(quant: LayerQuant, layer: Layer) -> tuple[LayerQuant, Floats]:
    """The layer's grid and weight with the gain moved into the scale: the same codes, the same values."""
    grid = quant.weight
    weight = layer.weight_array()
    if any(grid.zero_point):
        around_zero = dataclasses.replace(grid, zero_point=(0,), gain=(1.0,), symmetric=True, codes="")
        half = 2.0 ** (np.asarray(grid.widths) - 1) - 1
        scales = weight_ends(weight, around_zero, "mse")[1] / half
        grid = dataclasses.replace(around_zero, scale=tuple(float(s) for s in scales.astype(np.float32)))
    if grid.rounding is not None or (grid.codes and not any(grid.zero_point)):
        weight = weights.quantized(weight, dataclasses.replace(grid, gain=(1.0,)))
    gain = np.broadcast_to(np.asarray(grid.gain), len(grid.scale))
    scale = tuple(float(s) for s in (np.asarray(grid.scale) * gain).astype(np.float32))
    plain = dataclasses.replace(grid, scale=scale, gain=(1.0,), rounding=None, codes="")
    return dataclasses.replace(quant, weight=plain, bias_shift=()), (
        weight * grid.granularity.lay(gain, weight.shape)
    ).astype(np.float32)


def _read_grids(view: GraphView, plan: QuantPlan, read: dict[tuple[str, str], list[Layer]]) -> list[ActivationQuant]:
    """The grids that the plan's layers read; fills `read` with the layers that read each."""
    grids = plan.operand_grids
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        grid = nearest(layer.input, grids)
        if grid is not None and not (grid.bits == MAX_BITS and view.values[grid.tensor].is_graph_input()):
            read.setdefault((grid.tensor, grid.role), []).append(layer)
    chosen = [a for a in plan.activations if (a.tensor, a.role) in read]
    return [dataclasses.replace(a, rounding=None, symmetric=False) for a in chosen]


def _trained_grid(view: GraphView, grid: ActivationQuant, readers: list[Layer], config: LsqPlusConfig) -> TrainedGrid:
    value = view.values[grid.tensor]
    configuration = configuration_of(value, grid.bits, config.configuration, linear=config.linear)
    offset = offset_kind(value, configuration, readers, alone=grid.role == "operand")
    base = -qmath.lsq_configuration(configuration).code_range(grid.bits)[0]
    return TrainedGrid(
        tensor=grid.tensor,
        role=grid.role,
        bits=grid.bits,
        zero_point=grid.zero_point if offset == "none" else base,
        offset=offset,
        learned_offset=config.offsets == "learned",
        non_negative=offset == "none" and grid.zero_point == 0 and is_non_negative(value),
    )


def _layer_parts(
    quant: LayerQuant, weight: Floats, layer: Layer, *, normalised: bool
) -> list[tuple[str, Kind, Floats, float, float]]:
    """(name, kind, start, unit, factor) of a layer's weight, its scales, and its bias or normalisation."""
    scale = np.asarray(quant.weight.scale, np.float32)
    spread = rms(weight)
    factor = qmath.lsq_gradient_scale(weight.size // scale.size, bits=quant.weight.bits, configuration=2)
    parts: list[tuple[str, Kind, Floats, float, float]] = [
        (f"weight:{quant.name}", "weight", weight, spread, 1.0),
        (f"weight_scale:{quant.name}", "weight_scale", scale, float(scale.mean()), factor),
    ]
    bias = constant(layer.bias)
    if normalised and layer.op == "Conv" and not layer.output.is_graph_output():
        if scale.size < weight.shape[0]:
            raise UsageError(
                f"{option('config.keep_bn')} folds a factor per channel into the scales of '{quant.name}': use "
                f"{option('per_channel', True)}"
            )
        ones, zeros = np.ones(scale.size, np.float32), np.zeros(scale.size, np.float32)
        parts += [
            (f"gain:{quant.name}", "gain", np.sqrt(ones + EPSILON), 1.0, 1.0),
            (f"shift:{quant.name}", "bias", zeros, 1.0, 1.0),
            (f"mean:{quant.name}", "statistic", zeros, 0.0, 0.0),
            (f"variance:{quant.name}", "statistic", ones, 0.0, 0.0),
        ]
    elif bias is not None:
        parts.append((f"bias:{quant.name}", "bias", bias.astype(np.float32), max(rms(bias), spread), 1.0))
    return parts


def _grid_parts(
    view: GraphView, grid: ActivationQuant, made: TrainedGrid
) -> list[tuple[str, Kind, Floats, float, float]]:
    shape = view.values[grid.tensor].shape or ()
    count = int(np.prod([d for d in list(shape)[1:] if isinstance(d, int)], dtype=np.int64))
    factor = qmath.lsq_gradient_scale(max(count, 1), bits=made.bits, configuration=4)
    parts: list[tuple[str, Kind, Floats, float, float]] = [
        (f"scale:{made.key}", "scale", np.asarray([grid.scale], np.float32), grid.scale, factor)
    ]
    if made.offset != "none":
        offset = grid.offset + (made.zero_point - grid.zero_point) * grid.scale
        parts.append((f"offset:{made.key}", "offset", np.asarray([offset], np.float32), grid.scale, factor))
    return parts


def rms(array: Floats) -> float:
    """The root mean square; 1 if all values are zero."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) or 1.0
