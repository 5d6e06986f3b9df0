"""Operators of opset 23 pass through, and the layers beside them are quantized."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.running.sessions import Session

RNG = np.random.default_rng(0)
N = helper.make_node
HEADS, WIDTH, LENGTH = 4, 32, 6


def block():
    """Normalised, projected to queries, keys and values, turned by their positions, attended, and projected back."""
    constants = {name: RNG.normal(0, 0.2, (WIDTH, WIDTH)).astype(np.float32) for name in ("q", "k", "v", "o")}
    angles = np.outer(np.arange(LENGTH), 0.5 ** np.arange(WIDTH // HEADS // 2))
    constants |= {"g": np.ones(WIDTH, np.float32)}
    constants |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    constants |= {"at": np.arange(LENGTH)[None]}
    nodes = [N("RMSNormalization", ["x", "g"], ["n"])]
    nodes += [N("MatMul", ["n", name], [f"{name}p"], name=name) for name in "qkv"]
    nodes += [N("RotaryEmbedding", [f"{s}p", "cos", "sin", "at"], [f"{s}r"], num_heads=HEADS) for s in "qk"]
    nodes += [
        N("Attention", ["qr", "kr", "vp"], ["a"], q_num_heads=HEADS, kv_num_heads=HEADS),
        N("MatMul", ["a", "o"], ["y"], name="o"),
    ]
    shape = [1, LENGTH, WIDTH]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "block", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("activations", [None, 8])
def test_attention_and_what_stands_around_it(activations):
    net = block()
    onnx.checker.check_model(net, full_check=True)
    x = RNG.normal(size=(16, 1, LENGTH, WIDTH)).astype(np.float32)
    result = qgraph.quantize(
        net, [{"x": one} for one in x], activations=activations, method="minmax", measure=False, edge_bits=8
    )
    assert {layer.name: layer.activation_bits for layer in result.layers} == dict.fromkeys("qkvo", activations)
    kept = {node.op_type for node in result.model.graph}
    assert {"RMSNormalization", "RotaryEmbedding", "Attention"} <= kept
    want, have = (Session(m).run_list({"x": x[0]})[0] for m in (net.SerializeToString(), result.model))
    assert 10 * np.log10(np.square(want).sum() / np.square(want - have).sum()) > (35 if activations is None else 30)
