"""ACIQ: analytic clipping of activations, and bias correction of weights (Banner, Nahshan, Soudry, 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from qgraph.calibrate import clip_activations, clip_weights
from qgraph.correct import correct_norm, correct_shift
from qgraph.graph import GraphView
from qgraph.observe import Observations
from qgraph.plan import QuantPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class AciqConfig:
    """Which ingredients take part; `clip` and `weight_clip` are names of `qmath.clip_methods()`."""

    clip: str = "aciq"
    weight_clip: str = "mse"
    bias_correction: bool = True


def refine(
    plan: QuantPlan, view: GraphView, observed: Observations | None, *, config: AciqConfig | None = None
) -> QuantPlan:
    """Clip every activation at its optimum, every weight channel at its own, then correct norm and expected output."""
    chosen = config or AciqConfig()
    if observed is not None:
        plan = clip_activations(plan, view, observed, method=chosen.clip)
    if chosen.weight_clip != "max":
        plan = clip_weights(plan, view, method=chosen.weight_clip)
    if chosen.bias_correction:
        plan = correct_norm(plan, view)
        if observed is not None:
            plan = correct_shift(plan, view, observed)
    return plan
