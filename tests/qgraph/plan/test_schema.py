"""The published JSON Schema is what plans are read with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import qgraph
from qgraph.errors import PlanError
from qgraph.plan import schema
from qgraph.plan.plan import QuantPlan

PACKAGE = Path(qgraph.__file__).parent  # installed, or beside the tests
FILES = (PACKAGE / "plan" / "plan.schema.json", Path(__file__).resolve().parents[3] / "docs" / "plan.schema.json")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_the_published_schema_is_up_to_date(path):
    """Made by: python -c "from qgraph.plan.schema import text; print(text(), end='')"."""
    assert path.read_text(encoding="utf-8") == schema.text()


def accepts(rule, value):
    """Whether a value keeps to the rules that the schema uses."""
    if "anyOf" in rule:
        return any(accepts(one, value) for one in rule["anyOf"])
    if "enum" in rule or "const" in rule:
        return value in rule.get("enum", [rule.get("const")])
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kinds |= {"integer": int, "number": (int, float)}
    if not isinstance(value, kinds[rule["type"]]) or (isinstance(value, bool) and rule["type"] != "boolean"):
        return False
    if rule["type"] == "array":
        return all(accepts(rule["items"], item) for item in value)
    if rule["type"] == "object" and "properties" in rule:
        known = rule["properties"]
        return set(rule["required"]) <= set(value) <= set(known) and all(accepts(known[k], v) for k, v in value.items())
    return rule.get("minimum", -1e300) <= value <= rule.get("maximum", 1e300) if rule["type"] == "integer" else True


def test_plans_keep_to_the_schema_and_damaged_ones_do_not(digits, digits_calibration):
    plan = qgraph.quantize(digits, digits_calibration, limit=16, weights=4, measure=False).plan
    rules, raw = schema.json_schema(), json.loads(plan.to_json())
    assert accepts(rules, raw)
    for damage in ({"schema": 9}, {"colour": 1}, {"layers": None}, {"recipe": 4}):
        assert not accepts(rules, raw | damage)
        with pytest.raises(PlanError):
            QuantPlan.from_json(json.dumps(raw | damage))
    raw["layers"][0]["weight"]["bits"] = 9
    assert not accepts(rules, raw)


def test_what_made_a_plan_decides_nothing(digits, digits_calibration):
    plan = qgraph.quantize(digits, digits_calibration, limit=16, measure=False).plan
    made = {"qgraph": "0.1.0", "command": "qgraph quantize", "preprocessing": {"mean": [0.5], "std": [0.25]}}
    described = dataclasses.replace(plan, made=made)
    again = QuantPlan.from_json(described.to_json())
    assert (again, again.made) == (plan, made)
    assert again.preprocessing == qgraph.Preprocessing(mean=(0.5,), std=(0.25,))
    with pytest.raises(PlanError, match=r"made.preprocessing holds a mean and a std"):
        _ = dataclasses.replace(plan, made={"preprocessing": {"mean": "x"}}).preprocessing
