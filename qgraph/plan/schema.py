"""The JSON Schema of a plan file, made from the types that a plan is read with."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qgraph.plan.plan import MAX_BITS, MIN_BITS, SCHEMA, QuantPlan

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of what `QuantPlan.to_json` writes."""
    schema = _of(QuantPlan)
    schema["properties"]["schema"] = {"const": SCHEMA}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A quantization plan of qgraph"}
    return head | schema


def text() -> str:
    """The schema as the text of the published file."""
    return json.dumps(json_schema(), indent=1) + "\n"


def _of(kind: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        return _of_dataclass(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is Mapping:
        return {"type": "object"}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [{"type": "null"} if a is type(None) else _of(a) for a in arguments]}
    return {"type": _PLAIN[kind]}


def _of_dataclass(kind: Any) -> dict[str, Any]:
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    properties = {field.name: _of(hints[field.name]) for field in fields}
    bounds = {"minimum": MIN_BITS, "maximum": MAX_BITS}
    if "bits" in properties:
        properties["bits"] |= bounds
    if "channel_bits" in properties:
        properties["channel_bits"]["items"] |= bounds
    needed = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
