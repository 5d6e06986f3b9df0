"""plan -> plan: 8 bits for small layers, whose errors are cheap to lower, where no samples tell which layers matter.

An error passes through all that follows, and without samples every layer counts alike by its noise relative to its
signal. With 8 bits next to nothing is left of it. So those layers stay at 8 bits that lose most a weight, as long as
all weights together take `EXTRA` bits more on average: the early layers of a network, depthwise kernels and gates. At 4
bits, the file grows by a sixteenth at most.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.methods.without_data.expected import Expected
from qgraph.plan import codes as weights
from qgraph.plan.edit import with_weight_bits
from qgraph.plan.grouped import room_of
from qgraph.plan.plan import MAX_BITS, LayerQuant, QuantPlan, WeightQuant

EXTRA = 0.25  # bits, on average over all weights
_VALUES = 2**16  # held at a time


def with_small_layers_at_8_bits(
    plan: QuantPlan, view: GraphView, expected: Mapping[str, Expected], *, bits: int, asked: Collection[str] = ()
) -> QuantPlan:
    """The plan with 8 bits for small layers of those that have `bits`, unless the caller `asked` for as many."""
    fits = (q for q in plan.layers if q.weight.bits == bits and q.name not in asked)
    chosen = [q for q in fits if _takes_more(q, view.by_name[q.name])]
    if bits == MAX_BITS or not chosen:
        return plan
    sizes = np.array([math.prod(view.by_name[q.name].weight_array().shape) for q in chosen], np.float64)
    noise = np.array([relative_noise(q, view.by_name[q.name], expected.get(q.name)) for q in chosen])
    order = np.argsort(-noise / sizes, kind="stable")
    more = (MAX_BITS - bits) * np.cumsum(sizes[order]) / sizes.sum()
    wide = {chosen[k].name for k, average in zip(order, more, strict=True) if average <= EXTRA}
    if not wide:
        return plan
    said = f"{len(wide)} small layers stay at {MAX_BITS} bits: {more[len(wide) - 1]:.2f} bits a weight on average"
    better = plan.map_layers(
        lambda q: with_weight_bits(q, view.by_name[q.name], MAX_BITS if q.name in wide else q.weight.bits)
    )
    return dataclasses.replace(better, notes=(*better.notes, said))


def _takes_more(quant: LayerQuant, layer: Layer) -> bool:
    """Whether more bits lose nothing else: kernels on bytes have no room for groups of more than 4 bits."""
    grid = quant.weight
    room = not grid.unit or room_of(grid) is None
    return room and layer.owns_weight and not grid.channel_bits and quant.runs not in ("dynamic", "blocks")


def relative_noise(quant: LayerQuant, layer: Layer, expected: Expected | None) -> float:
    """The noise of a rounded weight over its signal, for uncorrelated inputs of the spreads that are expected."""
    held = layer.weight_array()
    spread = np.broadcast_to(np.float64(1), held.shape)
    if expected is not None and expected.spread.any():
        spread = np.broadcast_to(weights.over_inputs(expected.spread, quant.weight, held.shape), held.shape)
    signal = noise = 0.0
    for some, grid in _parts(held.shape, quant.weight):
        weight = held[some].astype(np.float64)
        error = (weights.quantized(held[some], grid) - weight) * spread[some]
        signal += float(np.square(weight * spread[some]).sum())
        noise += float(np.square(error).sum())
    return noise / signal if signal else 0.0


def _parts(shape: tuple[int, ...], quant: WeightQuant) -> Iterator[tuple[tuple[slice, ...], WeightQuant]]:
    """A weight some inputs at a time, with the grid of each part."""
    if quant.granularity.group or quant.unit or len(shape) < 2:
        yield from weights.parts(shape, quant)
        return
    across = 0 if quant.granularity.axis == 1 else 1
    step = max(1, _VALUES * shape[across] // max(1, math.prod(shape)))
    for start in range(0, shape[across], step):
        yield (slice(None),) * across + (slice(start, start + step),), quant
