"""What `apply` says of a plan that does not fit its model."""

from __future__ import annotations

import dataclasses
import json

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
