"""A warning has the figure of every output that is worse than its bits usually leave it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.assess.output_quality import OutputQuality
from qgraph.assess.verdict import Verdict
from qgraph.errors import QualityWarning
from qgraph.jobs.below import expected_db, warn_below, warn_of_result

RNG = np.random.default_rng(0)


def verdict(db):
    outputs = (OutputQuality(name="y", sqnr_db=db), OutputQuality(name="z", sqnr_db=60.0))
    return Verdict(basis="held-out", samples=8, nbytes=1, float_nbytes=2, outputs=outputs)


def plan_of(digits, **bits):
    return qgraph.quantize(digits, activations=None, measure=False, **bits).plan


def test_the_line_follows_the_bits(digits):
    assert expected_db(plan_of(digits)) == 25.0
    assert expected_db(plan_of(digits, reduce_range=True)) == 25.0
    assert expected_db(plan_of(digits, weights=4)) == 20.0


@pytest.mark.filterwarnings("error")
def test_the_figure_is_in_the_warning():
    warn_below(verdict(25.1), 25.0)
    with pytest.warns(QualityWarning, match="output 'y' is at 24.2 dB, below the target of 25 dB.*guard=25.0 gives up"):
        warn_below(verdict(24.2), 25.0)


@pytest.mark.parametrize(("db", "target"), [(17.4, 20), (24.2, 25)])
def test_the_target_is_the_one_of_the_guard_where_that_is_missed(digits, db, target):
    result = SimpleNamespace(quality=verdict(db), plan=plan_of(digits), layers_unsimulated=())
    with pytest.warns(QualityWarning, match=f"below the target of {target} dB; guard={target}.0 gives up"):
        warn_of_result(result)


def test_it_says_what_is_missed():
    classes = OutputQuality(name="y", sqnr_db=36.6, same_argmax=0.75, decisions=80)
    better = OutputQuality(name="z", sqnr_db=30.0)  # fewer decibels, and enough
    found = Verdict(basis="held-out", samples=80, nbytes=1, float_nbytes=2, outputs=(better, classes))
    with pytest.warns(QualityWarning, match="at 36.6 dB, with 75.0% of the classes, below the target of 98%"):
        warn_below(found, 25.0)


def test_noise_is_named_and_its_classes_do_not_count(recwarn):
    noise = dataclasses.replace(verdict(24.2), basis="noise")
    with pytest.warns(QualityWarning, match="at 24.2 dB.*random noise, for lack of data: data gives"):
        warn_below(noise, 25.0)
    classes = OutputQuality(name="y", sqnr_db=36.6, same_argmax=0.75, decisions=80)
    warn_below(dataclasses.replace(noise, outputs=(classes,)), 25.0)
    assert not recwarn


def hard(name=""):
    """The difference of two products that are nearly equal: 8 bits leave about 22 dB of it."""
    u = RNG.normal(size=(16, 8))
    weights = {"u": u, "v": u + 0.1 * RNG.normal(size=(16, 8))}
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["a"], name=name),
        helper.make_node("MatMul", ["x", "v"], ["b"], name=name),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 16), ("y", 8)))
    tensors = [numpy_helper.from_array(array.astype(np.float32), n) for n, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def figures(caught):
    return [str(w.message) for w in caught if w.category is QualityWarning and " dB" in str(w.message)]


def test_every_job_warns(recwarn, monkeypatch):
    monkeypatch.setattr("qgraph.jobs.quantize.guarded", lambda given, result, **_: result)  # it would repair this
    model, data = hard(), RNG.normal(size=(64, 16)).astype(np.float32)
    result = qgraph.quantize(model, data, activations=8)
    figure = result.quality.worst.sqnr_db
    assert 20 < figure < 24
    assert [f"'y' is at {figure:.1f} dB" in said for said in figures(recwarn)] == [True]
    recwarn.clear()
    qgraph.quantize(model, data, activations=8, guard="off")
    qgraph.quantize(model, data, activations=8, guard=20)  # the caller's own target, which is met
    assert not figures(recwarn)
    qgraph.apply(model, result.plan, data)
    assert f"'y' is at {figure:.1f} dB" in figures(recwarn)[0]


def test_nodes_of_one_name_are_judged():
    """onnxruntime does not load such a model; qgraph tells its nodes apart."""
    model, data = hard("same"), RNG.normal(size=(64, 16)).astype(np.float32)
    onnx.checker.check_model(model)
    result = qgraph.quantize(model, data)
    assert result.quality.basis == "held-out"
    assert result.quality.worst or all(output.exact for output in result.quality.outputs)
