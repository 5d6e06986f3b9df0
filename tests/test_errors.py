"""Errors are also those that Python programs expect in their place, and keep their message."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import qgraph
from qgraph import errors

X = np.zeros((4, 1, 8, 8), np.float32)


def every(kind=errors.QGraphError):
    return {kind}.union(*map(every, kind.__subclasses__()))


@pytest.mark.parametrize(
    ("call", "kind", "built_in"),
    [
        (lambda d: qgraph.quantize("missing.onnx"), qgraph.ModelError, FileNotFoundError),
        (lambda d: qgraph.quantize(None), qgraph.ModelError, TypeError),
        (lambda d: qgraph.quantize(d, "missing.npz"), qgraph.DataError, FileNotFoundError),
        (lambda d: qgraph.quantize(d, 5), qgraph.DataError, TypeError),
        (lambda d: qgraph.quantize(d, X[:, :, :4]), qgraph.DataError, ValueError),
        (lambda d: qgraph.quantize(d, X, method="magic"), qgraph.UsageError, ValueError),
        (lambda d: qgraph.quantize(d, X, weight=4), qgraph.UsageError, TypeError),
        (lambda d: qgraph.QuantPlan.from_json("{}"), qgraph.PlanError, ValueError),
        (lambda d: qgraph.QuantPlan.load("missing.json"), qgraph.PlanError, FileNotFoundError),
        (lambda d: qgraph.apply(d, None), qgraph.PlanError, TypeError),
        (lambda d: qgraph.apply(d, "missing.json"), qgraph.PlanError, FileNotFoundError),
        (lambda d: qgraph.whatif(d, {"layers": []}, ["a:weights=3"]), qgraph.PlanError, TypeError),
    ],
)
def test_each_is_also_the_built_in_one(digits, call, kind, built_in):
    with pytest.raises(kind) as found:
        call(digits)
    assert isinstance(found.value, built_in)
    assert isinstance(found.value, qgraph.QGraphError)


@pytest.mark.parametrize("kind", sorted(every(), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_a_message_stays_as_it_is(kind):
    error = kind("what, where, way out")
    assert str(error) == "what, where, way out"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.exit_status in (1, 2)


def test_a_path_stands_for_its_plan(digits, tmp_path):
    plan = qgraph.quantize(digits, activations=None, measure=False).plan
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert qgraph.apply(digits, tmp_path / "plan.json", measure=False) is not None
    assert plan.save(tmp_path / "again.json") is None
    assert qgraph.QuantPlan.load(tmp_path / "again.json") == plan


@pytest.mark.parametrize("wrong", [None, 3, {"layers": []}])
def test_what_is_no_plan_gets_a_sentence(digits, wrong):
    with pytest.raises(qgraph.PlanError, match="a plan is a QuantPlan, the path of its file or a result, not"):
        qgraph.apply(digits, wrong)


@pytest.mark.parametrize("wrong", ["grey", [None], {"r": 0.5}])
def test_a_mean_that_is_no_number_gets_a_sentence(wrong):
    with pytest.raises(qgraph.DataError, match="mean must hold numbers, one per channel or one for all, not"):
        qgraph.Preprocessing(mean=wrong)


def test_an_error_inside_an_error_keeps_its_words(digits, tmp_path):
    np.savez(tmp_path / "a.npz", one=X, two=X)
    with pytest.raises(qgraph.DataError, match=r"a\.npz has the arrays one, two; the model's inputs") as found:
        qgraph.quantize(digits, tmp_path / "a.npz")
    assert "cannot read" not in str(found.value)
    text = '{"model": "m", "recipe": "r", "layers": [{"name": "a", "op": "Conv", "weight": {"bits": 9, "scale": [1]}}]}'
    with pytest.raises(qgraph.PlanError, match=r"the plan: bits must lie in 2\.\.8, not 9"):
        qgraph.QuantPlan.from_json(text)
