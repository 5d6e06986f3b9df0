"""The work of a layer: its multiplications."""

from __future__ import annotations

import math

from qgraph.graph.layers import TABLE_OP, Layer


def multiplications(layer: Layer) -> int:
    """The multiplications of a layer for one sample: weights times places; unknown sizes count as one."""
    if layer.op == TABLE_OP:
        return 0
    sizes = [d if isinstance(d, int) and d > 0 else 1 for d in (layer.output.shape or ())]
    places = sizes[2:] if layer.op in ("Conv", "ConvTranspose") else sizes[1:-1]
    return math.prod(layer.weight_array().shape) * math.prod(places)
