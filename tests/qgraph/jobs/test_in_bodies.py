"""Products in bodies: dynamic where that is faster and close enough, in floats otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.assess.latency import Latency
from qgraph.jobs import in_bodies
from qgraph.running.sessions import Session

RNG = np.random.default_rng(5)
WIDTH, STEPS = 64, 6


def info(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def cell(scale=1.0):
    """A recurrent cell in a Scan, and a product of its last state."""
    nodes = [
        helper.make_node("MatMul", ["e", "w"], ["m"], name="input"),
        helper.make_node("MatMul", ["s", "r"], ["h"], name="state"),
        helper.make_node("Add", ["m", "h"], ["a"]),
        helper.make_node("Tanh", ["a"], ["next"]),
    ]
    inner = helper.make_graph(nodes, "body", [info("s", ["n", WIDTH]), info("e", ["n", WIDTH])], [info("next", None)])
    outer = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Scan", ["zero", "t"], ["last"], name="scan", body=inner, num_scan_inputs=1),
        helper.make_node("MatMul", ["last", "v"], ["y"], name="out"),
    ]
    arrays = {name: RNG.normal(0, scale / 8, (WIDTH, WIDTH)) for name in "wrv"} | {"zero": np.zeros((4, WIDTH))}
    tensors = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph(outer, "g", [info("x", [4, STEPS, WIDTH])], [info("y", [4, WIDTH])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def samples(count=16):
    return {"x": RNG.normal(0, 1, (count, STEPS, WIDTH)).astype(np.float32)}


@pytest.fixture
def timed(monkeypatch):
    def set_to(ratio, seconds=1.0):
        monkeypatch.setattr(in_bodies, "latency", lambda *_: Latency(ratio, seconds))

    return set_to


def runs(result):
    return {layer.name: layer.runs for layer in result.plan.layers}


def decibels(net, result):
    fed = samples(4)
    (want,), (have,) = (Session(m).run_list(fed) for m in (net.SerializeToString(), result.model))
    return 10 * np.log10(np.square(want).sum() / np.square(want - have).sum())


BODIES = {"scan/body/input", "scan/body/state"}


def test_dynamic_where_it_is_faster(timed):
    timed(0.6)
    net = cell()
    result = qgraph.quantize(net, samples(), measure=False)
    assert {name for name, how in runs(result).items() if how == "dynamic"} >= BODIES
    assert "2 products in bodies run on dynamic grids" in result.plan.notes
    assert decibels(net, result) > 25


@pytest.mark.parametrize(("ratio", "seconds"), [(1.2, 1.0), (0.6, 1e-5), (None, None)])
def test_floats_where_it_is_slower_or_nobody_can_tell(timed, ratio, seconds):
    timed(ratio, seconds)
    result = qgraph.quantize(cell(), samples(), measure=False)
    assert {runs(result)[name] for name in BODIES} == {"floats"}


def test_floats_where_outputs_would_miss_the_target(timed):
    """In a chaotic cell, errors grow from step to step."""
    timed(0.6)
    result = qgraph.quantize(cell(scale=30.0), samples(), measure=False)
    assert {runs(result)[name] for name in BODIES} == {"floats"}


def test_static_everywhere_leaves_bodies_in_floats(timed):
    timed(0.6)
    result = qgraph.quantize(cell(), samples(), activations=8, measure=False)
    assert {runs(result)[name] for name in BODIES} == {"floats"}


def test_the_guard_may_give_dynamic_operands_up(timed):
    """The switch of an operand stands in the body, and is measured like any other."""
    timed(0.6)
    net = cell()
    result = qgraph.quantize(net, samples(32), guard=40)
    assert decibels(net, result) > 38
    assert any("scan/body" in note for note in result.plan.notes)
