"""Training on graphs that are not stacks of images: one axis, three axes, weights that are outputs, bodies."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.gradient import GradientError
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session

pytestmark = pytest.mark.filterwarnings("ignore:.*training did not improve")
CONFIG = LsqPlusConfig(epochs=1, batch=8)
N = helper.make_node
RNG = np.random.default_rng(0)


def weight(*shape):
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, constants):
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("rank", "settings"), [(1, {}), (1, {"strides": 2}), (1, {"group": 2}), (3, {})])
def test_convolutions_over_any_number_of_axes(rank, settings):
    groups = settings.get("group", 1)
    more = {"strides": [settings["strides"]] * rank} if "strides" in settings else {"group": groups}
    net = model(
        [
            N("Conv", ["x", "w"], ["c"], pads=[1] * (2 * rank), **more),
            N("Relu", ["c"], ["r"]),
            N("Conv", ["r", "v"], ["y"]),
        ],
        [info("x", ["n", 4, *[6] * rank])],
        [info("y", ["n", 4, *[None] * rank])],
        {"w": weight(8, 4 // groups, *[3] * rank), "v": weight(4, 8, *[1] * rank)},
    )
    x = RNG.normal(size=(24, 4, *[6] * rank)).astype(np.float32)
    result = qgraph.finetune(net, x, config=CONFIG, measure=False)
    assert result.epochs[-1].distance is not None


def test_a_weight_that_is_an_output():
    net = model(
        [N("Gemm", ["x", "w", "b"], ["h"]), N("Relu", ["h"], ["r"]), N("Gemm", ["r", "v"], ["y"])],
        [info("x", ["n", 16])],
        [info("y", ["n", 4]), info("w", [16, 8]), info("b", [8])],
        {"w": weight(16, 8), "b": weight(8), "v": weight(8, 4)},
    )
    result = qgraph.finetune(net, RNG.normal(size=(24, 16)).astype(np.float32), config=CONFIG, measure=False)
    assert [v.name for v in result.model.graph.outputs] == ["y", "w", "b"]


def loop(source, result, kind=TensorProto.FLOAT):
    """Three times Abs, which the kinds of numbers share."""
    body = helper.make_graph(
        [N("Abs", ["s"], ["t"]), N("Identity", ["c"], ["d"])],
        "body",
        [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("s", None, kind)],
        [info("d", [], TensorProto.BOOL), info("t", None, kind)],
    )
    return N("Loop", ["k", "yes", source], [result], body=body)


@pytest.mark.parametrize("place", ["before", "beside", "behind", "constant"])
def test_a_loop_that_no_gradient_passes(place):
    nodes = {
        "before": [loop("x", "o"), N("MatMul", ["o", "w"], ["y"])],
        "beside": [N("MatMul", ["x", "w"], ["y"]), loop("x", "z")],
        "behind": [N("MatMul", ["x", "w"], ["y"]), N("ArgMax", ["y"], ["a"]), loop("a", "z", TensorProto.INT64)],
        "constant": [loop("u", "o"), N("Mul", ["x", "o"], ["m"]), N("MatMul", ["m", "w"], ["y"])],
    }[place]
    more = {"beside": [info("z", ["n", 16])], "behind": [info("z", [1, 4], TensorProto.INT64)]}.get(place, [])
    constants = {"w": weight(16, 4), "k": np.array(3), "yes": np.array(True), "u": weight(16)}
    net = model(nodes, [info("x", ["n", 16])], [info("y", ["n", 4]), *more], constants)
    data = RNG.normal(size=(24, 16)).astype(np.float32)
    trained = qgraph.finetune(net, data, config=CONFIG, measure=False)
    assert trained.plan.layers
    outputs = [Session(m).run({"x": data[:4]}) for m in (load(net).ir_model, trained.model)]
    assert list(outputs[0]) == list(outputs[1])
    assert np.abs(outputs[0]["y"] - outputs[1]["y"]).max() < 0.3 * np.abs(outputs[0]["y"]).max()


def test_a_loop_is_named():
    body = helper.make_graph(
        [N("Tanh", ["s"], ["t"]), N("Identity", ["c"], ["d"])],
        "body",
        [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("s", None)],
        [info("d", [], TensorProto.BOOL), info("t", None)],
    )
    net = model(
        [
            N("MatMul", ["x", "w"], ["h"]),
            N("Loop", ["k", "yes", "h"], ["o"], body=body),
            N("MatMul", ["o", "v"], ["y"]),
        ],
        [info("x", ["n", 16])],
        [info("y", ["n", 4])],
        {"w": weight(16, 8), "v": weight(8, 4), "k": np.array(3), "yes": np.array(True)},
    )
    with pytest.raises(GradientError, match="operator Loop of node 'Loop_o' has no gradient rule"):
        qgraph.finetune(net, RNG.normal(size=(24, 16)).astype(np.float32), config=CONFIG, measure=False)
