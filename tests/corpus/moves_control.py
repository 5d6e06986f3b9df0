"""Moves with graphs inside: recurrence, control flow, functions."""

from __future__ import annotations

import numpy as np
import onnx
from nets import FLOAT, Net, move
from onnx import TensorProto, helper


@move
def recurrent(net: Net) -> bool:
    x = net.pick(3)
    if x is None:
        return False
    time, batch, features = net.shapes[x]
    op, gates = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][int(net.rng.integers(3))]
    hidden = 3
    weights = [net.weight((1, gates * hidden, features)), net.weight((1, gates * hidden, hidden))]
    y = net.add(op, [x, *weights, "", ""], None, hidden_size=hidden)
    axes = {"axes": [1]} if net.opset < 13 else {}
    net.add("Squeeze", [y] if axes else [y, net.constant([1])], (time, batch, hidden), **axes)
    return True


def _body(net: Net, x: str, shape: tuple[int, ...], op: str, weight: str) -> onnx.GraphProto:
    """A subgraph that reads tensors and weights of the graph around it."""
    hidden, result = net.name(), net.name()
    nodes = [helper.make_node("MatMul", [x, weight], [hidden]), helper.make_node(op, [hidden], [result])]
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info(result, FLOAT, shape)])


@move
def branch(net: Net) -> bool:
    x = net.pick(2)
    if x is None or net.opset < 9:
        return False
    rows, inner = net.shapes[x]
    weight, condition = net.weight((inner, inner)), net.constant(bool(net.rng.random() < 0.5), np.bool_)
    branches = {
        f"{which}_branch": _body(net, x, (rows, inner), op, weight)
        for which, op in (("then", "Relu"), ("else", "Tanh"))
    }
    net.add("If", [condition], (rows, inner), **branches)
    return True


@move
def loop(net: Net) -> bool:
    """x <- tanh(x w), three times."""
    x = net.pick(2)
    if x is None or net.opset < 9:
        return False
    rows, inner = net.shapes[x]
    weight = net.weight((inner, inner))
    step, keep_in, state, keep_out, product, result = (net.name() for _ in range(6))
    body = helper.make_graph(
        [
            helper.make_node("MatMul", [state, weight], [product]),
            helper.make_node("Tanh", [product], [result]),
            helper.make_node("Identity", [keep_in], [keep_out]),
        ],
        "body",
        [
            helper.make_tensor_value_info(step, TensorProto.INT64, []),
            helper.make_tensor_value_info(keep_in, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, FLOAT, (rows, inner)),
        ],
        [
            helper.make_tensor_value_info(keep_out, TensorProto.BOOL, []),
            helper.make_tensor_value_info(result, FLOAT, (rows, inner)),
        ],
    )
    net.add("Loop", [net.constant(3), net.constant(True, np.bool_), x], (rows, inner), body=body)
    return True


@move
def function(net: Net) -> bool:
    x = net.pick(2)
    if x is None or net.opset < 10:
        return False
    rows, inner = net.shapes[x]
    name = f"Block{len(net.functions)}"
    nodes = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    imports = [helper.make_opsetid("", net.opset)]
    net.functions.append(helper.make_function("local", name, ["a", "b"], ["d"], nodes, imports))
    net.add(name, [x, net.weight((inner, 4))], (rows, 4), domain="local")
    return True
