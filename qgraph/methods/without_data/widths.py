"""plan -> plan: more bits for layers whose errors are cheap to lower, where no samples tell which layers matter.

An error passes through all that follows, and without samples every layer counts alike by its noise relative to its
signal, r at b bits. With n weights each, the bits of least total noise

    minimise sum_l r_l 4^-(b_l - b)  subject to  sum_l n_l (b_l - b) <= EXTRA sum_l n_l

favour small layers: the early ones of a convolutional network, depthwise kernels and gates, which take next to no bytes
(`qmath.allocate_bits`). The file grows by a sixteenth at 4 bits, at most.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

import numpy as np

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.methods.without_data.expected import Expected
from qgraph.plan import codes as weights
from qgraph.plan.edit import with_weight_bits
from qgraph.plan.grouped import room_of
from qgraph.plan.plan import MAX_BITS, LayerQuant, QuantPlan

EXTRA = 0.25  # bits, on average over all weights


def with_cheap_bits(
    plan: QuantPlan, view: GraphView, expected: Mapping[str, Expected], *, bits: int, asked: Collection[str] = ()
) -> QuantPlan:
    """The plan with up to 8 bits for layers that have `bits`, except those that the caller `asked` to have as many."""
    fits = (q for q in plan.layers if q.weight.bits == bits and q.name not in asked)
    chosen = [q for q in fits if _takes_more(q, view.by_name[q.name])]
    if bits == MAX_BITS or len(chosen) < 2:
        return plan
    sizes = np.array([math.prod(view.by_name[q.name].weight_array().shape) for q in chosen], np.float64)
    noise = np.array([relative_noise(q, view.by_name[q.name], expected.get(q.name)) for q in chosen])
    if not noise.any():
        return plan
    widths = qmath.allocate_bits(
        np.sqrt(noise / sizes), quota=(bits + EXTRA) * sizes.sum(), min_bits=bits, weights=sizes, measure="bits"
    )
    wider = {q.name: int(b) for q, b in zip(chosen, widths, strict=True) if b > bits}
    if not wider:
        return plan
    more = float(sizes @ (widths - bits)) / float(sizes.sum())
    said = (
        f"{len(wider)} small layers have {min(wider.values())} to {max(wider.values())} bits: {more:.2f} bits a weight "
        f"more on average"
    )
    better = plan.map_layers(lambda q: with_weight_bits(q, view.by_name[q.name], wider.get(q.name, q.weight.bits)))
    return dataclasses.replace(better, notes=(*better.notes, said))


def _takes_more(quant: LayerQuant, layer: Layer) -> bool:
    """Whether more bits lose nothing else: kernels on bytes have no room for groups of more than 4 bits."""
    grid = quant.weight
    room = not grid.unit or room_of(grid) is None
    return room and layer.owns_weight and not grid.channel_bits and quant.runs not in ("dynamic", "blocks")


def relative_noise(quant: LayerQuant, layer: Layer, expected: Expected | None) -> float:
    """The noise of a rounded weight over its signal, for uncorrelated inputs of the spreads that are expected."""
    held = layer.weight_array()
    weight, error = held.astype(np.float64), weights.quantized(held, quant.weight).astype(np.float64) - held
    if expected is not None and expected.spread.any():
        spread = weights.over_inputs(expected.spread, quant.weight, held.shape)
        weight, error = weight * spread, error * spread
    signal = float(np.square(weight).sum())
    return float(np.square(error).sum()) / signal if signal else 0.0
