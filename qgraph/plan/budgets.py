"""Budgets of mixed bits: what they are of, and what holds where none is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgraph.errors import UsageError
from qgraph.running.wording import option

MAX_DROP = "max_drop"
OWN_BUDGETS = {"weights": ("size_mb", "average_bits"), "activations": ("average_activation_bits",)}
BUDGETS = (*OWN_BUDGETS["weights"], *OWN_BUDGETS["activations"], MAX_DROP)
DEFAULT_AVERAGES = {"weights": 4.0, "activations": 5.0}
_PER = {"weights": "per layer", "activations": "per tensor"}


def with_budgets(given: dict[str, Any]) -> dict[str, Any]:
    """What is given, where a budget mixes what it is of, and what is mixed has a budget; raises `UsageError`."""
    found = dict(given)
    for what, budgets in OWN_BUDGETS.items():
        named = [name for name in (*budgets, MAX_DROP) if name in given]
        if len(named) > 1:
            raise UsageError(f"give one of {' and '.join(map(option, named))}, not both")
        if named and named[0] != MAX_DROP:
            found[what] = _mixed(what, given, named[0])
    if MAX_DROP in given and given.get("activations") != "mixed":
        found["weights"] = _mixed("weights", given, MAX_DROP)
    for what, budgets in OWN_BUDGETS.items():
        if found.get(what) == "mixed" and not any(name in given for name in (*budgets, MAX_DROP)):
            found[budgets[-1]] = DEFAULT_AVERAGES[what]
    return found


def _mixed(what: str, given: dict[str, Any], budget: str) -> str:
    """The word "mixed", unless a fixed number of bits is given besides the budget."""
    if given.get(what, "mixed") != "mixed":
        raise UsageError(f"{option(budget)} chooses bits {_PER[what]}: give it with {option(what, 'mixed')}")
    return "mixed"


def check_budgets(amounts: Mapping[str, Any]) -> None:
    """Raise `UsageError` unless every budget that is given is a positive number; nothing may be lost, too."""
    for name, amount in amounts.items():
        if amount is not None and not (0 <= amount < float("inf") and (amount or name == MAX_DROP)):
            raise UsageError(f"{option(name)} must be a positive number, not {amount}")
