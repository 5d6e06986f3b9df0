"""Layers in the branches of Ifs: observed there, and run on integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.graph.sites import GraphView
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data
from tests.qgraph.graph.in_bodies import decibels, make_one_channel_loud

N = helper.make_node
UNTAKEN = pytest.mark.filterwarnings("ignore:the (then|else) branch of If")
RNG = np.random.default_rng(0)
HELD = {f"w{k}": RNG.normal(0, 0.2, (16, 16, 3, 3)).astype(np.float32) for k in range(4)}


def info(name, shape=("n", 16, 8, 8), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def layers(first: int, source: str, prefix: str) -> list[onnx.NodeProto]:
    """Two convolutions with a ReLU between them; their tensors have the same names in every branch."""
    return [
        N("Conv", [source, f"w{first}"], ["a"], name=f"{prefix}1", pads=[1, 1, 1, 1]),
        N("Relu", ["a"], ["b"]),
        N("Conv", ["b", f"w{first + 1}"], ["k"], name=f"{prefix}2", pads=[1, 1, 1, 1]),
        N("Relu", ["k"], ["d"]),
    ]


def branch(nodes: list[onnx.NodeProto], result: str = "d") -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], [info(result, None)])


def model(*, deep: bool = False) -> onnx.ModelProto:
    """`y` is computed in one of two branches; `deep`: in a branch of a branch."""
    then, other = branch(layers(0, "x", "t")), branch(layers(2, "x", "e"))
    if deep:
        then = branch([N("If", ["c"], ["z"], name="inner", then_branch=then, else_branch=other)], "z")
        other = branch([N("Neg", ["x"], ["m"])], "m")
    held = [numpy_helper.from_array(array, name) for name, array in HELD.items()]
    choice = N("If", ["c"], ["y"], name="If", then_branch=then, else_branch=other)
    graph = helper.make_graph([choice], "g", [info("x"), info("c", [], TensorProto.BOOL)], [info("y")], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(cond: bool, count: int = 16) -> dict[str, np.ndarray]:
    x = np.random.default_rng(3).normal(size=(count, 16, 8, 8)).astype(np.float32)
    return {"x": x, "c": np.array(cond)}


@pytest.mark.parametrize("deep", [False, True])
def test_tensors_of_a_branch_are_observed_in_the_runs_that_take_it(deep):
    net = normalise(load(model(deep=deep)))
    read = {layer.name.rsplit("/")[-1]: str(layer.input.name) for layer in GraphView(net).observed}
    taken, other = read["t2"], read["e2"]
    assert taken != other
    session = Session(net.ir_model, outputs=[taken, other])
    given = feeds(True)
    seen = session.run(given)
    inside = np.maximum(Session(first_conv().SerializeToString()).run_list({"x": given["x"]})[0], 0)
    np.testing.assert_allclose(seen[taken], inside, rtol=1e-4, atol=1e-5)
    assert seen[other].size == 0
    observed = observe(net, open_data(given, net))
    assert observed.range_of(taken) == pytest.approx((inside.min(), inside.max()), rel=1e-4)
    assert observed[other].count == 0


def first_conv() -> onnx.ModelProto:
    held = [numpy_helper.from_array(HELD["w0"], "w0")]
    nodes = [N("Conv", ["x", "w0"], ["y"], pads=[1, 1, 1, 1])]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@UNTAKEN
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("deep", [False, True])
def test_a_branch_runs_on_integers(deep, bits):
    net = model(deep=deep)
    result = qgraph.quantize(net, feeds(True), weights=bits, activations=8, measure=False, method="minmax")
    path = "If/then_branch/inner/then_branch/" if deep else "If/then_branch/"
    kernels = {layer.name: layer.kernel for layer in inspect_fused(load(result.model)).layers}
    assert {name: kernel for name, kernel in kernels.items() if name.startswith(f"{path}t")} == {
        f"{path}t1": "QLinearConv",
        f"{path}t2": "QLinearConv",
    }
    assert decibels(net, result, feeds(True)) > (30 if bits == 8 else 12)
    if not deep:  # else the other branch has no layer
        assert decibels(net, result, feeds(False)) > (30 if bits == 8 else 12)


@UNTAKEN
def test_a_branch_that_no_sample_takes_keeps_floats_and_it_is_said():
    net = model()
    plan = qgraph.quantize(net, feeds(True), activations=8, measure=False, method="minmax").plan
    assert {quant.name: quant.runs for quant in plan.layers} == {
        "If/then_branch/t1": "integers",
        "If/then_branch/t2": "integers",
        "If/else_branch/e1": "floats",
        "If/else_branch/e2": "floats",
    }
    why = {kept.name: kept.why for kept in plan.kept_float}
    assert "no sample takes its branch" in why["If/else_branch/e1"]
    inside = {quant.tensor for quant in plan.activations}
    view = GraphView(normalise(load(net)))
    taken = view.by_name["If/then_branch/t1"].node.graph
    assert inside
    assert {view.values[tensor].graph for tensor in inside} == {taken}


@UNTAKEN
def test_the_guard_gives_up_grids_of_a_branch():
    net = model()
    make_one_channel_loud(net)
    plain = qgraph.quantize(net, feeds(True), activations=8, measure=False, method="minmax")
    assert decibels(net, plain, feeds(True)) < 15
    guarded = qgraph.quantize(net, feeds(True), activations=8, guard=20, method="minmax")
    assert decibels(net, guarded, feeds(True)) > 20


def test_a_normalization_in_a_branch_is_folded():
    rng = np.random.default_rng(4)
    norm = [N("BatchNormalization", ["a", "g", "o", "m", "v"], ["d"], name="bn")]
    then = branch([N("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]), *norm])
    net = model()
    net.graph.node[0].attribute[0].g.CopyFrom(then)
    net.graph.initializer.extend(
        numpy_helper.from_array(np.abs(rng.normal(1, 0.3, 16)).astype(np.float32), name) for name in "gomv"
    )
    folded = normalise(load(net))
    assert "BatchNormalization" not in {node.op_type for node in GraphView(folded).nodes}
    want, have = (Session(m).run_list(feeds(True))[0] for m in (net.SerializeToString(), folded.ir_model))
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)
