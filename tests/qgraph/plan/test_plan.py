"""The plan: exact JSON, strict reading, errors that name the field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgraph.errors import PlanError
from qgraph.plan.plan import ActivationQuant, KeptFloat, LayerQuant, QuantPlan, WeightQuant
from qmath import Granularity

scales = st.floats(min_value=1e-30, max_value=1e30, allow_nan=False, allow_infinity=False)
bits = st.integers(2, 8)
names = st.text(alphabet='ab[ ],/0.λ "\\', min_size=1, max_size=8)


@st.composite
def activations(draw):
    b = draw(bits)
    factors = draw(st.lists(scales, max_size=3))
    widths = draw(st.lists(bits, min_size=len(factors), max_size=len(factors))) if draw(st.booleans()) else []
    return ActivationQuant(
        tensor=draw(names),
        bits=b,
        scale=draw(scales),
        zero_point=draw(st.integers(0, 2 ** min(widths or [b]) - 1)),
        role=draw(st.sampled_from(["tensor", "operand"])),
        channel_scale=tuple(factors),
        channel_bits=tuple(widths),
    )


@st.composite
def layers(draw):
    count = draw(st.integers(1, 4))
    weight = WeightQuant(
        bits=draw(bits),
        scale=tuple(draw(st.lists(scales, min_size=count, max_size=count))),
        gain=tuple(draw(st.lists(scales, min_size=count, max_size=count))),
        granularity=Granularity(axis=0),
        channel_bits=tuple(draw(st.lists(bits, min_size=count, max_size=count))) if draw(st.booleans()) else (),
        input_scale=tuple(draw(st.lists(scales, max_size=3))),
    )
    shift = tuple(draw(st.lists(st.floats(-1e9, 1e9), max_size=3)))
    return LayerQuant(name=draw(names), op="Conv", weight=weight, bias_shift=shift)


plans = st.builds(
    QuantPlan,
    model=st.just("abc"),
    recipe=st.sampled_from(["minmax", "aciq"]),
    layers=st.lists(layers(), max_size=3, unique_by=lambda layer: layer.name).map(tuple),
    activations=st.lists(activations(), max_size=3, unique_by=lambda a: (a.tensor, a.role)).map(tuple),
    kept_float=st.just((KeptFloat(name="x", why="--keep x"),)),
)


@given(plans)
def test_json_round_trip_is_exact(plan):
    again = QuantPlan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.to_json() == plan.to_json()


GOOD = QuantPlan(
    model="abc",
    recipe="aciq",
    layers=(LayerQuant(name="conv", op="Conv", weight=WeightQuant(bits=4, scale=(0.5,))),),
    activations=(ActivationQuant(tensor="x", bits=8, scale=0.1, zero_point=3),),
)


def edited(change):
    raw = json.loads(GOOD.to_json())
    change(raw)
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema=3), "schema 3 is not known; this version reads schema 1 and 2"),
        (lambda r: r.update(colour="red"), "unknown field 'colour'"),
        (lambda r: r.pop("model"), "lacks the field 'model'"),
        (lambda r: r["layers"][0].update(name=3), r"layers\[0\]\.name must be of type str"),
        (lambda r: r["layers"][0]["weight"].update(bits=9), "bits must lie in 2..8"),
        (lambda r: r["layers"][0]["weight"].update(bits=True), "must be of type int"),
        (lambda r: r["layers"][0]["weight"].update(scale=[-1.0]), "positive and finite"),
        (lambda r: r["layers"][0]["weight"].update(scale=[]), "positive and finite"),
        (lambda r: r["layers"][0]["weight"].update(scale=[1e-46]), "positive and finite in float32, not 1e-46"),
        (lambda r: r["activations"][0].update(scale=1e39), r"positive and finite in float32, not 1e\+39"),
        (lambda r: r["layers"][0]["weight"].update(scale=[1.0, 2.0]), "without axis has one scale"),
        (lambda r: r["layers"][0]["weight"].update(zero_point=[1]), "symmetric"),
        (lambda r: r["layers"][0]["weight"].update(zero_point=[99], symmetric=False), "zero points"),
        (lambda r: r["activations"][0].update(zero_point=256), "outside 0..255"),
        (lambda r: r["activations"][0].update(channel_bits=[4]), "as many of both"),
        (lambda r: r["activations"][0].update(channel_bits=[1], channel_scale=[1.0]), "bits must lie in 2..8"),
        (lambda r: r["activations"][0].update(channel_bits=[2], channel_scale=[1.0], zero_point=4), r"outside 0\.\.3"),
        (lambda r: r["activations"][0].update(channel_scale=[0.0]), "positive and finite"),
        (lambda r: r["layers"][0]["weight"].update(channel_bits=[4, 4]), "as many scales"),
        (lambda r: r["layers"][0]["weight"].update(channel_bits=[9]), "bits must lie in 2..8"),
        (lambda r: r["layers"][0]["weight"].update(input_scale=[-1.0]), "positive and finite"),
        (lambda r: r["activations"][0].update(role="both"), "must be one of 'tensor', 'operand'"),
        (lambda r: r["activations"].append(r["activations"][0]), "more than once"),
        (lambda r: r["layers"].append(r["layers"][0]), "layer 'conv' more than once"),
        (lambda r: r.update(layers={}), "must be a list"),
        (lambda r: r["layers"].__setitem__(0, 5), "must be an object"),
    ],
)
def test_malformed_plans_say_what_is_wrong(change, message):
    with pytest.raises(PlanError, match=message):
        QuantPlan.from_json(edited(change), source="p.json")


def test_text_that_is_not_json_names_the_line():
    with pytest.raises(PlanError, match=r"p\.json is not JSON: line 2"):
        QuantPlan.from_json("{\n oops", source="p.json")


def test_a_plan_is_for_one_model():
    with pytest.raises(PlanError, match="made for another model"):
        GOOD.check_model("def", "other.onnx")


def test_grid_limits():
    symmetric = WeightQuant(bits=4, scale=(1.0,))
    assert (symmetric.qmin, symmetric.qmax) == (-7, 7)
    asymmetric = WeightQuant(bits=4, scale=(1.0,), symmetric=False, zero_point=(-3,))
    assert (asymmetric.qmin, asymmetric.qmax) == (-8, 7)
    mixed = WeightQuant(bits=4, scale=(1.0, 1.0), granularity=Granularity(axis=0), channel_bits=(3, 5))
    assert mixed.limits == ((-3, 3), (-15, 15))
    assert (mixed.qmin, mixed.qmax) == (-15, 15)
    activation = ActivationQuant(tensor="x", bits=4, scale=0.5, zero_point=2)
    assert (activation.low, activation.high) == (-1.0, 6.5)


def test_layers_are_on_the_operand_grid_of_a_tensor_with_two():
    stored, read = (ActivationQuant(tensor="x", bits=8, scale=0.1, role=role) for role in ("tensor", "operand"))
    other = ActivationQuant(tensor="y", bits=8, scale=0.1)
    for grids in ((read, other, stored), (stored, read, other)):
        plan = QuantPlan(model="abc", recipe="aciq", activations=grids)
        assert plan.operand_grids == {"x": read, "y": other}
        assert plan.by_reach.index(stored) < plan.by_reach.index(read)
