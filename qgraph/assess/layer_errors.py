"""The quantization error of every layer, predicted from closed forms and measured.

Both errors are local: the layer reads the float model's activations, quantizes them and its weight as the plan says,
and its output is compared with that of the float layer. With the operand's error variance e^2 on its grid (exact for
the observed histogram or prior), the weight error D = W^q - W, and the operand's mean m and variance v per channel, the
predicted noise power of output channel c is

    noise_c = sum_k (W^q_ck)^2 e^2 + sum_k D_ck^2 v_k + (sum_k D_ck m_k + shift_c)^2

`operand_noise` says how this changes where e has a mean and where layers pad.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.assess.layers_in_file import InFile
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.lowering.packing import stored_bytes
from qgraph.lowering.places import shift_bias
from qgraph.lowering.simulate import FloatEmitter
from qgraph.methods.aciq.clip import rejected_priors
from qgraph.observe.channel_laws import channel_errors
from qgraph.observe.distance import ratio_db
from qgraph.observe.operand_noise import FINEST, channel_noise, coverage, tap_sums
from qgraph.observe.statistics import RUN_BYTES, Observations, batch_within
from qgraph.onnxfile.edit import append_node, constant
from qgraph.plan import codes as weights
from qgraph.plan.dynamic import DYNAMIC_BITS
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, Runs
from qgraph.plan.staircase import on_grid
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset

SAMPLES, LEAST_SAMPLES = 32, 4  # that are simulated
BYTES = 1 << 28  # of activations in all of them, as far as that leaves enough samples


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """How one layer was quantized, and its errors; an error is None where it could not be measured.

    `runs` says what its kernel computes on, as in the plan. `predicted_sqnr_db` and `simulated_sqnr_db` are those of
    the layer alone, which reads the float model's activations; `measured_sqnr_db` is that of its result in the file as
    onnxruntime runs it, including the errors of all layers before it. `prior_rejected`: neither of ACIQ's priors
    describes the layer's operand at its bits; None where there is no histogram.
    """

    name: str
    op: str
    weight_bits: int
    activation_bits: int | None
    weight_bytes: int
    runs: Runs = "integers"
    predicted_sqnr_db: float | None = None
    simulated_sqnr_db: float | None = None
    measured_sqnr_db: float | None = None
    prior_rejected: bool | None = None


def layer_reports(
    view: GraphView,
    plan: QuantPlan,
    observed: Observations | None,
    data: Dataset | None,
    *,
    in_file: Mapping[str, InFile] | None = None,
    signals: Mapping[str, float] | None = None,
    threads: int | None = None,
) -> tuple[LayerReport, ...]:
    """One report per layer of the plan; errors are None where there are no statistics or no samples.

    `in_file` are the measured errors of the file, by layer. Without `data` nothing is simulated, and predicted errors
    are relative to the power of the float layers that was measured there, or to the one given in `signals`.
    """
    nbytes, signals = 0 if observed is None else observed.sample_bytes, signals or {}
    read = dataclasses.replace(plan, layers=tuple(q for q in plan.layers if not view.by_name[q.name].weight_only))
    power: dict[str, tuple[float, float]] = {}
    if data is not None and read.layers:
        power = measured_power(view, read, data, sample_bytes=nbytes, threads=threads)
    predicted = predicted_noise(view, read, observed) if observed is not None else {}
    grids = plan.operand_grids
    rejected = {} if observed is None else rejected_priors(view, observed, list(grids.values()))
    reports = []
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        grid = nearest(layer.input, grids) if quant.runs != "dynamic" and layer.is_observed else None
        found = (in_file or {}).get(quant.name)
        signal, noise = power.get(quant.name, (signals.get(quant.name, 0.0) if found is None else found.alone, 0.0))
        reports.append(
            LayerReport(
                name=quant.name,
                op=quant.op,
                weight_bits=quant.weight.bits,
                activation_bits=DYNAMIC_BITS if quant.runs == "dynamic" else None if grid is None else grid.bits,
                weight_bytes=stored_bytes(layer.weight_array().shape, quant.weight),
                runs="floats" if grid is None and quant.runs == "integers" else quant.runs,
                predicted_sqnr_db=ratio_db(signal, predicted.get(quant.name, 0.0)),
                simulated_sqnr_db=ratio_db(signal, noise),
                measured_sqnr_db=None if found is None else ratio_db(found.signal, found.noise),
                prior_rejected=None if grid is None else rejected.get(grid.tensor),
            )
        )
    return tuple(reports)


def measured_power(
    view: GraphView,
    plan: QuantPlan,
    data: Dataset,
    *,
    samples: int = SAMPLES,
    sample_bytes: int = 0,
    threads: int | None = None,
) -> dict[str, tuple[float, float]]:
    """For each layer, the mean squares of the float output and of the local error over the first `samples` samples.

    `sample_bytes` is the size of the activations of one sample: if they are large, fewer samples run, and at a time.
    """
    session = Session(_probe(view, plan), threads=threads)
    total, seen = np.zeros(2 * len(plan.layers)), 0
    samples = min(samples, max(LEAST_SAMPLES, BYTES // max(sample_bytes, 1)))
    for batch in data.batches(min(samples, data.count, batch_within(RUN_BYTES, sample_bytes))):
        total += batch.count * np.array([float(v) for v in session.run_list(batch.feeds)])
        seen += batch.count
        if seen >= samples:
            break
    mean = (total / max(seen, 1)).reshape(-1, 2).tolist()
    return {quant.name: (signal, noise) for quant, (signal, noise) in zip(plan.layers, mean, strict=True)}


def predicted_noise(view: GraphView, plan: QuantPlan, observed: Observations) -> dict[str, float]:
    """For each layer, the expected mean square of the local error, from statistics and closed forms alone."""
    grids = plan.operand_grids
    return {quant.name: _predict(view.by_name[quant.name], quant, grids, observed) for quant in plan.layers}


def _predict(layer: Layer, quant: LayerQuant, grids: Mapping[str, ActivationQuant], observed: Observations) -> float:
    weight = layer.weight_array()
    rounded = weights.quantized(weight, quant.weight).astype(np.float64)
    difference = rounded - weight
    grid = None if quant.runs == "dynamic" else nearest(layer.input, grids)
    channels = observed.operand(layer).channels
    if channels is None:
        return float("nan")
    mean, variance = np.asarray(channels.mean), np.asarray(channels.variance)
    error, square = np.zeros(mean.size), np.zeros(mean.size)
    if quant.runs == "dynamic":
        square = _dynamic_error(quant, channels)
    if grid is not None:
        error, square = _operand_error(grid, observed[grid.tensor], channels)
    shared = tap_sums(layer, rounded, error) + tap_sums(layer, difference, mean)
    random = tap_sums(layer, rounded**2, square - error**2) + tap_sums(layer, difference**2, variance)
    shift = np.asarray(quant.bias_shift) if quant.bias_shift else np.zeros(len(shared))
    return _power(layer, shared, random, shift)


def _power(layer: Layer, shared: NDArray[np.float64], random: NDArray[np.float64], shift: NDArray[np.float64]) -> float:
    """The mean square of sum_t (shared_ct + random terms) + shift_c over positions and channels c."""
    inside = coverage(layer)
    together = np.einsum("ct,tu,cu->c", shared, inside, shared)
    reached = np.diagonal(inside)
    return float(np.mean(together + 2 * shift * (shared @ reached) + shift**2 + random @ reached))


def expected_signals(view: GraphView, plan: QuantPlan, observed: Observations) -> dict[str, float]:
    """For each layer, the expected mean square of its float output, for operand channels that are independent."""
    found = {}
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        channels = None if layer.weight_only else observed.operand(layer).channels
        if channels is None or not np.size(channels.mean):
            continue
        weight = layer.weight_array().astype(np.float64)
        shared = tap_sums(layer, weight, np.asarray(channels.mean))
        random = tap_sums(layer, weight**2, np.asarray(channels.variance))
        bias = constant(layer.node.inputs[2]) if layer.op != "MatMul" and len(layer.node.inputs) > 2 else None
        shift = (
            np.zeros(len(shared)) if bias is None or bias.size != len(shared) else np.ravel(bias) * layer.bias_factor
        )
        found[quant.name] = _power(layer, shared, random, shift)
    return found


def _dynamic_error(quant: LayerQuant, channels: qmath.Statistics) -> NDArray[np.float64]:
    """Mean square of every channel's error on the grid over all that was seen of the operand, divided by its factors.

    No run of a dynamic layer computes a wider grid.
    """
    factors = np.asarray(quant.weight.input_scale or np.ones(np.size(channels.mean)))
    inverse = np.divide(1.0, factors, out=np.zeros_like(factors), where=factors > 0)
    low, high = np.min(channels.min * inverse, initial=0.0), np.max(channels.max * inverse, initial=0.0)
    step = (high - low) / (2**DYNAMIC_BITS - 1)
    return np.asarray((step * factors) ** 2 / 12)


def _operand_error(
    grid: ActivationQuant, of_tensor: qmath.Statistics, channels: qmath.Statistics
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and mean square of every channel's error; with a histogram, it decides the average of the squares.

    Grids of many bits, and grids over which no law is integrated, have the same error in all channels, with mean zero.
    """
    size = np.size(channels.mean)
    if grid.rounding is not None or grid.offset or grid.bits > FINEST or not of_tensor.min < of_tensor.max:
        alike = channel_errors(grid, of_tensor) if grid.channel_scale else grid_error(of_tensor, grid)
        return np.zeros(size), np.broadcast_to(np.asarray(alike, np.float64), size)
    error, square = channel_noise(grid, dataclasses.replace(of_tensor, channels=channels))
    if grid.channel_scale or of_tensor.histogram is None:
        return error, square
    square = np.maximum(square * grid_error(of_tensor, grid) / square.mean(), error**2)
    return error, square


