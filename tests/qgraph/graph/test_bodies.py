"""Tensors that are read inside the bodies of If, Loop and Scan, at any depth."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

import qgraph
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.sessions import Session

pytestmark = pytest.mark.filterwarnings("ignore:the (then|else) branch of If")  # that no sample takes

N = helper.make_node


def info(name, shape=None, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def body(nodes, outputs, inputs=(), name="body"):
    return helper.make_graph(nodes, name, list(inputs), [info(o) for o in outputs])


def weights(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def model(nodes, inputs, outputs, constants):
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(made)
    return made


def branches(then, other, cond="cond", out="i"):
    return N("If", [cond], [out], then_branch=then, else_branch=other)


@pytest.mark.parametrize("activations", [8, None])
@pytest.mark.parametrize("flat", [False, True])
def test_a_branch_reads_the_input_that_layers_read(agreement, flat, activations):
    shape = [4, 2, 8] if flat else [4, 16]
    start = [N("Flatten", ["x"], ["f"])] if flat else []
    inner = [N("Flatten", ["x"], ["bf"])] if flat else []
    then = body([*inner, N("Gemm", ["bf" if flat else "x", "w"], ["t"])], ["t"])
    other = body([N("Identity", ["h"], ["e"])], ["e"])
    net = model(
        [*start, N("Gemm", ["f" if flat else "x", "w"], ["h"]), branches(then, other), N("Gemm", ["i", "v"], ["y"])],
        [info("x", shape), info("cond", [], TensorProto.BOOL)],
        [info("y", [4, 3])],
        weights(w=(16, 8), v=(8, 3)),
    )
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for cond in (True, False):
        assert agreement(net, {"x": x, "cond": np.array(cond)}, activations=activations) > 22


def test_a_layer_that_only_a_branch_reads(agreement):
    then = body([N("Relu", ["c"], ["t"])], ["t"])
    other = body([N("Neg", ["c"], ["e"])], ["e"])
    net = model(
        [N("Conv", ["x", "w"], ["c"]), branches(then, other), N("Conv", ["i", "v"], ["y"])],
        [info("x", [2, 4, 6, 6]), info("cond", [], TensorProto.BOOL)],
        [info("y", [2, 4, 6, 6])],
        weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1)),
    )
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)
    assert agreement(net, {"x": x, "cond": np.array(True)}) > 22
    assert agreement(net, {"x": x, "cond": np.array(False)}, activations=None) > 22


def nested():
    """A branch in a branch reads the layer's result, moved there by operators that carry codes."""
    deep = branches(
        body([N("Transpose", ["r"], ["d1"], perm=[1, 0])], ["d1"]), body([N("Neg", ["r"], ["d2"])], ["d2"]), out="d"
    )
    then = body([deep, N("Transpose", ["r"], ["b"], perm=[0, 1]), N("Add", ["d", "b"], ["t"])], ["t"])
    other = body([N("Identity", ["k"], ["e"])], ["e"])
    return model(
        [
            N("MatMul", ["x", "w"], ["h"]),
            N("Relu", ["h"], ["r"]),
            branches(then, other),
            N("MatMul", ["i", "v"], ["m"]),
            N("MatMul", ["r", "v"], ["n"]),
            N("Add", ["m", "n"], ["y"]),
        ],
        [info("x", [8, 16]), info("cond", [], TensorProto.BOOL)],
        [info("y", [8, 8])],
        weights(w=(16, 8), v=(8, 8)) | {"k": np.zeros((8, 8), np.float32)},
    )


def test_a_branch_in_a_branch(agreement):
    x = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
    assert agreement(nested(), {"x": x, "cond": np.array(True)}) > 22


