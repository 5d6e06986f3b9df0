"""Einsum with a constant, written as the matrix product that it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qgraph
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.sessions import Session

RNG = np.random.default_rng(0)
SIZES = dict(zip("abcdef", (3, 5, 24, 4, 32, 6), strict=True))


def einsum(equation, constant):
    """A model of one Einsum, whose operand with this index is a constant, and samples of the other."""
    terms = equation.split("->")[0].split(",")
    w, x = (RNG.normal(size=[SIZES[c] for c in terms[i]]).astype(np.float32) for i in (constant, 1 - constant))
    names = ["w", "x"] if constant == 0 else ["x", "w"]
    nodes = [helper.make_node("Einsum", names, ["y"], name="product", equation=equation)]
    shapes = {"x": ["n", *x.shape[1:]], "y": [None] * len(equation.split("->")[1])}
    values = {name: helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "g", [values["x"]], [values["y"]], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), x


@pytest.mark.parametrize(
    ("equation", "constant", "operators"),
    [
        ("ac,ce->ae", 1, ["MatMul"]),
        ("abc,ec->abe", 1, ["MatMul"]),
        ("ec,abc->abe", 0, ["MatMul"]),
        ("abc,cde->abde", 1, ["MatMul", "Reshape"]),
        ("abdc,dce->abe", 1, ["Reshape", "MatMul"]),
        ("abdc,cfde->abef", 1, ["Reshape", "MatMul", "Reshape"]),
        ("abc,ce->aeb", 1, ["Einsum"]),
        ("abc,bce->abe", 1, ["Einsum"]),
        ("ac,ce->ace", 1, ["Einsum"]),
        ("abcd,cde->abe", 0, ["Einsum"]),
    ],
)
def test_products_with_a_constant_become_matrix_products(equation, constant, operators):
    net, x = einsum(equation, constant)
    rewritten = normalise(load(net))
    assert [node.op_type for node in rewritten.graph] == operators
    before, after = (Session(m).run_list({"x": x})[0] for m in (net.SerializeToString(), rewritten.ir_model))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)


def test_they_are_quantized():
    net, x = einsum("abc,cde->abde", 1)
    result = qgraph.quantize(net, {"x": np.repeat(x, 8, axis=0)}, method="minmax", measure=False)
    assert [(layer.op, layer.activation_bits) for layer in result.layers] == [("MatMul", 8)]
    want, have = (Session(m).run_list({"x": x})[0] for m in (net.SerializeToString(), result.model))
    assert np.square(want).sum() / np.square(want - have).sum() > 10**3.5
    assert [o.name for o in onnx.ModelProto.FromString(net.SerializeToString()).graph.output] == ["y"]
