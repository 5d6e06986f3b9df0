"""Keep a result from being slower than float on this machine, or warn of it."""

from __future__ import annotations

import dataclasses
import warnings

from qgraph.errors import QualityWarning
from qgraph.graph.sites import GraphView
from qgraph.jobs.in_time import foreteller, with_note, without_slow_layers
from qgraph.jobs.result import Result
from qgraph.plan.grids import weights_alone
from qgraph.running.wording import option

SLOWER = 1.02  # times the float latency; beyond this, quantized activations are given up
TIMED_SECONDS = 5e-4  # per sample in floats; timings below this are too noisy to decide anything


def no_slower(result: Result, *, fixed: bool) -> Result:
    """The result, or its weight-only version where quantized activations make it slower than float on this machine.

    With `fixed`, the caller asked for quantized activations: the result stays as it is, and a warning says so.
    """
    quality = result.quality
    slow = quality is not None and (quality.latency or 0.0) > SLOWER and (quality.float_seconds or 0.0) > TIMED_SECONDS
    plan = result.plan
    blocks = any(quant.runs == "blocks" for quant in plan.layers)
    if quality is not None and slow and blocks and result.format == "qdq":
        return _without_blocks(result, quality.latency or 0.0)
    integers = plan.activations or any(quant.runs == "dynamic" for quant in plan.layers)
    if quality is None or not slow or not integers or result.format != "qdq":
        return result
    said = f"integers take {quality.latency:.2f} of the float model's time on this machine"
    if fixed:
        warnings.warn(
            f"{said}: {option('activations', None)} keeps the weights small alone", QualityWarning, stacklevel=4
        )
        return result
    fewer = _without_slow_layers(result)
    if fewer is not None:
        return fewer
    notes = (*plan.notes, f"activations stay floating point: {said}")
    view = GraphView(result.net)
    alone = plan.map_layers(lambda q: weights_alone(q, view.by_name[q.name]) if q.runs == "dynamic" else q)
    plain = dataclasses.replace(result, plan=dataclasses.replace(alone, activations=(), notes=notes))
    other = None if plain.quality is None else plain.quality.latency
    return plain if other is not None and other < (quality.latency or 0.0) else result


def _without_slow_layers(result: Result) -> Result | None:
    """The result with those layers in floats whose integer kernels are slower here, if that is all it takes."""
    foretell = foreteller(result.net, result.samples)
    plan = without_slow_layers(result.plan, foretell)
    if plan == result.plan or foretell(plan).ratio > SLOWER:
        return None
    fewer = dataclasses.replace(result, plan=with_note(plan, result.plan))
    latency = None if fewer.quality is None else fewer.quality.latency
    return fewer if latency is not None and latency <= SLOWER else None


def _without_blocks(result: Result, latency: float) -> Result:
    """The result with floats that are unpacked while loading, where they measure faster than blocks of codes."""
    plan = result.plan
    said = (
        f"weights become floats when the file is loaded: blocks of codes take {latency:.2f} of the float model's time"
    )
    alone = plan.map_layers(lambda q: dataclasses.replace(q, runs="floats") if q.runs == "blocks" else q)
    plain = dataclasses.replace(
        result, plan=dataclasses.replace(alone, notes=(*plan.notes, f"{said} on these samples"))
    )
    other = None if plain.quality is None else plain.quality.latency
    return plain if other is not None and other < latency else result
