"""Hyper-parameters of methods, as text: `METHOD.FIELD=VALUE`, such as `zeroq.t1=200`.

A method registers the dataclasses of its hyper-parameters (`configs`); every field of theirs can be set, and what is
set is a part of the recipe. A layer's bits are written otherwise, `PATTERN:weights=N` (`qgraph.plan.changes`): what
ends like that is never a hyper-parameter.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from qgraph.errors import UsageError, hint
from qgraph.plan import registry

T = TypeVar("T")
Settings = tuple[tuple[str, Any], ...]
_LAYER = re.compile(r".+:(weights|activations)=[^=]*")
_SETTING = re.compile(r"\s*([\w-]+)\.(\w+)\s*=(.*)")
_WORDS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}


def is_setting(text: str) -> bool:
    """Whether a text is a hyper-parameter of a known method rather than the bits of a layer.

    Example:
        >>> from qgraph.plan.settings import is_setting
        >>> [is_setting(text) for text in ("zeroq.t1=200", "zeroq.t1:weights=4")]
        [True, False]
    """
    found = _SETTING.fullmatch(text)
    return found is not None and not _LAYER.fullmatch(text) and found[1] in registry.method_names()


def parse(text: str) -> tuple[str, Any]:
    """The name and the value in `METHOD.FIELD=VALUE`; raises `UsageError` for an unknown field or a wrong value."""
    found = _SETTING.fullmatch(text)
    if found is None:
        raise UsageError(f"'{text}' is not of the form METHOD.FIELD=VALUE, such as 'zeroq.t1=200'")
    return checked(f"{found[1]}.{found[2]}", found[3].strip())


def checked(name: str, value: Any) -> tuple[str, Any]:
    """A hyper-parameter and its value, which may be text, as its field takes it; raises `UsageError`."""
    method, _, field = name.partition(".")
    known = fields(method)
    if field not in known:
        if not known:
            raise UsageError(f"method '{method}' has no hyper-parameters to set: '{name}'")
        close = hint(field, list(known)) or f"; its fields are {', '.join(known)}"
        raise UsageError(f"method '{method}' has no hyper-parameter '{field}'{close}")
    try:
        return name, _converted(value, known[field])
    except ValueError:
        raise UsageError(f"the hyper-parameter {name} must be {_described(known[field])}, not '{value}'") from None


def fields(method: str) -> dict[str, Any]:
    """The hyper-parameters of a method that can be set, with their types."""
    found: dict[str, Any] = {}
    for config in _configs(method):
        hints = get_type_hints(config)
        found |= {f.name: hints[f.name] for f in dataclasses.fields(config) if f.metadata.get("set", True)}
    return found


def value_of(name: str) -> Any:
    """The default of a hyper-parameter, such as `zeroq.steps`."""
    method, _, field = name.partition(".")
    for config in _configs(method):
        for known in dataclasses.fields(config):
            if known.name == field:
                return known.default
    raise UsageError(f"method '{method}' has no hyper-parameter '{field}'")


def configured(config: type[T], settings: Settings) -> T:
    """An instance of a method's dataclass with the settings that are its own; raises `UsageError`."""
    place = f"{config.__module__}:{config.__qualname__}"
    method = next(name for name in registry.method_names() if place in registry.find(name).configs)
    known = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    given = {name.partition(".")[2]: value for name, value in settings if name.partition(".")[0] == method}
    return config(**{name: value for name, value in given.items() if name in known})


def gathered(given: Mapping[str, Any] | Iterable[tuple[str, Any]] | None) -> Settings:
    """Settings by name, checked, the later ones first to count; the form in which a recipe holds them."""
    pairs = given.items() if isinstance(given, Mapping) else given or ()
    return tuple(sorted(dict(checked(name, value) for name, value in pairs).items()))


def _configs(method: str) -> list[Any]:
    found = []
    for place in registry.find(method).configs:
        module, _, name = place.partition(":")
        found.append(getattr(importlib.import_module(module), name))
    return found


def _converted(value: Any, kind: Any) -> Any:
    """The value as a field of this type takes it; raises `ValueError`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "none":
            return None
        return _converted(value, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin is tuple:
        parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value
        return tuple(_converted(part.strip() if isinstance(part, str) else part, arguments[0]) for part in parts)
    if kind is bool:
        return value if isinstance(value, bool) else _word(str(value).lower())
    if isinstance(value, bool):
        raise ValueError
    return kind(value) if isinstance(value, (str, int, float)) else _refuse()


def _word(text: str) -> bool:
    if text not in _WORDS:
        raise ValueError
    return _WORDS[text]


def _refuse() -> Any:
    raise ValueError


def _described(kind: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        others = [a for a in arguments if a is not type(None)]
        return f"{_described(others[0])} or none"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a list of such as {_described(arguments[0])}, with commas"
    return {bool: "yes or no", int: "a whole number", float: "a number"}.get(kind, "text")
