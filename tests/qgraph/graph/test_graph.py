"""Layers, roots, and which tensors are quantized."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import is_non_negative, root
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise

RNG = np.random.default_rng(2)


def view_of(proto: onnx.ModelProto) -> GraphView:
    return GraphView(normalise(load(proto)))


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


RESIDUAL = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N,3,8,8] x, float[4,3,3,3] w1, float[4,4,3,3] w2, float[5,4] w3) => (float[N,5] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1)
  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1]>(r1, w2)
  s = Add(c2, r1)
  r2 = Relu(s)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  y = Gemm<transB=1>(f, w3)
}"""


def sites(view):
    return {s.tensor: s for s in view.activation_sites(view.layers)}


def test_residual_network(model_from_text):
    view = view_of(model_from_text(RESIDUAL, w1=array(4, 3, 3, 3), w2=array(4, 4, 3, 3), w3=array(5, 4)))
    assert [(layer.op, layer.output_axis, layer.input_axis) for layer in view.layers] == [
        ("Conv", 0, 1),
        ("Conv", 0, 1),
        ("Gemm", 0, 1),
    ]
    found = sites(view)
    assert list(found) == ["x", "r1", "p", "c2", "r2"]
    assert found["r1"].operand
    assert found["r1"].shared  # by the layer c2 and the sum
    assert found["p"].operand
    assert not found["p"].shared
    assert not found["c2"].operand
    assert found["r1"].non_negative
    assert found["p"].non_negative  # a mean of non-negative values
    assert not found["c2"].non_negative
    assert {view.layers[0].name, view.layers[2].name} == view.edge_layers


def test_shape_readers_do_not_share_a_tensor(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x, float[4,4] w, float[4,3] v) => (float[N,3] y, int64[2] s) {
      h = MatMul(x, w)
      r = Relu(h)
      y = MatMul(r, v)
      s = Shape(r)
    }"""
    found = sites(view_of(model_from_text(text, w=array(4, 4), v=array(4, 3))))
    assert not found["r"].shared


def test_roots_look_through_operators_that_move_values(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,3,8,8] x, float[4,3,3,3] w, float[4,4,1,1] v, int64[8] pads) => (float[N,4,6,6] y) {
      c = Conv<pads=[1,1,1,1]>(x, w)
      r = Relu(c)
      m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
      p = Pad(m, pads)
      y = Conv(p, v)
    }"""
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    view = view_of(model_from_text(text, w=array(4, 3, 3, 3), v=array(4, 4, 1, 1), pads=pads))
    assert root(view.layers[1].input).name == "r"
    assert set(sites(view)) == {"x", "r", "y"}


def test_padding_with_a_value_is_not_transparent(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,3,8,8] x, float[4,3,1,1] w, int64[8] pads, float one) => (float[N,4,10,10] y) {
      p = Pad(x, pads, one)
      y = Conv(p, w)
    }"""
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    view = view_of(model_from_text(text, w=array(4, 3, 1, 1), pads=pads, one=np.float32(1).reshape(())))
    assert root(view.layers[0].input).name == "p"


def test_what_cannot_be_quantized_says_why(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x, float[4,3] w, double[3,2] v) => (double[N,2] y, float[N,N] g) {
      u = Transpose(x)
      [dynamic] g = MatMul(x, u)
      [good] h = MatMul(x, w)
      d = Cast<to=11>(h)
      [double] y = MatMul(d, v)
    }"""
    view = view_of(model_from_text(text, w=array(4, 3), v=RNG.standard_normal((3, 2))))
    assert [layer.name for layer in view.layers] == ["good"]
    assert view.skipped == {
        "dynamic": "its weight is not a constant",
        "double": "its weight is float64, and only those of float32, float16 and bfloat16 are quantized",
    }


def test_constant_on_the_left_of_a_matmul(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[4,N] x, float[3,4] w) => (float[3,N] y) { y = MatMul(w, x) }"""
    (layer,) = view_of(model_from_text(text, w=array(3, 4))).layers
    assert (layer.weight_index, layer.output_axis, layer.input_axis) == (0, 0, -2)
    assert layer.input.name == "x"


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("Relu(x)", True),
        ("Sigmoid(x)", True),
        ("Clip(x, zero, six)", True),
        ("Clip(x, one, six)", False),
        ("Tanh(x)", False),
    ],
)
def test_sign_known_from_the_graph(model_from_text, operator, expected):
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x, float zero, float six, float one) => (float[N,4] y) {{ y = {operator} }}"""
    scalar = {"zero": 0.0, "six": 6.0, "one": -1.0}
    view = view_of(model_from_text(text, **{k: np.float32(v).reshape(()) for k, v in scalar.items()}))
    assert is_non_negative(view.values["y"]) is expected


def test_layers_in_subgraphs_are_named():
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x, bool c) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
      y = If(c) <then_branch = t () => (float[N,3] a) { [inner] a = MatMul(x, w) },
                 else_branch = e () => (float[N,3] b) { [other] b = MatMul(x, w) }>
    }"""
    view = view_of(onnx.parser.parse_model(text))
    assert view.layers == ()
    small = "its weight is so small that scales and operators would take more than it saves"
    assert view.skipped == dict.fromkeys(("If_y/then_branch/inner", "If_y/else_branch/other"), small)
