"""plan -> plan: weights whose errors cancel, and biases that make up for what is left, where there are no samples.

Rounding to nearest leaves sums of errors, which an operand with a mean multiplies. Without samples, convolutions of
pictures and layers behind a ReLU are rounded so that these sums nearly vanish (`qmath.round_evenly`), and biases are
shifted by what is still added to the mean output. The means are those of BatchNormalization where they follow from it.
Of other operands, some channels are constant whatever goes in; noise in place of samples shows which, and their values.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import QGraphError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import is_non_negative
from qgraph.observe.known_laws import known_laws
from qgraph.observe.propagation import Moments
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.noise import TRIED_SIZES, noise
from qgraph.plan.expected import expected_shift
from qgraph.plan.plan import Even, LayerQuant, QuantPlan
from qgraph.samples.dataset import open_data

_SHIFTED = ("Conv", "Gemm")
_SAMPLES, _SIZE = 2, 128  # of the noise; the size is what is tried first where a dimension is open
_MOST_VALUES = 2**23
CONST = 0.05  # of the mean: the most that a channel may vary and count as constant


def evenly(plan: QuantPlan, view: GraphView, known: Mapping[str, Moments], *, threads: int | None = None) -> QuantPlan:
    """The plan with even rounding, and shifted biases; `known` are moments of outputs of BatchNormalization."""
    plan = plan.map_layers(lambda quant: _even(quant, view.by_name[quant.name]))
    chosen = [view.by_name[q.name] for q in plan.layers if q.op in _SHIFTED and not view.by_name[q.name].weight_only]
    means = noise_means(view.model, chosen, threads=threads) | known_means(view.model, chosen, known)

    def shift(quant: LayerQuant) -> LayerQuant:
        layer = view.by_name[quant.name]
        mean = means.get(layer.name)
        if mean is None or not mean.any() or quant.runs == "dynamic":
            return quant
        amount = expected_shift(layer, quant, mean).astype(np.float32)
        return dataclasses.replace(quant, bias_shift=tuple(amount.tolist()))

    return plan.map_layers(shift)


def _even(quant: LayerQuant, layer: Layer) -> LayerQuant:
    grid, even = quant.weight, what_cancels(layer)
    taken = grid.rounding or grid.codes or grid.input_scale or grid.shift or not grid.granularity.per_channel
    if not even or taken or quant.runs == "dynamic":
        return quant
    return dataclasses.replace(quant, weight=dataclasses.replace(grid, even=even, gain=(1.0,)))


def what_cancels(layer: Layer) -> Even:
    """Which errors of a layer's weight its operand is likely to add up.

    Neighbours in a picture are alike; behind a ReLU, so are the signs of all channels.
    """
    if layer.op not in ("Conv", "Gemm") or layer.weight_only:
        return ""
    if is_non_negative(layer.input):
        return "sums"
    kernel = layer.weight_array().shape[2:]
    return "taps" if sum(size > 1 for size in kernel) > 1 else ""


def known_means(model: Model, layers: list[Layer], known: Mapping[str, Moments]) -> dict[str, NDArray[np.float64]]:
    """The means of operands that follow from BatchNormalization, by the names of layers."""
    laws = known_laws(model, known)
    found = {}
    for layer in layers:
        law = laws.get(str(layer.input.name))
        if law is not None and law.moments.mean.size == layer.input_channels:
            channels = law.statistics(count=2, bins=0).channels
            if channels is not None:
                found[layer.name] = np.asarray(channels.mean, np.float64)
    return found


def noise_means(model: Model, layers: list[Layer], *, threads: int | None = None) -> dict[str, NDArray[np.float64]]:
    """The means of operands where noise goes in, by the names of layers; none for a model that reads more than floats.

    Of the sizes that are tried for open dimensions, the first with which the model runs counts.
    """
    if not layers or any(value.dtype is None or not value.dtype.is_floating_point() for value in model.input_values()):
        return {}
    tensors = dict(layer.operand_channels for layer in layers)
    for size in sorted(TRIED_SIZES, key=lambda size: abs(size - _SIZE)):
        feeds = noise(model, size, samples=_SAMPLES)
        if sum(array.size for array in feeds.values()) > _MOST_VALUES:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that noise has and samples would not
                observed = observe(model, open_data(feeds, model), tensors=tensors, histograms=False, threads=threads)
            return _means(layers, observed)
        except QGraphError:
            continue
    return {}


def _means(layers: list[Layer], observed: Observations) -> dict[str, NDArray[np.float64]]:
    found = {}
    for layer in layers:
        channels = observed[layer.operand_channels[0]].channels
        if channels is None or np.size(channels.mean) != layer.input_channels:
            continue
        mean, spread = np.asarray(channels.mean, np.float64), np.sqrt(np.asarray(channels.variance, np.float64))
        found[layer.name] = np.where(spread <= CONST * np.abs(mean), mean, 0.0)
    return found
