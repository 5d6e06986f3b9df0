"""How much of an error made inside a network reaches its outputs, from its weights alone: nothing is run.

Tensors are taken as Gaussian and independent between channels, with a mean m and a variance v per channel. These come
from BatchNormalization where there is one (beta and gamma^2); elsewhere they flow forward from inputs of mean 0 and
variance 1:

    layer        m_out = W m + b          v_out = W^2 v
    f(x)         m_out = E[f(x)]          v_out = Var[f(x)]
    x + y        m_x + m_y                v_x + v_y
    x y          m_x m_y                  v_x v_y + v_x m_y^2 + v_y m_x^2

The gain G of a channel is the sum over outputs of the variance that noise of variance 1 in it causes, relative to the
outputs' own variance. It flows backward, through squared weights and squared slopes:

    layer        G_in = sum_c ((1 - rho) sum_t W_ct^2 + rho (sum_t W_ct)^2) G_out,c      taps t
    f(x)         G_in = E[f'(x)^2] G_out
    x + y        G_x = G_y = G_out
    x y          G_x = E[y^2] G_out

rho is the correlation of the noise at neighbouring positions. The error of a filter's weights is itself a filtered
image and as smooth as images are: 1/2 here. (On two CIFAR networks 0.5 ranks layers better than 0.25 or 0.75, and far
better than 0.) Spatial averages are assumed to keep variances, both of the noise and of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer, attribute
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model
from qmath.late import LateModule

special = LateModule("scipy.special")
Floats = NDArray[np.float64]
Curve = Callable[[Floats], Floats]
_GRID = np.linspace(-4.0, 4.0, 161)
_WEIGHTS = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()
_CURVES: dict[str, Curve] = {
    "Relu": lambda x: np.maximum(x, 0.0),
    "LeakyRelu": lambda x: np.where(x > 0, x, 0.01 * x),
    "Sigmoid": lambda x: special.expit(x),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0.0, 1.0),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0),
    "Tanh": np.tanh,
    "Elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "Gelu": lambda x: x * special.ndtr(x),
    "Erf": lambda x: special.erf(x),
    "Softplus": lambda x: np.logaddexp(0.0, x),
    "Abs": np.abs,
    "Neg": np.negative,
}
NEIGHBOURS = 0.5
_SUMS = frozenset({"Add", "Sub", "Sum"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean and variance per channel; one value stands for all channels."""

    mean: Floats
    variance: Floats

    @property
    def power(self) -> Floats:
        return np.asarray(self.mean**2 + self.variance)


