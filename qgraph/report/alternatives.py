"""What other bits would do to the weights of single layers, predicted from statistics and closed forms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qgraph.assess.layer_errors import predicted_noise
from qgraph.errors import PlanError
from qgraph.graph.sites import GraphView
from qgraph.jobs.whatif import shifted_again
from qgraph.lowering.packing import stored_bytes
from qgraph.observe.statistics import Observations
from qgraph.plan.changes import parsed
from qgraph.plan.edit import edited
from qgraph.plan.plan import QuantPlan

WIDTHS = (2, 3, 4, 6, 8)
WORST, LARGEST = 6, 6  # layers that are listed for their error, and for their bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The predicted dB of a layer and the bytes of its weight, at some bits."""

    bits: int
    sqnr_db: float
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A layer with the bits of its weight in the plan, and what it would be at others."""

    layer: str
    bits: int
    choices: tuple[Choice, ...]


def alternatives(
    view: GraphView, plan: QuantPlan, predicted: Mapping[str, float], observed: Observations
) -> tuple[Alternative, ...]:
    """The layers with the least predicted dB and those with the most bytes, at other bits; in graph order.

    `predicted` are the dB of the layers as they are. The noise N of a layer at other bits follows from the same closed
    form, and dB + 10 log10(N_now / N_then) is what it then has. Empty where the plan does not fit other bits.
    """
    sizes = {q.name: stored_bytes(view.by_name[q.name].weight_array().shape, q.weight) for q in plan.layers}
    names = _chosen(predicted, sizes)
    base = dataclasses.replace(plan, layers=tuple(q for q in plan.layers if q.name in names))
    if not base.layers:
        return ()
    now = predicted_noise(view, base, observed)
    found: dict[str, list[Choice]] = {quant.name: [] for quant in base.layers}
    for bits in WIDTHS:
        try:
            other = edited(base, view, parsed([f"*:weights={bits}"]), observed)
        except PlanError:
            return ()
        other = shifted_again(other, base, view, observed)
        then = predicted_noise(view, other, observed)
        for quant in other.layers:
            if now[quant.name] > 0 and then[quant.name] > 0:
                change = 10 * math.log10(now[quant.name] / then[quant.name])
                shape = view.by_name[quant.name].weight_array().shape
                nbytes = stored_bytes(shape, quant.weight)
                found[quant.name].append(Choice(bits=bits, sqnr_db=predicted[quant.name] + change, nbytes=nbytes))
    return tuple(
        Alternative(layer=quant.name, bits=quant.weight.bits, choices=tuple(found[quant.name])) for quant in base.layers
    )


def _chosen(predicted: Mapping[str, float], sizes: Mapping[str, int]) -> set[str]:
    """The names of the layers that are worth a row."""
    known = [name for name, value in predicted.items() if math.isfinite(value)]
    worst: Sequence[str] = sorted(known, key=lambda name: predicted[name])[:WORST]
    largest = sorted(known, key=lambda name: -sizes[name])[:LARGEST]
    return {*worst, *largest}
