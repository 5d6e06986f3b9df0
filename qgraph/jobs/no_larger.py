"""Keep a quantized file from getting larger than the float one, where grids cost more bytes than weights save."""

from __future__ import annotations

import dataclasses
import math
import warnings

from qgraph.errors import QualityWarning
from qgraph.graph.sites import GraphView
from qgraph.jobs.result import Result
from qgraph.plan.plan import KeptFloat, QuantPlan
from qgraph.running.wording import option

SMALL = 2**14  # bytes of a float file below which the names of grids decide the size: only warn
LARGE = 2**26  # bytes of a float file above which weights outweigh everything else: do not check
NODE = 1024  # bytes that a node takes at most, with the names of its values
PAYS = 256  # values of a weight; below this, its grid takes about as many bytes as it saves


def no_larger(result: Result, *, fixed: bool) -> Result:
    """The result, with fewer grids if it is larger than the float file and they make it smaller.

    Gives up the grids of activations first, unless the caller asked for them (`fixed`), then those of small weights.
    """
    if not _is_larger(result):
        return result
    floats = result.net.nbytes
    plan, candidates = result.plan, list[QuantPlan]()
    if floats >= SMALL and not fixed:
        note = (
            f"activations stay floating point: with them the file has {result.nbytes:,} bytes, of {floats:,} in floats"
        )
        plain = dataclasses.replace(plan, activations=(), notes=(*plan.notes, note))
        candidates = [plain, _without_small_weights(plain, GraphView(result.net))]
    for candidate in candidates:
        smaller = dataclasses.replace(result, plan=candidate)
        if candidate.layers and smaller.nbytes <= floats:
            return smaller
    return result


def warn_if_larger(result: Result) -> None:
    """Warn of a file that is larger than the float one after all."""
    if _is_larger(result):
        gone = result.given_up
        why = "which holds few weights that can be quantized"
        if gone is not None and any(concession.how == "float" for concession in gone.concessions):
            why = f"since weights stay float for {gone.goal}: {option('guard', 'off')} quantizes them"
        warnings.warn(
            f"the file has {result.nbytes:,} bytes, more than the {result.net.nbytes:,} of the float model, {why}",
            QualityWarning,
            stacklevel=4,
        )


def _is_larger(result: Result) -> bool:
    """Whether a deployable file is larger than the float one, where that one is not too large to ask."""
    floats = result.net.nbytes
    return result.format == "qdq" and floats <= LARGE and not _surely_smaller(result) and result.nbytes > floats


def _surely_smaller(result: Result) -> bool:
    """Whether the file is smaller even with a generous allowance for its nodes: no constant is computed to tell."""
    graph = result.model.graph
    constants = sum(tensor.nbytes for v in graph.initializers.values() if (tensor := v.const_value) is not None)
    return constants + NODE * len(graph) < result.net.nbytes


def _without_small_weights(plan: QuantPlan, view: GraphView) -> QuantPlan:
    size = {layer.name: math.prod(view.by_name[layer.name].weight_array().shape) for layer in plan.layers}
    small = [
        KeptFloat(name=name, why="its grid would take more bytes than its weight saves", bytes=4 * values)
        for name, values in size.items()
        if values < PAYS
    ]
    gone = {kept.name for kept in small}
    layers = tuple(layer for layer in plan.layers if layer.name not in gone)
    return dataclasses.replace(plan, layers=layers, kept_float=(*plan.kept_float, *small))
