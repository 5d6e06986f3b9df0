"""Warn where outputs of a file are below their target, and name the layers with the largest errors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from qgraph.assess.layer_errors import LayerReport
from qgraph.assess.verdict import Verdict
from qgraph.errors import QualityWarning
from qgraph.jobs.plan_judge import margin
from qgraph.jobs.result import Result

TARGET_DB = 20.0


def warn_below(quality: Verdict | None, target: float = TARGET_DB, layers: Sequence[LayerReport] = ()) -> None:
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


def warn_of_result(result: Result, target: float = TARGET_DB) -> None:
    """The same for a result, whose layers are only measured if there is something to warn of."""
    if result.quality is not None and margin(result.quality.outputs, target) < 0:
        warn_below(result.quality, target, result.layers_unsimulated)


def _largest_errors(layers: Sequence[LayerReport]) -> str:
    ranked = sorted((layer.measured_sqnr_db, layer.name) for layer in layers if layer.measured_sqnr_db is not None)
    names = ", ".join(f"'{name}' {db:.1f} dB" for db, name in ranked[:3])
    return f"; layers with the largest errors: {names}" if names else ""
