"""Warn where outputs of a file are below their target, and name the layers with the largest errors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from qgraph.assess.layer_errors import LayerReport
from qgraph.assess.verdict import Verdict
from qgraph.errors import QualityWarning
from qgraph.jobs.plan_judge import margin
from qgraph.jobs.result import Result
from qgraph.plan.plan import MAX_BITS, QuantPlan

TARGET_DB = 20.0  # of the guard, and of plans below 8 bits
USUAL_DB = 25.0  # 8 bits usually leave more than this


def expected_db(plan: QuantPlan) -> float:
    """The SQNR in dB below which an output is worth a warning."""
    return TARGET_DB if below_eight_bits(plan) else USUAL_DB


def below_eight_bits(plan: QuantPlan) -> bool:
    """Whether the plan has grids below 8 bits, which the guard does not give up unasked."""
    return any(min(layer.weight.widths) < MAX_BITS - 1 for layer in plan.layers) or any(
        a.bits < MAX_BITS for a in plan.activations
    )


def warn_below(quality: Verdict | None, target: float, layers: Sequence[LayerReport] = ()) -> None:
    """Warn of the output of a file that misses `target`, with its layers; measurements on noise do not count."""
    if quality is None or quality.basis == "noise" or margin(quality.outputs, target) >= 0:
        return
    worst = quality.worst
    if worst is None:
        return
    found = f"{worst.sqnr_db:.1f} dB" if worst.sqnr_db is not None else worst.problem
    largest = _largest_errors(layers)
    classes = "" if worst.same_argmax is None else f", with {worst.same_argmax:.1%} of the classes"
    warnings.warn(
        f"output '{worst.name}' is at {found}{classes}, below the target of {target:g} dB{largest}; "
        f"qgraph quantize --guard {target:g} gives up the grids that ruin it, --keep NAME leaves a layer in "
        f"floating point",
        QualityWarning,
        stacklevel=4,
    )


def warn_of_result(result: Result, target: float | None = None) -> None:
    """The same for a result, by default for what its bits usually reach.

    Its layers are only measured if there is something to warn of.
    """
    target = expected_db(result.plan) if target is None else target
    if result.quality is not None and margin(result.quality.outputs, target) < 0:
        warn_below(result.quality, target, result.layers_unsimulated)


def _largest_errors(layers: Sequence[LayerReport]) -> str:
    ranked = sorted((layer.measured_sqnr_db, layer.name) for layer in layers if layer.measured_sqnr_db is not None)
    names = ", ".join(f"'{name}' {db:.1f} dB" for db, name in ranked[:3])
    return f"; layers with the largest errors: {names}" if names else ""
