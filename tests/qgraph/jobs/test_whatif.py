"""What if some layers had other bits: in a plan, from the start, and with a forecast that data confirm."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import qgraph
from qgraph.errors import PlanError, UsageError
from qgraph.graph.sites import GraphView
from qgraph.plan.changes import Change, bits_for, parsed, per_layer
from qgraph.plan.edit import edited


@pytest.fixture(scope="module")
def result(digits, digits_calibration):
    return qgraph.quantize(digits, digits_calibration, limit=64, measure=False, guard="off")


def test_the_last_change_that_matches_counts():
    changes = parsed(["*:weights=4", "stem/*:weights=6", "*:activations=5"])
    assert [bits_for(changes, name, "weights") for name in ("stem/conv", "other")] == [6, 4]
    assert bits_for(changes, "stem/conv", "activations") == 5
    assert per_layer("head.*=8,*=4") == ("*:weights=4", "head.*:weights=8")
    assert Change.parse("a:b:weights=2").pattern == "a:b"


@pytest.mark.parametrize("text", ["stem:weights=9", "stem:weight=3", "weights=3", "stem:weights=", ":weights=3"])
def test_changes_that_say_nothing(text):
    with pytest.raises(UsageError, match="is not of the form"):
        Change.parse(text)


def test_predicted_errors_are_near_simulated_ones(result, digits, digits_test):
    predicted = result.whatif("*:weights=3", "stem/conv:activations=4")
    measured = qgraph.whatif(
        digits, result.plan, ["*:weights=3", "stem/conv:activations=4"], digits_test, statistics=result.observed
    )
    assert predicted.plan == measured.plan
    assert len(predicted.layers) == len(result.plan.layers)
    forecast = np.array([before.predicted_sqnr_db - after.predicted_sqnr_db for before, after in predicted.layers])
    found = np.array([before.simulated_sqnr_db - after.simulated_sqnr_db for before, after in measured.layers])
    assert found.min() > 15
    assert np.abs(forecast - found).max() < 2  # dB
    before, after = measured.quality
    assert before.outputs[0].sqnr_db > after.outputs[0].sqnr_db + 5
    assert predicted.nbytes[1] < predicted.nbytes[0] / 2


def test_only_what_was_asked_for_changes(result):
    found = result.whatif("stem/conv:weights=3")
    assert [(before.name, after.weight_bits) for before, after in found.layers] == [("stem/conv", 3)]
    assert found.plan.layers[1:] == result.plan.layers[1:]
    assert found.plan.activations == result.plan.activations
    assert edited(result.plan, GraphView(result.net), parsed(["stem/conv:weights=8"])) == result.plan


def test_the_file_of_the_new_plan_runs(result, digits, digits_test, tmp_path):
    plan = result.whatif("*:weights=4", "residual/*:activations=6").plan
    qgraph.save(qgraph.apply(digits, plan, measure=False), tmp_path / "other.onnx")
    assert qgraph.evaluate(tmp_path / "other.onnx", digits_test).top1 > 98


def test_bits_by_name_from_the_start(digits, digits_calibration):
    made = qgraph.quantize(
        digits,
        digits_calibration,
        limit=32,
        measure=False,
        weights="stem*=5,*=4",
        changes=("classifier:activations=6",),
    )
    assert [layer.weight_bits for layer in made.layers] == [5, 4, 4, 4, 4, 4, 4]
    assert made.layers[-1].activation_bits == 6
    with pytest.raises(UsageError, match="matches no layer"):
        qgraph.quantize(digits, digits_calibration, limit=32, weights="nothing=4")


def test_layers_without_a_grid_to_change(result, digits):
    with pytest.raises(UsageError, match="say what to change"):
        result.whatif()
    floats = dataclasses.replace(result.plan, activations=())
    with pytest.raises(PlanError, match="reads no static grid"):
        qgraph.whatif(digits, floats, ["stem/conv:activations=4"])
    first, *others = result.plan.activations
    stepped = dataclasses.replace(first, channel_scale=(1.0,) * 4)
    with pytest.raises(PlanError, match="with a step per channel"):
        edited(
            dataclasses.replace(result.plan, activations=(stepped, *others)),
            GraphView(result.net),
            parsed(["stem/conv:activations=4"]),
        )
