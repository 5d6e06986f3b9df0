"""What `apply` says of a plan that does not fit its model."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest

import qgraph
import qmath
from qgraph.errors import PlanError, QualityWarning


@pytest.fixture(scope="module")
def plan(digits, digits_calibration):
    return qgraph.quantize(digits, digits_calibration, limit=32, measure=False, guard="off").plan


def with_weight(plan, **fields):
    first = plan.layers[1]
    changed = dataclasses.replace(first, weight=dataclasses.replace(first.weight, **fields))
    return dataclasses.replace(plan, layers=(plan.layers[0], changed, *plan.layers[2:]))


@pytest.mark.parametrize("field", ["scale", "gain"])
def test_lengths_of_a_weight(plan, digits, field):
    with pytest.raises(PlanError, match=r"3 values of weight\..* for .* scales"):
        qgraph.apply(digits, with_weight(plan, **{field: (0.1, 0.2, 0.3)}), measure=False)


def test_three_shifts_for_more_channels(plan, digits):
    short = plan.map_layers(lambda layer: dataclasses.replace(layer, bias_shift=(0.1, 0.2, 0.3)))
    with pytest.raises(PlanError, match=r"3 values of bias_shift for \d+ channels"):
        qgraph.apply(digits, short, measure=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_shifts_are_finite_in_float32(plan, digits, value):
    count = len(plan.layers[1].weight.scale)
    wild = dataclasses.replace(plan.layers[1], bias_shift=(float(value),) * count)
    with pytest.raises(PlanError, match=r"bias_shift must be finite in float32"):
        qgraph.apply(digits, dataclasses.replace(plan, layers=(wild,)), measure=False)


def test_an_axis_that_the_weight_lacks(plan, digits):
    with pytest.raises(PlanError, match=r"has no axis 7"):
        qgraph.apply(digits, with_weight(plan, granularity=qmath.Granularity(axis=7)), measure=False)


def test_another_operator(plan, digits):
    other = dataclasses.replace(plan, layers=(dataclasses.replace(plan.layers[0], op="Gemm"),))
    with pytest.raises(PlanError, match="is a Conv in the model, and the plan says Gemm"):
        qgraph.apply(digits, other, measure=False)


def test_bits_changed_without_a_scale_are_fitted_again(plan, digits, digits_test, tmp_path):
    edited = with_weight(plan, bits=3)
    with pytest.warns(QualityWarning, match=r"changed to 3 without its scale"):
        applied = qgraph.apply(digits, edited, measure=False)
    qgraph.save(applied, tmp_path / "edited.onnx")
    assert qgraph.evaluate(tmp_path / "edited.onnx", digits_test).top1 > 90


def edited(plan, place, **fields):
    """The plan after its file was edited by hand."""
    raw = json.loads(plan.to_json())
    grid = raw["activations"][1] if place == "activations" else raw["layers"][1]["weight"]
    grid.update(fields)
    return json.dumps(raw)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_file_whose_bits_were_edited_by_one(digits, symmetric):
    plan = qgraph.quantize(digits, weights=4, activations=None, measure=False, symmetric=symmetric).plan
    few = qgraph.quantize(digits, weights=3, activations=None, measure=False, symmetric=symmetric).plan
    found = qgraph.QuantPlan.from_json(edited(plan, "weight", bits=3))
    assert qgraph.QuantPlan.from_json(found.to_json()).layers[1].weight.fitted == found.layers[1].weight.fitted != ""
    with pytest.warns(QualityWarning, match=r"changed to 3 without its scale: the scale is fitted again"):
        applied = qgraph.apply(digits, found, measure=False)
    assert applied.plan.layers[1].weight.scale == few.layers[1].weight.scale
    assert applied.plan.layers[1].weight.fitted == ""
    assert applied.plan.layers[0] == plan.layers[0]


def test_a_file_whose_bits_and_scale_were_edited(plan, digits):
    scale = [2 * step for step in plan.layers[1].weight.scale]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = qgraph.QuantPlan.from_json(edited(plan, "weight", bits=7, scale=scale))
        assert qgraph.apply(digits, found, measure=False).plan.layers[1].weight.scale == tuple(scale)


def test_activations_whose_bits_were_edited_keep_their_range(plan):
    old = plan.activations[1]
    text = edited(plan, "activations", bits=4)
    with pytest.warns(QualityWarning, match=rf"'{old.tensor}' were changed from 8 to 4 without its scale"):
        new = qgraph.QuantPlan.from_json(text).activations[1]
    assert (new.bits, new.fitted) == (4, "")
    assert abs(new.high - old.high) <= new.scale / 2
    assert abs(new.low - old.low) <= new.scale / 2


def test_a_scale_that_fits_no_bits_is_refused(plan, digits):
    tiny = tuple(scale * 1e-4 for scale in plan.layers[1].weight.scale)
    with pytest.raises(PlanError, match=r"clips \d+% of its weight's energy"):
        qgraph.apply(digits, with_weight(plan, scale=tiny), measure=False)


def test_numbers_and_brackets_beyond_reason(plan):
    raw = json.loads(plan.to_json())
    raw["layers"][0]["weight"]["scale"][0] = 10**400
    with pytest.raises(PlanError, match=r"scale\[0\] is larger than any float"):
        qgraph.QuantPlan.from_json(json.dumps(raw))
    with pytest.raises(PlanError, match="nested too deeply"):
        qgraph.QuantPlan.from_json("[" * 100_000)
    with pytest.raises(PlanError, match="is no plan"):
        qgraph.QuantPlan.from_json("9" * 5000)
