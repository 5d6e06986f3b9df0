"""Eq. 3 of ZeroQ as a graph: the distance of a batch from the statistics in a network's BatchNormalizations.

    L = 1/N sum over images n, layers i, channels c of (mean_nic - mean_ic)^2 + (std_nic - std_ic)^2

The statistics of an image are taken over its positions; layers without positions (N x C) and `per="batch"` use the
whole batch instead. The input counts as one more layer, with mean 0 and standard deviation 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.gradient import Expr, append_all, constant, op, rank, tensor
from qgraph.methods.zeroq.config import Per
from qgraph.methods.zeroq.statistics import BatchNorm

EPSILON = 1e-6  # inside the root, as in the authors' code
LOSS = "distillation_loss"
MEAN, STD = "distillation_mean", "distillation_std"
_FADED = 1e-3  # ignore channels whose gamma is below this share of their layer's largest, or of their own beta


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """The statistics that one tensor should have, per channel.

    They are compared with those of (tensor - shift) / gain + mean, so that the input of a layer can be judged by its
    output. Channels with weight 0 do not count.
    """

    tensor: str
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    gain: NDArray[np.float64]
    shift: NDArray[np.float64]
    weight: NDArray[np.float64]


def target_of(norm: BatchNorm, tensors: Collection[str]) -> Target:
    """The target for a BatchNormalization: on its input, or on its output if the input was folded away."""
    ones = np.ones_like(norm.mean)
    if norm.input in tensors:
        return Target(tensor=norm.input, mean=norm.mean, std=norm.std, gain=ones, shift=norm.mean, weight=ones)
    gamma = np.abs(norm.gain) * norm.std
    alive = gamma > _FADED * np.maximum(np.abs(norm.shift), gamma.max(initial=0.0))
    gain = np.where(alive, norm.gain, 1.0)
    return Target(
        tensor=norm.output, mean=norm.mean, std=norm.std, gain=gain, shift=norm.shift, weight=alive.astype(np.float64)
    )


def standard(name: str, channels: int) -> Target:
    """The target for inputs and for tensors assumed to be normalised: mean 0 and variance 1 in every channel."""
    zeros, ones = np.zeros(channels), np.ones(channels)
    return Target(tensor=name, mean=zeros, std=ones, gain=ones, shift=zeros, weight=ones)


def with_loss(net: ir.Model, targets: Sequence[Target], *, per: Per) -> ir.Model:
    """A copy of `net` that returns the distillation loss, and the means and deviations that it compares.

    Tensors with the same number of images are compared together, as the channels of one wide layer: a few operators
    for the whole network instead of a few dozen per layer.
    """
    model = net.clone()
    values = ir.convenience.create_value_mapping(model.graph)
    opset = model.opset_imports.get("", 1)
    groups: dict[tuple[bool, object], list[Target]] = {}
    for target in targets:
        shape = values[target.tensor].shape or ir.Shape([])
        over_batch = per == "batch" or len(shape) == 2
        groups.setdefault((over_batch, shape[0]), []).append(target)
    found = [
        _distance(group, [tensor(values[t.tensor]) for t in group], over_batch, opset)
        for (over_batch, _), group in groups.items()
    ]
    given = len(model.graph.outputs)
    written = {LOSS: reduce(op.Add, (term for term, _, _ in found))}
    for index, (_, mean, std) in enumerate(found):
        written |= {f"{MEAN}/{index}": mean, f"{STD}/{index}": std}
    append_all(model, written)
    model.graph.outputs[:] = model.graph.outputs[given:]
    return model


def _distance(targets: list[Target], tensors: list[Expr], over_batch: bool, opset: int) -> tuple[Expr, Expr, Expr]:
    """The squared differences of means and deviations, summed over channels and averaged over images (or the batch).

    Also the means and deviations, in the units of the tensors.
    """
    dtype = tensors[0].dtype

    def row(arrays: Sequence[NDArray[np.float64]]) -> Expr:
        return constant(np.concatenate(arrays)[np.newaxis], dtype)

    moments = [_moments(x, opset) for x in tensors]
    mean, square = (op.Concat(*(m[i] for m in moments), axis=1) for i in (0, 1))
    if over_batch:
        mean, square = (reduced("ReduceMean", m, [0], opset) for m in (mean, square))
    spread = op.Max(square - mean * mean, 0.0)
    variance = spread * row([t.gain**-2.0 for t in targets])
    off_mean = (mean - row([t.shift for t in targets])) * row([1.0 / t.gain for t in targets])
    off_std = op.Sqrt(variance + EPSILON) - row([t.std for t in targets])
    squares = (off_mean * off_mean + off_std * off_std) * row([t.weight for t in targets])
    images = op.Cast(op.Squeeze(op.Shape(mean, start=0, end=1)), to=int(dtype))
    return op.ReduceSum(squares, keepdims=0) / images, mean, op.Sqrt(spread)


def _moments(x: Expr, opset: int) -> tuple[Expr, Expr]:
    """Mean and mean square over the positions of every image, both as images x channels."""
    if rank(x) == 2:
        return x, x * x
    if rank(x) == 4:  # kept in the blocked layout of onnxruntime's convolutions, unlike ReduceMean
        pooled = op.GlobalAveragePool(x), op.GlobalAveragePool(x * x)
    else:
        axes = list(range(2, rank(x)))
        pooled = reduced("ReduceMean", x, axes, opset), reduced("ReduceMean", x * x, axes, opset)
    rows = constant([0, -1])
    return op.Reshape(pooled[0], rows), op.Reshape(pooled[1], rows)


def reduced(name: str, x: Expr, axes: list[int], opset: int) -> Expr:
    """A reduction that keeps its axes; from opset 18 on they are an input."""
    if opset >= 18:
        return op[name](x, constant(axes), keepdims=1)
    return op[name](x, axes=axes, keepdims=1)
