"""Plans that were written with schema 1 are read, and make the files that they made then."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

import qmath
from qgraph.errors import PlanError
from qgraph.lowering.export import export
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.plan import SCHEMA, QuantPlan

KEPT = Path(__file__).parent / "schema_1"
CONSTANTS = {  # of the digits network under each plan: SHA-256 by the version that wrote the plan
    "per_tensor": "af4d0372287f693e9498d77b97c173f8c1312d7f38c2cf6ae94b8067e8cdb79f",
    "per_channel": "edaccc4e09aa50b4ad79333181401ce2b7065bcf66c4aa8cc2b5d5774c8dc101",
    "widths": "246eee739d0d92b9aac353388b80ef1b26553373eb2a378ca100ec609148bfa9",
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_kept_plans_make_the_same_constants(digits, name):
    plan = QuantPlan.load(KEPT / f"{name}.plan.json")
    assert plan.schema == SCHEMA == 2
    for kept in (plan, QuantPlan.from_json(plan.to_json())):
        assert kept == plan
        digest = hashlib.sha256()
        for key, value in sorted(export(normalise(load(digits)), kept).graph.initializers.items()):
            array = value.const_value.numpy()
            digest.update(f"{key} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        assert digest.hexdigest() == CONSTANTS[name]


def test_an_axis_becomes_a_granularity():
    whole, channels = (QuantPlan.load(KEPT / f"{name}.plan.json") for name in ("per_tensor", "widths"))
    assert {quant.weight.granularity for quant in whole.layers} == {qmath.Granularity()}
    assert {quant.weight.granularity for quant in channels.layers} == {qmath.Granularity(axis=0)}
    assert [len(quant.weight.channel_bits) for quant in channels.layers] == [0, 32]


def test_a_text_without_a_schema_may_have_either_field():
    raw = json.loads((KEPT / "per_channel.plan.json").read_text())
    del raw["schema"]
    assert QuantPlan.from_json(json.dumps(raw)) == QuantPlan.load(KEPT / "per_channel.plan.json")
    new = json.loads(QuantPlan.load(KEPT / "per_channel.plan.json").to_json())
    assert new["layers"][0]["weight"]["granularity"] == {"axis": 0, "group": None}
    del new["schema"]
    assert QuantPlan.from_json(json.dumps(new)) == QuantPlan.load(KEPT / "per_channel.plan.json")


def test_an_axis_in_a_plan_of_today_is_refused():
    raw = json.loads((KEPT / "per_channel.plan.json").read_text()) | {"schema": 2}
    with pytest.raises(PlanError, match=r"layers\[0\]\.weight has an unknown field 'axis'"):
        QuantPlan.from_json(json.dumps(raw))
    raw["schema"], raw["layers"][0]["weight"]["axis"] = 1, "first"
    with pytest.raises(PlanError, match=r"weight\.granularity\.axis must be of type int"):
        QuantPlan.from_json(json.dumps(raw))


def test_groups_that_are_none_are_refused():
    plan = QuantPlan.load(KEPT / "per_channel.plan.json")
    raw = json.loads(plan.to_json())
    raw["layers"][0]["weight"]["granularity"]["group"] = 0
    with pytest.raises(
        PlanError, match=r"weight\.granularity is impossible: group: expected at least 1 value along an axis"
    ):
        QuantPlan.from_json(json.dumps(raw))
    widths = QuantPlan.load(KEPT / "widths.plan.json").layers[1].weight
    with pytest.raises(PlanError, match="channel_bits are the widths of channels"):
        dataclasses.replace(widths, granularity=qmath.Granularity(axis=0, group=4))