STANDARD = Moments(mean=np.zeros(1), variance=np.ones(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Moments and gains of every tensor that carries activations, by name."""

    moments: Mapping[str, Moments]
    gains: Mapping[str, Floats]


def known_moments(model: Model) -> dict[str, Moments]:
    """The moments of BatchNormalization outputs, by tensor, from their parameters; empty where they were folded."""
    found = {}
    for node in model.graph:
        if node.op_type == "BatchNormalization" and node.domain == "":
            gamma, beta = (constant(value) for value in node.inputs[1:3])
            if gamma is not None and beta is not None:
                moments = Moments(mean=beta.astype(np.float64), variance=gamma.astype(np.float64) ** 2)
                found[str(node.outputs[0].name)] = moments
    return found


def flow(view: GraphView, known: Mapping[str, Moments]) -> Flow:
    """Moments forward and gains backward; `known` are the moments from BatchNormalization, by tensor."""
    layers = {layer.node: layer for layer in view.layers}
    moments: dict[ir.Value, Moments] = {}
    for value in view.model.input_values():
        moments[value] = known.get(str(value.name), STANDARD)
    nodes = [node for node in view.model.graph if node.domain == ""]
    for node in nodes:
        if any(v in moments for v in node.inputs if v is not None):
            out = node.outputs[0]
            moments[out] = known.get(str(out.name)) or _forward(node, layers.get(node), moments)
    gains: dict[ir.Value, Floats] = {}
    for out in view.model.graph.outputs:
        if out in moments:
            variance = moments[out].variance
            gains[out] = np.ones_like(variance) / max(float(variance.sum()), np.finfo(np.float64).tiny)
    for node in reversed(nodes):
        if node.outputs[0] in gains:
            _backward(node, layers.get(node), moments, gains)
    return Flow(moments={str(v.name): m for v, m in moments.items()}, gains={str(v.name): g for v, g in gains.items()})


def squared_taps(layer: Layer, weight: Floats) -> Floats:
    """sum over taps of weight^2, shape (groups, outputs per group, inputs per group)."""
    return _summed_taps(layer, weight**2)


def _summed_taps(layer: Layer, weight: Floats) -> Floats:
    if layer.op in ("Conv", "ConvTranspose"):
        taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
        blocks = taps.reshape(layer.groups, -1, taps.shape[1])
        return blocks if layer.op == "Conv" else np.swapaxes(blocks, 1, 2)
    inner = weight if layer.output_axis == weight.ndim - 2 else np.swapaxes(weight, -1, -2)
    return np.asarray(inner.reshape(-1, *inner.shape[-2:]).mean(axis=0))[None]


def _forward(node: ir.Node, layer: Layer | None, moments: Mapping[ir.Value, Moments]) -> Moments:
    if layer is not None:
        return _through_layer(layer, moments[layer.input])
    inputs = [_operand(v, moments) for v in node.inputs if v is not None]
    if node.op_type in _SUMS:
        sign = -1.0 if node.op_type == "Sub" else 1.0
        total = inputs[0]
        for other in inputs[1:]:
            left, right = _aligned(total, other)
            total = Moments(mean=left.mean + sign * right.mean, variance=left.variance + right.variance)
        return total
    if node.op_type == "Mul":
        left, right = _aligned(*inputs)
        cross = left.variance * right.mean**2 + right.variance * left.mean**2
        return Moments(mean=left.mean * right.mean, variance=left.variance * right.variance + cross)
    if node.op_type == "Concat":
        parts = [_sized(m, _channels(v)) for m, v in zip(inputs, node.inputs, strict=True)]
        return Moments(
            mean=np.concatenate([p.mean for p in parts]), variance=np.concatenate([p.variance for p in parts])
        )
    curve, first = _curve(node), next(moments[v] for v in node.inputs if v is not None and v in moments)
    if curve is None:
        return _sized(first, _channels(node.outputs[0]))
    values = curve(_samples(first))
    mean = values @ _WEIGHTS
    return Moments(mean=mean, variance=np.maximum((values**2) @ _WEIGHTS - mean**2, 0.0))


def _backward(
    node: ir.Node, layer: Layer | None, moments: Mapping[ir.Value, Moments], gains: dict[ir.Value, Floats]
) -> None:
    out = gains[node.outputs[0]]
    if layer is not None:
        weight = layer.weight_array().astype(np.float64)
        smooth = _summed_taps(layer, weight) ** 2
        taps = squared_taps(layer, weight) * (1 - NEIGHBOURS) + smooth * NEIGHBOURS
        gain = np.einsum("goi,go->gi", taps, resized(out, taps.shape[0] * taps.shape[1]).reshape(taps.shape[0], -1))
        _add(gains, layer.input, gain.reshape(-1))
        return
    active = [v for v in node.inputs if v is not None and v in moments]
    if node.op_type == "Mul":
        for value in active:
            others = [_operand(v, moments).power for v in node.inputs if v is not None and v is not value]
            _add(gains, value, out * resized(others[0], out.size, spread=True) if others else 4 * out)
    elif node.op_type == "Concat":
        ends = np.cumsum([_channels(v) for v in node.inputs])
        parts = np.split(resized(out, int(ends[-1])), ends[:-1])
        for given, part in zip(node.inputs, parts, strict=True):
            if given is not None and given in moments:
                _add(gains, given, part)
    else:
        curve = _curve(node)
        for value in active if node.op_type in _SUMS else active[:1]:
            gain = resized(out, moments[value].mean.size)
            _add(gains, value, gain if curve is None else gain * _squared_slope(curve, moments[value]))


def _through_layer(layer: Layer, operand: Moments) -> Moments:
    weight = layer.weight_array().astype(np.float64)
    taps = squared_taps(layer, weight)
    groups, inputs = taps.shape[0], taps.shape[0] * taps.shape[2]
    sized = _sized(operand, inputs)
    variance = np.einsum("goi,gi->go", taps, sized.variance.reshape(groups, -1)).reshape(-1)
    bias = constant(layer.bias)
    mean = np.zeros(variance.size) if bias is None else resized(np.ravel(bias).astype(np.float64), variance.size)
    sums = _summed_taps(layer, weight)
    return Moments(mean=mean + np.einsum("goi,gi->go", sums, sized.mean.reshape(groups, -1)).ravel(), variance=variance)


def _operand(value: ir.Value, moments: Mapping[ir.Value, Moments]) -> Moments:
    """The moments of a tensor; a constant has no variance."""
    if value in moments:
        return moments[value]
    array = constant(value)
    known = array is not None and array.size and array.dtype.kind in "fiub"
    numbers = np.ravel(array).astype(np.float64) if array is not None and known else np.zeros(1)
    return Moments(mean=numbers, variance=np.zeros_like(numbers))


def _curve(node: ir.Node) -> Curve | None:
    if node.op_type == "Clip":
        low, high = (constant(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
        bounds = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
        return lambda x: np.clip(x, *bounds)
    if node.op_type == "LeakyRelu":
        alpha = float(attribute(node, "alpha", 0.01))
        return lambda x: np.where(x > 0, x, alpha * x)
    return _CURVES.get(node.op_type)


def _samples(moments: Moments) -> Floats:
    return np.asarray(moments.mean[:, None] + np.sqrt(moments.variance)[:, None] * _GRID)


def _squared_slope(curve: Curve, moments: Moments) -> Floats:
    """E[f'(x)^2], by differences over the grid; the slope at the mean where there is no variance."""
    spread = Moments(mean=moments.mean, variance=np.maximum(moments.variance, 1e-12))
    x = _samples(spread)
    slopes = np.diff(curve(x), axis=1) / np.diff(x, axis=1)
    between = (_WEIGHTS[1:] + _WEIGHTS[:-1]) / 2
    return np.asarray(slopes**2 @ (between / between.sum()))


def _aligned(left: Moments, right: Moments) -> tuple[Moments, Moments]:
    size = max(left.mean.size, right.mean.size)
    return _sized(left, size), _sized(right, size)


def _sized(moments: Moments, size: int) -> Moments:
    return Moments(mean=resized(moments.mean, size, spread=True), variance=resized(moments.variance, size, spread=True))


def resized(numbers: Floats, size: int, *, spread: bool = False) -> Floats:
    """One number per channel, converted to another number of channels.

    Flattening turns each channel into equally many places: values (`spread`) are repeated, gains of the places add up.
    If neither number divides the other, all channels get the average; without channels, the result is zero.
    """
    have = numbers.size
    if not have:
        return np.zeros(size)
    if have == size or size < 1:
        return numbers
    if size % have == 0:
        return np.repeat(numbers, size // have)
    if have % size == 0:
        places = numbers.reshape(size, -1)
        return np.asarray(places.mean(axis=1) if spread else places.sum(axis=1))
    return np.full(size, numbers.mean() if spread else numbers.sum() / size)


def _channels(value: ir.Value | None) -> int:
    """The number of channels of a tensor; 1 if unknown."""
    shape = None if value is None else value.shape
    size = shape[1] if shape is not None and len(shape) > 1 else 1
    return size if isinstance(size, int) else 1


def _add(gains: dict[ir.Value, Floats], value: ir.Value, gain: Floats) -> None:
    known = gains.get(value)
    if known is not None and known.size != gain.size:
        size = max(known.size, gain.size)
        known, gain = resized(known, size), resized(gain, size)
    gains[value] = gain if known is None else known + gain
