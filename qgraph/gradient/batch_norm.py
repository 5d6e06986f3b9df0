"""BatchNormalization in inference form as a fixed gain and shift per channel.

y = x k + (bias - mean k),    k = scale / sqrt(var + epsilon)
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from qgraph.gradient.emit import Emitter
from qgraph.gradient.errors import GradientError
from qgraph.gradient.expression import Expr, constant, op, tensor
from qgraph.gradient.shapes import rank


def batch_norm_as_mul_add(net: ir.Model) -> None:
    """Replace every BatchNormalization of `net` by a Mul and an Add."""
    nodes = [n for n in net.graph if n.op_type == "BatchNormalization" and n.domain == ""]
    for node in nodes:
        if len(node.outputs) > 1:
            raise GradientError(f"BatchNormalization '{node.name}' is in training mode; export in evaluation mode")
        old = node.outputs[0]
        new = Emitter(net.graph).emit(_mul_add(node), str(node.name))
        name, shape, kind = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        net.graph.remove(node, safe=True)
        new.name, new.shape, new.type = name, shape, kind
    TopologicalSortPass()(net)


def _mul_add(node: ir.Node) -> Expr:
    x, scale, bias, mean, variance = (tensor(v) for v in node.inputs if v is not None)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    channels = constant([-1] + [1] * (rank(x) - 2))
    gain = scale / op.Sqrt(variance + epsilon)
    return x * op.Reshape(gain, channels) + op.Reshape(bias - mean * gain, channels)
