"""Training on graphs that are not stacks of images: one axis, three axes, weights that are outputs, bodies."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.gradient import GradientError
from qgraph.methods.lsqplus.config import LsqPlusConfig

pytestmark = pytest.mark.filterwarnings("ignore:training did not improve")
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
