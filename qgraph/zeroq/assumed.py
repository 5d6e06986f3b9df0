"""What can be assumed of a network whose BatchNormalizations were folded away: their outputs were about standard.

A folded layer computes y = W' x + b' with W' = W gamma / std and b' = beta + gamma (b - mean) / std. Over the training
data its outputs have mean beta and standard deviation |gamma|, which training starts at 0 and 1 and moves little:
in three CIFAR networks |beta| is below gamma as a rule, and gamma mostly between 0.3 and 1.4. W' and b' still hold what
cancels the mean and scale of the layer's input on the training data, so inputs that bring every y back to mean 0 and
standard deviation 1 repair what noise gets wrong: in the deeper layers its means are off by half a gamma and more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.folding import constant
from qgraph.runtime import Session
from qgraph.zeroq.loss import Target, standard

_BIASED = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}  # where the layer keeps its bias
_RANGE = 10.0  # a layer whose outputs on noise are this much larger or smaller than standard was never normalised


def assumed_targets(net: ir.Model, noise: Mapping[str, NDArray[np.float32]]) -> list[Target]:
    """Mean 0 and standard deviation 1 in every channel, for every layer that may hold a folded BatchNormalization.

    Those are layers with a bias that feed other layers (heads have none to fold), and whose outputs on `noise` are of
    the order of 1.
    """
    channels = {
        str(n.outputs[0].name): bias.size
        for n in net.graph
        if n.op_type in _BIASED and n.domain == "" and (bias := _bias(n)) is not None and _feeds_a_layer(n)
    }
    if not channels:
        return []
    outputs = Session(net, outputs=list(channels), threads=1).run(noise)
    plausible = [name for name in channels if 1 / _RANGE < outputs[name].std() < _RANGE]
    return [standard(name, channels[name]) for name in plausible]


def _bias(node: ir.Node) -> NDArray[np.generic] | None:
    position = _BIASED[node.op_type]
    return constant(node.inputs[position]) if len(node.inputs) > position else None


def _feeds_a_layer(node: ir.Node) -> bool:
    """Whether a path leads from `node` to another convolution or matrix product."""
    seen: set[ir.Node] = set()
    pending = _readers(node)
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        if current.op_type in _BIASED or current.op_type == "MatMul":
            return True
        seen.add(current)
        pending.extend(_readers(current))
    return False


def _readers(node: ir.Node) -> list[ir.Node]:
    return [use.node for value in node.outputs for use in value.uses()]