def test_what_a_body_reads_is_before_what_follows_its_operator():
    view = GraphView(normalise(load(nested())))
    assert view.edge_layers == {"MatMul_h", "MatMul_m", "MatMul_n"}
    assert view.skipped == {}


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_loops_read_the_input_and_a_layer(agreement, kind):
    if kind == "Loop":
        inputs = [info("n", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("s")]
        steps = [N("Add", ["s", "r"], ["s1"]), N("MatMul", ["x", "w"], ["q"]), N("Add", ["s1", "q"], ["s2"])]
        inner = helper.make_graph(
            [*steps, N("Identity", ["c"], ["c2"])], "b", inputs, [info("c2", [], TensorProto.BOOL), info("s2")]
        )
        loop = N("Loop", ["three", "yes", "r"], ["o"], body=inner)
    else:
        steps = [
            N("Add", ["s", "row"], ["s1"]),
            N("ReduceSum", ["x"], ["q"], keepdims=0),
            N("Add", ["s1", "q"], ["s2"]),
        ]
        inner = helper.make_graph(
            [*steps, N("Identity", ["s2"], ["out"])],
            "b",
            [info("s", [8]), info("row", [8])],
            [info("s2", [8]), info("out", [8])],
        )
        loop = N("Scan", ["zero", "r"], ["last", "o"], body=inner, num_scan_inputs=1)
    net = model(
        [N("MatMul", ["x", "w"], ["h"]), N("Relu", ["h"], ["r"]), loop, N("MatMul", ["o", "v"], ["y"])],
        [info("x", [4, 16])],
        [info("y", [4, 8])],
        weights(w=(16, 8), v=(8, 8)) | {"three": np.array(3), "yes": np.array(True), "zero": np.zeros(8, np.float32)},
    )
    x = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
    assert agreement(net, {"x": x}) > 22


@pytest.mark.parametrize("weights_", [8, "mixed"])
def test_layers_in_bodies_are_quantized_or_named(weights_):
    then = body([N("MatMul", ["r", "v"], ["t"], name="inside")], ["t"])
    other = body([N("Identity", ["r"], ["e"])], ["e"])
    net = model(
        [N("MatMul", ["x", "w"], ["h"]), N("Relu", ["h"], ["r"]), branches(then, other, out="y")],
        [info("x", [4, 16]), info("cond", [], TensorProto.BOOL)],
        [info("y", [4, 40])],
        weights(w=(16, 40), v=(40, 40)),
    )
    x = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
    feeds = {"x": x, "cond": np.array(True)}
    result = qgraph.quantize(net, feeds, weights=weights_)
    name = "If_y/then_branch/inside"
    assert [(layer.name, layer.activation_bits) for layer in result.layers if layer.name == name] == [(name, 8)]
    kept = qgraph.quantize(net, feeds, weights=weights_, keep=(name,)).plan.kept_float
    assert [(k.why, k.bytes) for k in kept if k.name == name] == [(f"asked for by name: {name}", 6400)]


def test_search_beside_a_body_that_reads_a_layer():
    """Once the Loop is cut off, what only its body reads is not needed any more."""
    state = [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("s")]
    nodes = [N("Add", ["s", "h"], ["a"]), N("Tanh", ["a"], ["next"]), N("Identity", ["go"], ["on"])]
    inner = helper.make_graph(nodes, "body", state, [info("on", [], TensorProto.BOOL), info("next")])
    net = model(
        [
            N("MatMul", ["x", "w"], ["h"]),
            N("Loop", ["three", "yes", "h"], ["o"], body=inner),
            N("MatMul", ["o", "v"], ["y"]),
        ],
        [info("x", ["n", 16])],
        [info("y", ["n", 3])],
        weights(w=(16, 8), v=(8, 3)) | {"three": np.array(3), "yes": np.array(True)},
    )
    x = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)
    quick = qgraph.SearchConfig(ingredients=("clip",), clips=(0.8, 1.0))
    found = qgraph.search(net, {"x": x}, weights=4, config=quick)
    assert {layer.name for layer in found.plan.layers} == {"MatMul_h", "MatMul_y"}


def small_loop(kernel=(16, 16, 3, 3)):
    """Two convolutions in a Loop, with constants of their own."""
    state = [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("s", [1, 16, 8, 8])]
    nodes = [
        N("Conv", ["s", "weight", "bias"], ["c"], name="conv", pads=[1] * 4),
        N("Conv", ["c", "other"], ["d"], name="second", pads=[1] * 4),
        N("Tanh", ["d"], ["next"]),
        N("Identity", ["go"], ["on"]),
    ]
    tensors = [numpy_helper.from_array(a, n) for n, a in weights(weight=kernel, bias=(16,), other=kernel).items()]
    inner = helper.make_graph(nodes, "body", state, [info("on", [], TensorProto.BOOL), info("next")], tensors)
    return model(
        [N("Loop", ["three", "", "x"], ["y"], name="loop", body=inner)],
        [info("x", [1, 16, 8, 8])],
        [info("y", [1, 16, 8, 8])],
        {"three": np.array(3)},
    )


@pytest.mark.parametrize("form", [lambda net: net, ir.from_proto])
def test_constants_of_a_given_model_keep_their_names(form):
    given = form(small_loop())

    def content():
        proto = given if isinstance(given, onnx.ModelProto) else ir.to_proto(given)
        return proto.SerializeToString()

    before = content()
    qgraph.quantize(given, activations=None, measure=False)
    assert content() == before


@pytest.mark.parametrize("bits", [8, 4])
def test_a_convolution_in_a_body_has_its_weight_there(bits, tmp_path):
    """onnxruntime lays out channels in blocks only where the constant is of the same graph."""
    net = small_loop()
    result = qgraph.quantize(net, activations=None, weights=bits, edge_bits=bits, measure=False)
    Session(result.model, optimized_path=tmp_path / "optimised.onnx")
    (loop,) = [node for node in onnx.load(tmp_path / "optimised.onnx").graph.node if node.op_type == "Loop"]
    inner = next(a.g for a in loop.attribute if a.name == "body")
    read = {node.input[1] for node in inner.node if node.op_type in ("Conv", "FusedConv")}
    assert len(read & {tensor.name for tensor in inner.initializer}) == 2
