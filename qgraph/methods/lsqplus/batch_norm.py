"""BatchNormalization kept during training, as in the paper (`LsqPlusConfig.keep_bn`), and folded afterwards.

The result z of a convolution is normalised by the mean m and variance v of its channels over the samples computed
together, here a shard; running averages M, V of these are kept:

    training   y = gain (z - m) / sqrt(v + eps) + shift        afterwards   y = gain (z - M) / sqrt(V + eps) + shift

With k = gain / sqrt(V + eps), the second is a convolution with weight k w, whose codes are those of w for the scale
k scale, and bias k (b - M) + shift; the exported file has no extra nodes. At the start, M and V are measured,
gain = sqrt(V + eps) and shift = M, so that the network computes the same as before.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from qgraph.gradient import Expr, constant, op, tensor
from qgraph.gradient.emit import Emitter
from qgraph.gradient.shapes import count, rank, total
from qgraph.methods.lsqplus.weight_quantizer import Floats

EPSILON = np.float32(1e-5)
MOMENTUM = np.float32(0.1)
STATISTICS = ("mean", "variance")


def normalise_results(net: ir.Model, layers: Iterable[str]) -> list[ir.Value]:
    """Normalise the results of the named nodes by the batch; returns the values `mean:NAME` and `variance:NAME`.

    Adds the inputs `gain:NAME` and `shift:NAME`, with one value per channel.
    """
    nodes = {str(node.name): node for node in net.graph}
    emitter, statistics = Emitter(net.graph), []
    for name in layers:
        z = nodes[name].outputs[0]
        uses = list(z.uses())
        gain, shift = (_input(net.graph, f"{kind}:{name}", z) for kind in ("gain", "shift"))
        y, mean, variance = _normalised(tensor(z), tensor(gain), tensor(shift))
        made = emitter.emit(y, name)
        made.shape, made.type = z.shape, z.type
        for node, index in uses:
            node.replace_input_with(index, made)
        for kind, value in zip(STATISTICS, (mean, variance), strict=True):
            flat = emitter.emit(op.Reshape(value, constant([-1])), name)
            flat.name, flat.shape, flat.type = f"{kind}:{name}", gain.shape, gain.type
            statistics.append(flat)
    net.graph.sort()
    return statistics


def _normalised(z: Expr, gain: Expr, shift: Expr) -> tuple[Expr, Expr, Expr]:
    axes = [a for a in range(rank(z)) if a != 1]
    channels = constant([1, -1, *[1] * (rank(z) - 2)])
    size = count(z, axes)
    mean = total(z, axes) / size
    centred = z - mean
    variance = total(centred * centred, axes) / size
    factor = op.Reshape(gain, channels) / op.Sqrt(variance + float(EPSILON))
    return centred * factor + op.Reshape(shift, channels), mean, variance


def _input(graph: ir.Graph, name: str, result: ir.Value) -> ir.Value:
    channels = result.shape[1] if result.shape is not None else None
    value = ir.Value(name=name, shape=ir.Shape([channels]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    return value


def tracked(running: Floats, batch: Floats) -> Floats:
    """The running statistics after one more batch."""
    return running + MOMENTUM * (batch - running)


def factor(gain: Floats, variance: Floats) -> Floats:
    """k = gain / sqrt(V + eps)."""
    folded: Floats = gain / np.sqrt(variance + EPSILON)
    return folded
