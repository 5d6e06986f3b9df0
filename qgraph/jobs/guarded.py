"""Hand a result whose outputs miss their target to the guard, and record what the repair costs."""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from qgraph.assess.float_constants import is_linear
from qgraph.assess.output_quality import OutputQuality, OutputTally
from qgraph.assess.verdict import Verdict
from qgraph.errors import ModelError, QualityWarning, UsageError
from qgraph.jobs.prepare import Gathered
from qgraph.jobs.result import GivenUp, Result
from qgraph.lowering.lower import lower
from qgraph.methods.guard.guard import guard, widened
from qgraph.plan.plan import MAX_BITS, QuantPlan
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Batch

TARGET_DB = 20.0
COMFORT_DB = 30.0  # outputs at or above this are left alone
SLOWER, FASTER = 1.05, 0.97  # ratios of latencies that are not chance: quantized / float, weight-only / quantized
TIMED_SECONDS = 5e-4  # per sample in floats; timings below this are too noisy to decide anything
WORTH_DB = 0.5  # a variant must beat the plan by this much
SAME_CLASS = 0.98
DOUBT = 0.05  # too many classes changed if this count has a smaller probability at a true rate of 2 %
SAMPLES = 16  # the most samples on which errors are injected
RUN_SECONDS = 0.5  # a run over all samples may take this long; slower networks get fewer samples
_HOPELESS = -1000.0


def parse_target(guard: float | str | None) -> float | None:
    """The target in dB, 20 by default; None where the guard is off."""
    if guard is None:
        return TARGET_DB
    if guard == "off":
        return None
    try:
        target = float(guard)
    except ValueError:
        target = np.nan
    if not 0 < target < 200:
        raise UsageError(f"--guard is a number of dB such as 20, or off, not '{guard}'")
    return target


def guarded(given: Gathered, result: Result, *, guard_db: float | str | None) -> Result:
    """The result, repaired where its outputs miss the target.

    If an output is below `COMFORT_DB`, two variants of the plan are tried: full ranges instead of clips, and biases
    without their shifts. If the target itself is missed, the guard gives up grids. When the caller set no target,
    plans with grids below 8 bits are not changed; a warning says what they miss.
    """
    target = parse_target(guard_db)
    quality = result.quality
    if target is None or quality is None or given.samples is None or margin(quality.outputs, COMFORT_DB) >= 0:
        return result
    if guard_db is None and below_eight_bits(result.plan):
        if margin(quality.outputs, target) < 0:
            _warn(result, quality, target)
        return result
    batches = _few(given, SAMPLES)
    result = _best_variant(given, result, _Judge(given, batches, target))
    return result if _margin(result, target) >= 0 else _repaired(given, result, batches, target)


def no_slower(result: Result, *, fixed: bool) -> Result:
    """The result, or its weight-only version where quantized activations make it slower than float on this machine.

    With `fixed`, the caller asked for quantized activations: the result stays as it is, and a warning says so.
    """
    quality = result.quality
    slow = quality is not None and (quality.latency or 0.0) > SLOWER and (quality.float_seconds or 0.0) > TIMED_SECONDS
    if quality is None or not slow or not result.plan.activations or result.format != "qdq":
        return result
    said = f"integers take {quality.latency:.2f} of the float model's time on this machine"
    if fixed:
        warnings.warn(f"{said}: --activations none keeps the weights small alone", QualityWarning, stacklevel=4)
        return result
    notes = (*result.plan.notes, f"activations stay floating point: {said}")
    plain = dataclasses.replace(result, plan=dataclasses.replace(result.plan, activations=(), notes=notes))
    other = None if plain.quality is None else plain.quality.latency
    return plain if other is not None and other < FASTER * (quality.latency or 0.0) else result


def _best_variant(given: Gathered, result: Result, judge: _Judge) -> Result:
    """The result with full ranges, or without bias shifts, where that measures better."""
    plan, ranges = result.plan, _ranges(given, result.plan)
    plain = plan.map_layers(lambda layer: dataclasses.replace(layer, bias_shift=()))
    variants = {
        "": plan,
        "whole ranges measured better than clips": plan.map_activations(lambda a: widened(a, ranges)),
        "shifts of biases measured worse than none": plain,
    }
    margins = {why: judge(variant) for why, variant in variants.items() if not why or variant != plan}
    best = max(margins, key=lambda why: margins[why])
    if margins[best] < margins[""] + WORTH_DB:
        return result
    chosen = variants[best]
    return dataclasses.replace(result, plan=dataclasses.replace(chosen, notes=(*chosen.notes, best)))


