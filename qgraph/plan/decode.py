"""Values of plans from parsed JSON, strictly: the types of the fields of dataclasses say what is expected where."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qgraph.errors import PlanError


def decode(kind: Any, raw: Any, where: str) -> Any:
    """Build a value of type `kind` from parsed JSON, strictly."""
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), raw, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(raw, list):
            raise PlanError(f"{where} must be a list, not {raw!r}")
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if origin in (Mapping, dict):
        if not isinstance(raw, dict):
            raise PlanError(f"{where} must be an object, not {raw!r}")
        if origin is Mapping:
            return raw
        return {key: decode(arguments[1], value, f"{where}.{key}") for key, value in raw.items()}
    if origin is Literal:
        if raw not in arguments:
            raise PlanError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {raw!r}")
        return raw
    if origin in (types.UnionType, typing.Union):
        if raw is None and type(None) in arguments:
            return None
        return decode(next(a for a in arguments if a is not type(None)), raw, where)
    if kind is float and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError:
            raise PlanError(
                f"{where} is larger than any float: an integer of {len(str(abs(int(raw))))} digits"
            ) from None
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        raise PlanError(f"{where} must be of type {kind.__name__}, not {raw!r}")
    return raw


def _decode_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise PlanError(f"{where} must be an object, not {raw!r}")
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(raw) - set(fields))
    if unknown:
        raise PlanError(f"{where} has an unknown field '{unknown[0]}'; known are {', '.join(fields)}")
    needed = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    missing = sorted(needed - set(raw))
    if missing:
        raise PlanError(f"{where} lacks the field '{missing[0]}'")
    values = {name: decode(hints[name], value, f"{where}.{name}") for name, value in raw.items()}
    try:
        return kind(**values)
    except PlanError:
        raise
    except ValueError as error:
        raise PlanError(f"{where} is impossible: {error}") from None