def grid_error(statistics: qmath.Statistics, grid: ActivationQuant) -> float:
    """The mean squared error of a grid over a tensor's histogram, with values uniform within each bin.

    Without a histogram it is scale^2 / 12: rounding alone, as on a grid over the full range.
    """
    if not statistics.count:
        return 0.0
    histogram = statistics.histogram
    if histogram is None:
        return grid.scale**2 / 12
    squares = (histogram.centers - on_grid(histogram.centers, grid)) ** 2
    occupied = (histogram.counts > 0) & (grid.offset == 0)
    zero_is_exact = occupied & (np.abs(histogram.centers) <= histogram.width)  # mass at 0 (after ReLU) has no error
    squares = np.where(zero_is_exact, 0.0, squares + histogram.width**2 / 12)
    return float((histogram.counts * squares).sum() / histogram.total)


def _probe(view: GraphView, plan: QuantPlan) -> ir.Model:
    """The float graph with a quantized twin of every layer; its outputs are mean squares of results and errors."""
    net = view.model.ir_model.clone()
    twin = GraphView(dataclasses.replace(view.model, ir_model=net))
    layers = [twin.by_name[quant.name] for quant in plan.layers]
    emitter = FloatEmitter(net.graph)
    grids = plan.operand_grids
    net.graph.outputs.clear()
    on_grid: dict[ir.Value, ir.Value] = {}
    for layer, quant in zip(layers, plan.layers, strict=True):
        operand, grid = layer.input, nearest(layer.input, grids)
        if quant.runs == "dynamic":
            read = emitter.operand_at_hand(layer, quant)
        else:
            if grid is not None and operand not in on_grid:
                on_grid[operand] = emitter.activation(operand, grid)
            read = on_grid.get(operand, operand)
        result = _twin(net.graph, layer, quant, read, emitter)
        error = emitter.op("Sub", result, layer.output)
        net.graph.outputs.extend(_mean_square(emitter, v) for v in (layer.output, error))
    net.graph.sort()
    return net


def _twin(graph: ir.Graph, layer: Layer, quant: LayerQuant, operand: ir.Value, emitter: FloatEmitter) -> ir.Value:
    inputs = list(layer.node.inputs)
    inputs[1 - layer.weight_index] = operand
    inputs[layer.weight_index] = emitter.weight(layer, quant, None)
    attributes = {k: a.value for k, a in layer.node.attributes.items()}
    copy = append_node(graph, layer.op, inputs, attributes)
    shift = np.asarray(quant.bias_shift, np.float64)
    return shift_bias(graph, dataclasses.replace(layer, node=copy), shift) if shift.size else copy.outputs[0]


def _mean_square(emitter: FloatEmitter, value: ir.Value) -> ir.Value:
    mean = emitter.op("ReduceMean", emitter.op("Mul", value, value), keepdims=0)
    mean.type, mean.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    return mean
