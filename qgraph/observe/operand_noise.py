"""The error that rounding adds to each channel of an operand, and its effect on a layer, in closed form (ACIQ, Eq. 3).

The distribution of a channel is the rectified Laplace or Gaussian with its mean and variance
(`channel_laws.channel_prior`), above zero after a ReLU, otherwise above the tensor's smallest value. Mean and mean
square of the error e = Q(x) - x are integrals of that distribution over the cells of the grid. The mean error matters:
clipping lowers all values, rounding pulls those of rare channels to zero, and a layer adds up what they have in common:

    noise_c = mean over positions of (sum_t a_ct + shift_c)^2 + sum_t u_t sum_k [(W^q_ckt)^2 Var e_k + D_ckt^2 Var x_k]
    a_ct    = sum_k W^q_ckt E[e_k] + D_ckt E[x_k],    D = W^q - W

over taps t and operand channels k; u_t is the share of positions at which tap t reads the operand rather than padding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer, attribute
from qgraph.graph.sums import output_sums
from qgraph.observe.channel_laws import ChannelPrior, channel_prior
from qgraph.plan.plan import ActivationQuant
from qmath.error import cell_integrals

FINEST = 5  # bits; beyond that, the mean rounding error is negligible
BEYOND = 4  # times the codes of a grid: levels for a tail that no value reaches
SILENT = 1e-9  # mean taken for a channel that never fires, relative to the tensor's
Floats = NDArray[np.float64]


def channel_noise(grid: ActivationQuant, statistics: qmath.Statistics) -> tuple[Floats, Floats]:
    """E[e] and E[e^2] of every channel under its distribution, in the units of the tensor and their square.

    A tail beyond a grid that its channel never left is rounded, not clipped. If all of a channel rounds to zero, e =
    -x.
    """
    channels = statistics.channels
    if channels is None:
        raise ValueError("statistics per channel are needed")
    floor = min(float(statistics.min), 0.0)
    prior = channel_prior(statistics, floor=floor, faintest=SILENT)
    step = np.broadcast_to(grid.scale * np.asarray(grid.channel_scale or 1.0), prior.heavy.shape)
    highest = np.broadcast_to(np.asarray(grid.channel_qmax), step.shape)
    clipped = channels.max > (highest - grid.zero_point + 0.5) * step
    count = np.where(clipped, highest + 1, BEYOND * (highest + 1))
    mean, square = np.empty(step.shape), np.empty(step.shape)
    for levels in np.unique(count):
        alike = count == levels
        found = _in_steps(prior, step, alike, np.arange(float(levels)) - grid.zero_point - floor / grid.scale)
        mean[alike], square[alike] = found[0] * step[alike], found[1] * step[alike] ** 2
    vanishes = np.maximum(channels.max, -channels.min) < step / 2
    exact = np.square(channels.mean) + channels.variance
    return np.where(vanishes, -channels.mean, mean), np.where(vanishes, exact, square)


def _in_steps(prior: ChannelPrior, step: Floats, chosen: NDArray[np.bool_], levels: Floats) -> tuple[Floats, Floats]:
    """E[e] and E[e^2] of the chosen channels in steps, for levels in steps above the distribution's floor."""
    found = []
    for law in (prior.laplace, prior.gaussian):
        unit = type(law)((law.loc / step)[chosen], (law.scale / step)[chosen], True)
        between = (levels[1:] + levels[:-1]) / 2
        atom = unit.unit_tail(np.asarray(unit.loc) / unit.scale, 0)
        at_zero = levels[np.searchsorted(between, 0.0)]
        first, second = (cell_integrals(unit, levels, between, order=n).sum(axis=-1) for n in (1, 2))
        found.append((atom * at_zero - first, atom * at_zero**2 + second))
    heavy = prior.heavy[chosen]
    return np.where(heavy, found[0][0], found[1][0]), np.where(heavy, found[0][1], found[1][1])


def tap_sums(layer: Layer, weight: Floats, values: Floats) -> Floats:
    """sum_k weight_ckt values_k per output channel and tap, shape (channels, taps); one tap for all layers but Conv."""
    if layer.op != "Conv":
        return output_sums(layer, weight, values)[:, None]
    outputs, inputs = weight.shape[:2]
    taps = weight.reshape(layer.groups, outputs // layer.groups, inputs, -1)
    return np.einsum("goit,gi->got", taps, values.reshape(layer.groups, -1)).reshape(outputs, -1)


def coverage(layer: Layer) -> Floats:
    """The share of positions at which two taps of a Conv both read the operand rather than padding, (taps, taps)."""
    if layer.op != "Conv":
        return np.ones((1, 1))
    kernel, shape = layer.weight_array().shape[2:], list(layer.input.shape or ())[2:]
    result: Floats = np.ones((1, 1))
    for axis, size in enumerate(kernel):
        length = shape[axis] if axis < len(shape) else None
        along = _coverage_along(layer, axis, size, length if isinstance(length, int) else None)
        result = np.asarray(np.kron(result, along), np.float64)
    return result


def _coverage_along(layer: Layer, axis: int, size: int, length: int | None) -> Floats:
    mode = str(attribute(layer.node, "auto_pad", "NOTSET"))
    if length is None or mode not in ("NOTSET", "VALID"):
        return np.ones((size, size))
    rank = layer.weight_array().ndim - 2
    pads = [0] * (2 * rank) if mode == "VALID" else list(attribute(layer.node, "pads", [0] * (2 * rank)))
    stride = int(list(attribute(layer.node, "strides", [1] * rank))[axis])
    apart = int(list(attribute(layer.node, "dilations", [1] * rank))[axis])
    before, after = int(pads[axis]), int(pads[rank + axis])
    positions = np.arange(0, length + before + after - apart * (size - 1), stride)
    at = positions[:, None] - before + apart * np.arange(size)
    inside = ((at >= 0) & (at < length)).astype(np.float64)
    return inside.T @ inside / max(len(positions), 1)
