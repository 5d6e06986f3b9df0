"""plan -> plan: undo the effect of rounding a weight on its norm and on the expected output.

Per output channel c of a layer with weight W, its quantized W^q and operand x (ACIQ, Eq. 12; Q-Rater, Eq. 7):

    gain_c  = ||W_c - mean W_c|| / ||W^q_c - mean W^q_c||       folded into the channel's scale
    shift_c = sum_k (W_ck - gain_c W^q_ck) E[x_k]               added to the bias

ACIQ's own mean correction (`correct_means`, Eq. 13) adds a constant to every weight of a channel,

    w <- gain_c (w^q + mu_c),   mu_c = mean W_c - mean W^q_c

which no integer grid can hold: it is a fraction of a step. Its effect on the output is a shift by that constant times
sum_k x_k; `shift_c` is the expectation of that and of all other changes, which the paper does not need samples for.

`correct_outputs` measures the shift instead: the difference in the layer's mean output between the float network and
the quantized one, with all earlier layers quantized and corrected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.observe.statistics import Observations
from qgraph.plan import codes as weights
from qgraph.plan.expected import expected_shift
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset

SAMPLES = 64
BATCH = 16


def correct_norm(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """Restore the norm of every weight channel by its `gain`; grids of groups are fitted by least squares already."""

    def correct(layer: LayerQuant) -> LayerQuant:
        if layer.weight.unit:
            return layer
        weight = view.by_name[layer.name].weight_array()
        grid = dataclasses.replace(layer.weight, gain=(1.0,))
        rounded = weights.quantized(weight, grid)
        pairs = zip(*(weights.row_blocks(array, grid.granularity) for array in (weight, rounded)), strict=True)
        gain = np.concatenate([qmath.bias_correction(before, after, axis=0).gain for before, after in pairs])
        gain = np.where(gain > 0, gain, 1.0)
        return dataclasses.replace(layer, weight=dataclasses.replace(grid, gain=tuple(float(g) for g in gain)))

    return plan.map_layers(correct)


def correct_means(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """Add gain_c mu_c to every weight of channel c, as the paper does (ACIQ, Eq. 12 and 13); for simulation alone.

    Grids of groups stay as they are.
    """

    def correct(layer: LayerQuant) -> LayerQuant:
        if layer.weight.unit:
            return layer
        weight = view.by_name[layer.name].weight_array()
        grid = dataclasses.replace(layer.weight, gain=(1.0,), shift=())
        rounded = weights.quantized(weight, grid)
        pairs = zip(*(weights.row_blocks(array, grid.granularity) for array in (weight, rounded)), strict=True)
        mean = np.concatenate([qmath.bias_correction(before, after, axis=0).shift for before, after in pairs])
        shift = tuple(float(s) for s in (mean * np.asarray(layer.weight.gain)).astype(np.float32))
        return dataclasses.replace(layer, weight=dataclasses.replace(layer.weight, shift=shift))

    return plan.map_layers(correct)


def correct_shift(plan: QuantPlan, view: GraphView, observed: Observations) -> QuantPlan:
    """Shift every layer's bias by the expected change of its output, from the operand's mean per channel."""

    def correct(quant: LayerQuant) -> LayerQuant:
        layer = view.by_name[quant.name]
        channels = None if layer.weight_only else observed.operand(layer).channels
        if channels is None or not np.size(channels.mean):
            return quant
        shift = expected_shift(layer, quant, np.asarray(channels.mean))
        return dataclasses.replace(quant, bias_shift=tuple(float(s) for s in shift.astype(np.float32)))

    return plan.map_layers(correct)


def correct_outputs(
    plan: QuantPlan,
    view: GraphView,
    data: Dataset,
    *,
    samples: int = SAMPLES,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> QuantPlan:
    """Shift every layer's bias so that its mean output per channel equals the float network's on the first `samples`.

    Works layer by layer in graph order: shift_c = E[y_c] - E[y^q_c], where y^q comes from the network quantized so far.
    Each layer thus also corrects the mean error that reaches it. Runs the network once per layer.
    """
    known = dataclasses.replace(data, limit=min(samples, data.count))
    chosen = {quant.name for quant in plan.layers}
    ordered = [layer for layer in view.layers if layer.name in chosen]
    expected = _mean_outputs(view.model.ir_model, ordered, known, threads)
    with progress.stage("correcting outputs", len(ordered)) as advance:
        for layer, want in zip(ordered, expected, strict=True):
            lowered = simulate(view.model, _shifted(plan, layer, ()))
            twin = GraphView(dataclasses.replace(view.model, ir_model=lowered)).by_name[layer.name]
            (have,) = _mean_outputs(lowered, [twin], known, threads)
            plan = _shifted(plan, layer, tuple(float(s) for s in (want - have).astype(np.float32)))
            advance(1, layer.name)
    return plan


def _shifted(plan: QuantPlan, layer: Layer, shift: tuple[float, ...]) -> QuantPlan:
    return plan.map_layers(lambda q: dataclasses.replace(q, bias_shift=shift) if q.name == layer.name else q)


def _mean_outputs(
    model: ir.Model, layers: Sequence[Layer], data: Dataset, threads: int | None
) -> list[NDArray[np.float64]]:
    """The mean of every layer's result per output channel."""
    session = Session(model, outputs=list(dict.fromkeys(str(layer.output.name) for layer in layers)), threads=threads)
    sums, counts = [0.0] * len(layers), [0] * len(layers)
    for batch in data.batches(BATCH):
        results = session.run({name: batch.feeds[name] for name in session.input_names})
        for index, layer in enumerate(layers):
            result = np.asarray(batch.real(results[str(layer.output.name)]), np.float64)
            axis = layer.result_axis % result.ndim
            sums[index] = sums[index] + result.sum(axis=tuple(i for i in range(result.ndim) if i != axis))
            counts[index] += result.size // result.shape[axis]
    return [np.asarray(total) / max(count, 1) for total, count in zip(sums, counts, strict=True)]
