"""Warn where outputs of a file are below their target, and name the layers with the largest errors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from qgraph.assess.layer_errors import LayerReport
from qgraph.assess.output_quality import OutputQuality
from qgraph.assess.verdict import Verdict
from qgraph.errors import QualityWarning
from qgraph.jobs.plan_judge import SAME_CLASS, margin
from qgraph.jobs.result import Result
from qgraph.plan.plan import MAX_BITS, QuantPlan
from qgraph.running.wording import Blank, option

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


def warn_below(
    quality: Verdict | None, target: float, layers: Sequence[LayerReport] = (), *, advice: str | None = None
) -> None:
    """Warn of the output of a file that misses `target` by most, with its layers; classes of noise do not count.

    `advice` says what to do about it, by default with options of `quantize`.
    """
    noise = quality is not None and quality.basis == "noise"
    worst = None if quality is None else min(quality.outputs, key=lambda o: margin([o], target), default=None)
    if worst is None or margin([worst], target) >= 0 or (noise and not _is_low(worst, target)):
        return
    remedies = [advice or f"{option('guard', target)} gives up the grids that ruin it"]
    if noise:
        remedies = [f"this is measured on random noise, for lack of data: {option('data')} gives a meaningful figure"]
    if advice is None:
        remedies.append(f"{option('keep', [Blank('NAME')])} leaves a layer in floating point")
    warnings.warn(
        f"output '{worst.name}' {_missed(worst, target)}{_largest_errors(layers)}; {', '.join(remedies)}",
        QualityWarning,
        stacklevel=4,
    )


def _is_low(output: OutputQuality, target: float) -> bool:
    return output.sqnr_db is not None and output.sqnr_db < target


def _missed(output: OutputQuality, target: float) -> str:
    """What an output misses, in words: its decibels, or the share of classes that are the same."""
    figure = output.problem if output.sqnr_db is None else f"{output.sqnr_db:.1f} dB"
    classes = "" if output.same_argmax is None else f", with {output.same_argmax:.1%} of the classes"
    if output.sqnr_db is None or _is_low(output, target):
        return f"is at {figure}{classes}, below the target of {target:g} dB"
    return f"is at {figure}{classes}, below the target of {SAME_CLASS:.0%}"


def warn_of_result(result: Result, target: float | None = None) -> None:
    """The same for a result, by default for the guard's target, or else for what its bits usually reach.

    Its layers are only measured if there is something to warn of.
    """
    outputs = () if result.quality is None else result.quality.outputs
    targets = (TARGET_DB, expected_db(result.plan)) if target is None else (target,)
    target = next((db for db in targets if margin(outputs, db) < 0), None)
    if target is not None:
        warn_below(result.quality, target, result.layers_unsimulated)


def _largest_errors(layers: Sequence[LayerReport]) -> str:
    ranked = sorted((layer.measured_sqnr_db, layer.name) for layer in layers if layer.measured_sqnr_db is not None)
    names = ", ".join(f"'{name}' {db:.1f} dB" for db, name in ranked[:3])
    return f"; layers with the largest errors: {names}" if names else ""