def _repaired(given: Gathered, result: Result, batches: Sequence[Batch], target: float) -> Result:
    """The result after the guard, checked on held-out samples as well; warns where it is no better there."""
    before, wanted, better = result.quality, target, result
    for _ in range(2):  # a target met on calibration samples may be missed on held-out ones
        judge = _Judge(given, batches, wanted)
        found = guard(
            result.plan,
            given.view,
            batches,
            judge,
            target_db=wanted,
            ranges=_ranges(given, result.plan),
            threads=given.job.threads,
            progress=given.job.progress,
        )
        given_up = None if before is None else GivenUp(target, found.concessions, before)
        better = dataclasses.replace(result, plan=found.plan, given_up=given_up)
        missed = _margin(better, target)
        if missed >= 0:
            return better
        wanted += 1.0 - max(missed, -target)
    if better.quality is not None:
        _warn(better, better.quality, target)
    return better


def _margin(result: Result, target: float) -> float:
    return margin(() if result.quality is None else result.quality.outputs, target)


def _ranges(given: Gathered, plan: QuantPlan) -> dict[str, tuple[float, float]]:
    observed = given.observed
    return {} if observed is None else {a.tensor: observed.range_of(a.tensor) for a in plan.activations}


def margin(outputs: Sequence[OutputQuality], target: float) -> float:
    """How far the worst output is above the target, in dB; negative where it misses.

    An output of class scores also misses where significantly more than the allowed 2 % of classes changed.
    """
    least = np.inf
    for output in outputs:
        if output.sqnr_db is not None:
            least = min(least, output.sqnr_db - target)
        elif output.problem:
            least = _HOPELESS
        if output.same_argmax is not None and _too_many_changed(output):
            least = min(least, 100 * (output.same_argmax - SAME_CLASS))
    return float(least)


def below_eight_bits(plan: QuantPlan) -> bool:
    """Whether the plan has grids below 8 bits, which the guard does not give up unasked."""
    return any(min(layer.weight.widths) < MAX_BITS - 1 for layer in plan.layers) or any(
        a.bits < MAX_BITS for a in plan.activations
    )


def _too_many_changed(output: OutputQuality) -> bool:
    changed = round(output.decisions * (1 - (output.same_argmax or 0.0)))
    return bool(changed and stats.binom.sf(changed - 1, output.decisions, 1 - SAME_CLASS) < DOUBT)


class _Judge:
    """Measures the margin of a plan on its model with unpacked weights: the same numbers, sooner."""

    def __init__(self, given: Gathered, batches: Sequence[Batch], target: float) -> None:
        self.given, self.batches, self.target = given, batches, target
        session = Session(given.net.ir_model, threads=given.job.threads)
        self.names = session.output_names
        self.linear = [is_linear(value) for value in given.net.graph.outputs]
        self.expected = [session.run_list(batch.feeds) for batch in batches]

    def __call__(self, plan: QuantPlan) -> float:
        net = self.given.net
        tallies = [OutputTally(n, linear=flat) for n, flat in zip(self.names, self.linear, strict=True)]
        try:
            session = Session(lower(net, plan, format=self.given.format, packed=False), threads=self.given.job.threads)
            for batch, want in zip(self.batches, self.expected, strict=True):
                have = session.run(batch.feeds)
                for tally, expected in zip(tallies, want, strict=True):
                    tally.take(_real(batch, expected), _real(batch, have[tally.name]))
        except ModelError:
            return _HOPELESS
        return margin([tally.result() for tally in tallies], self.target)


def _real(batch: Batch, array: Any) -> Any:
    return batch.real(array) if isinstance(array, np.ndarray) else array


def _few(given: Gathered, most: int) -> list[Batch]:
    """At most `most` of the given samples, evenly spread; fewer where the network is slow."""
    samples = given.need_samples("the guard measures on samples")
    session = Session(given.net.ir_model, threads=given.job.threads)
    step = max(1, samples.count // most)
    chosen: list[Batch] = []
    began = time.perf_counter()
    for batch in itertools.islice(samples.batches(1), 0, None, step):
        session.run_list(batch.feeds)
        chosen.append(batch)
        if len(chosen) >= most or time.perf_counter() - began > RUN_SECONDS:
            break
    return chosen


def _warn(result: Result, quality: Verdict, target: float) -> None:
    worst = quality.worst
    ranked = sorted((layer for layer in result.layers if layer.measured_sqnr_db is not None), key=_measured)
    names = ", ".join(f"'{layer.name}' {_measured(layer):.1f} dB" for layer in ranked[:3])
    said = "" if worst is None or worst.sqnr_db is None else f"{worst.sqnr_db:.1f} dB"
    warnings.warn(
        f"output '{'' if worst is None else worst.name}' is at {said or 'no number'}, below the target of "
        f"{target:g} dB; layers with the largest errors: {names or 'unknown'}. --guard {target:g} gives up the grids "
        f"that ruin it, --keep NAME leaves a layer in floating point",
        QualityWarning,
        stacklevel=4,
    )


def _measured(layer: Any) -> float:
    return float(layer.measured_sqnr_db)
