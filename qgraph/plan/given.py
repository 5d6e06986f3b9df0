"""A plan as callers give it: the plan itself, the path of its file, or a result that has one."""

from __future__ import annotations

import os
from typing import Protocol, TypeAlias

from qgraph.errors import PlanTypeError
from qgraph.plan.plan import QuantPlan


class HasPlan(Protocol):
    """The result of a job, such as `qgraph.Result`."""

    @property
    def plan(self) -> QuantPlan: ...


PlanLike: TypeAlias = "QuantPlan | str | os.PathLike[str] | HasPlan"


def given_plan(plan: PlanLike) -> QuantPlan:
    """The plan that a caller means; raises `PlanTypeError` for what is none, `PlanError` for a file that holds none."""
    if isinstance(plan, (str, os.PathLike)):
        return QuantPlan.load(plan)
    inner = getattr(plan, "plan", plan)
    if isinstance(inner, QuantPlan):
        return inner
    kind = "None" if plan is None else type(plan).__name__
    raise PlanTypeError(f"a plan is a QuantPlan, the path of its file or a result, not {kind}")
