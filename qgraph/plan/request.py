"""The caller's request -> a recipe: defaults filled in, and checked."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from qgraph.errors import UnknownOptionError, hint
from qgraph.plan import registry
from qgraph.plan.budgets import BUDGETS, with_budgets
from qgraph.plan.changes import parsed, per_layer
from qgraph.plan.recipe import Recipe
from qgraph.plan.request_checks import check_request
from qgraph.plan.settings import gathered, is_setting
from qgraph.plan.settings import parse as parse_setting

_OF_JOBS = ("format",)  # what a paper says of the file, not of the plan


def choose_recipe(method: str | None, has_data: bool, **overrides: Any) -> Recipe:
    """The recipe named `method`, by default `aciq` with data and `zeroq` without.

    For `weights` and `activations`, None means floating point; for every other option, its default.
    """
    name = method or ("aciq" if has_data else "zeroq")
    defaults = registry.defaults(name)
    given = {k: v for k, v in overrides.items() if v is not None or k in ("weights", "activations")}
    given = {name: _plain(name, value) for name, value in given.items()}
    given = _with_changes(_with_settings(given))
    if given.get("protocol") == "paper":
        given = _as_in_paper(name, given)
    fields = {f.name for f in dataclasses.fields(Recipe)} - {"method"}
    unknown = sorted({*defaults, *given} - fields)
    if unknown:
        raise UnknownOptionError(f"unknown option '{unknown[0]}'{hint(unknown[0], sorted(fields))}")
    given = {**defaults, **with_budgets(given)}
    for what in ("weights", "activations"):
        if given.get(what) == "none":
            given[what] = None
    if given.get("target") == "decode":
        given.setdefault("activations", None)
    recipe = Recipe(method=name, **given)
    check_request(recipe, has_data)
    return recipe


def _with_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters among the `changes`, `zeroq.t1=200`, as settings; all settings checked and in one form."""
    changes = tuple(given.get("changes", ()))
    texts = [text for text in changes if is_setting(text)]
    pairs = dict(given.get("settings", ())) | dict(map(parse_setting, texts))
    found = {**given, "changes": tuple(text for text in changes if text not in texts)}
    return {**found, "settings": gathered(pairs)}


def _as_in_paper(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the method's paper says, with what is given on top."""
    said = registry.in_paper(method)
    options = {name: value for name, value in said.items() if "." not in name and name not in _OF_JOBS}
    of_methods = {name: value for name, value in said.items() if "." in name}
    return {**options, **given, "settings": gathered({**of_methods, **dict(given["settings"])})}


def _with_changes(given: dict[str, Any]) -> dict[str, Any]:
    """Bits that are given layer by layer, `head.*=8,*=4`, as changes."""
    changes: tuple[str, ...] = ()
    for what in ("weights", "activations"):
        value = given.get(what)
        if isinstance(value, str) and "=" in value:
            del given[what]
            changes += per_layer(value, "weights" if what == "weights" else "activations")
    changes += tuple(given.get("changes", ()))
    parsed(changes)  # fail before the work begins
    return {**given, "changes": changes} if changes else given


def _plain(name: str, value: Any) -> Any:
    """The value of an option as this module knows it: numbers from text or numpy, one name or several as a tuple."""
    if name in ("keep", "changes"):
        return (value,) if isinstance(value, str) else tuple(value)
    if name == "bits":
        return tuple(_plain("", bits) for bits in (value.split(",") if isinstance(value, str) else value))
    if name in BUDGETS and isinstance(value, str):
        return float(value) if value.replace(".", "", 1).isdigit() else value
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    return operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value
