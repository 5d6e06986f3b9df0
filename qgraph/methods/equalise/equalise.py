"""network -> network: channels scaled and centred between layers, so that grids of few bits lose less.

For every group of tied tensors (`qgraph.graph.scaling`), factors are those of least predicted noise on both sides
(`qmath.equalise_channels`). Where the group is linear and no reader pads, the mean of each channel is first taken from
the biases of the layers that write it, and added to the biases of those that read it:

    W' = W / r,  b' = (b - m) / r    for a layer that writes        W' = r W,  b' = b + W M    for a layer that reads

with m the mean of what the layer writes and M that of what is read, the sum of what was written. Both are exact, up to
the rounding of floats.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.scaling import Tied, tied_channels
from qgraph.graph.sites import GraphView
from qgraph.graph.sums import output_sums
from qgraph.lowering.places import shift_bias
from qgraph.observe.statistics import Observations
from qgraph.onnxfile.edit import add_initializer, constant
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.plan import MAX_BITS

Floats = NDArray[np.float64]
_WORTH = 0.95  # of the predicted noise that is left at most, for a group to be changed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Equalisation:
    """What was changed of a group: factors, and the means taken from what each layer writes."""

    tensor: str
    factors: Floats
    written: dict[str, Floats]
    exponents: tuple[float, float]
    noise: float
    plain_noise: float


def equalised(
    net: Model, observed: Observations, *, weight_bits: int, bits: int
) -> tuple[Model, tuple[Equalisation, ...]]:
    """An equivalent network whose tensors between layers lose less at these bits, and what was changed."""
    copy = net.ir_model.clone()
    view = GraphView(dataclasses.replace(net, ir_model=copy))
    done = []
    for group in tied_channels(view):
        if group.why_not:
            continue
        found = _chosen(group, observed, weight_bits, bits)
        if found is not None and found.noise < _WORTH * found.plain_noise:
            _apply(copy.graph, group, found)
            done.append(found)
    if not done:
        return net, ()
    made = normalise(dataclasses.replace(net, ir_model=copy, digest=""))
    return made, tuple(done)


def _chosen(group: Tied, observed: Observations, weight_bits: int, bits: int) -> Equalisation | None:
    written: dict[Layer, Floats] = {}
    for layer in group.writers:
        known = observed.tensors.get(str(layer.output.name))
        written[layer] = np.zeros(group.channels)
        if known is not None and known.channels is not None and group.shifts:
            written[layer] = np.asarray(known.channels.mean, np.float64)
    offsets, centred = group.offsets(written), any(mean.any() for mean in written.values())
    plain, centred_readers = [], []
    for layer in group.readers:
        known = observed.tensors.get(str(layer.input.name))
        if known is None or known.channels is None:
            return None
        if centred:
            plain.append(_reader(layer, known, np.zeros(group.channels), weight_bits, bits))
        centred_readers.append(_reader(layer, known, offsets[layer.input], weight_bits, bits))
    found = qmath.equalise_channels(centred_readers)
    return Equalisation(
        tensor=str(next(iter(group.tensors)).name),
        factors=found.factors,
        written={layer.name: mean for layer, mean in written.items() if mean.any()},
        exponents=found.exponents,
        noise=found.noise,
        plain_noise=qmath.equalise_channels(plain).plain_noise if centred else found.plain_noise,
    )


def _reader(layer: Layer, known: qmath.Statistics, offset: Floats, weight_bits: int, bits: int) -> qmath.ReadingLayer:
    """A layer as the closed form sees it, with the operand's channels less some constants."""
    channels = known.channels
    if channels is None:
        raise ValueError(f"no statistics of the channels of '{layer.input.name}'")
    mean, variance = np.asarray(channels.mean, np.float64), np.asarray(channels.variance, np.float64)
    low, high = np.asarray(channels.min, np.float64), np.asarray(channels.max, np.float64)
    if bits < MAX_BITS:  # clipped as the grid will be
        reach = np.asarray(qmath.gauss_clip(np.sqrt(variance) + 1e-12, bits), np.float64)
        low, high = np.maximum(low, mean - reach), np.minimum(high, mean + reach)
    weight = layer.weight_array().astype(np.float64)
    inner = weight.shape[1]
    apart = layer.groups > 1
    if apart:
        rows = weight.reshape(layer.groups, -1, inner, int(np.prod(weight.shape[2:])))
        by_channel = rows.transpose(0, 2, 1, 3).reshape(layer.groups * inner, -1)
    else:
        by_channel = np.moveaxis(weight, 1, 0).reshape(inner, -1)
    moment = variance + np.square(mean - offset)
    power = float(np.sum(np.square(by_channel) * moment[:, None]))
    if not apart:  # the taps of an output share its step, and their energies add up
        by_channel = np.sqrt(np.square(by_channel.reshape(inner, len(weight), -1)).sum(axis=2))
    return qmath.ReadingLayer(
        low=low - offset,
        high=high - offset,
        moment=moment,
        weight=by_channel,
        bits=bits,
        weight_bits=weight_bits,
        power=power,
        apart=apart,
    )


def _apply(graph: ir.Graph, group: Tied, found: Equalisation) -> None:
    written = {layer: found.written.get(layer.name, np.zeros(group.channels)) for layer in group.writers}
    offsets = group.offsets(written)
    for layer in group.readers:
        weight = layer.weight_array().astype(np.float64)
        missing = offsets[layer.input]
        if missing.any():
            shift_bias(graph, layer, output_sums(layer, weight, missing))
    for layer in group.readers:
        weight = layer.weight_array().astype(np.float64)
        _put(graph, layer, weight * _laid(layer, weight, found.factors))
    for layer in group.writers:
        weight = layer.weight_array().astype(np.float64)
        if written[layer].any():
            shift_bias(graph, layer, -written[layer])
        bias = constant(layer.bias)
        _put(graph, layer, weight / found.factors.reshape(-1, *[1] * (weight.ndim - 1)))
        if bias is not None:
            shift_bias(graph, layer, np.asarray(bias, np.float64) * (1 / found.factors - 1))


def _laid(layer: Layer, weight: Floats, factors: Floats) -> Floats:
    """Factors of the operand's channels along a weight of a convolution."""
    inner = weight.shape[1]
    rows = np.repeat(factors.reshape(-1, inner), weight.shape[0] // (factors.size // inner), axis=0)
    return rows.reshape(weight.shape[0], inner, *[1] * (weight.ndim - 2))


def _put(graph: ir.Graph, layer: Layer, weight: Floats) -> None:
    name = str(layer.weight.name)
    if name in graph.initializers:
        old = graph.initializers[name]
        if len(list(old.uses())) == 1 and not old.is_graph_output():
            del graph.initializers[name]
    layer.node.replace_input_with(layer.weight_index, add_initializer(graph, name, weight.astype(np.float32)))
