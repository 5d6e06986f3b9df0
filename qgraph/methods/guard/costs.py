"""What giving a grid up costs: the share of the network's products that leave integers, and of its bytes that grow."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output, nearest
from qgraph.methods.guard.switches import Grid
from qgraph.plan.plan import QuantPlan

LEAST = 1e-4  # of a concession that leaves no product to floats: a conversion more
BYTES = 2.0  # what a share of the bytes weighs beside a share of the products


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Costs by grid and by how it gives way, from 0 (nothing) to 1 + `BYTES` (the whole network as it was)."""

    products: Mapping[Grid, float]
    weights: Mapping[Grid, float]

    @classmethod
    def of(cls, view: GraphView, plan: QuantPlan) -> Costs:
        layers = [view.by_name[quant.name] for quant in plan.layers]
        work = {layer.name: products(layer) for layer in layers}
        size = {layer.name: math.prod(layer.weight_array().shape) for layer in layers}
        all_work, all_size = sum(work.values()) or 1, sum(size.values()) or 1
        shares: dict[Grid, float] = defaultdict(float)
        for layer in layers:
            share = work[layer.name] / all_work
            shares[Grid("weight", layer.name)] += share
            operand = nearest(layer.input, plan.operand_grids)
            if operand is not None:
                shares[Grid("tensor", operand.tensor)] += share
            if layer.op == "Conv":  # which writes integers where it computes in them
                shares[Grid("tensor", str(fused_output(layer.output).name))] += share
        return cls(products=shares, weights={Grid("weight", name): n / all_size for name, n in size.items()})

    def __getitem__(self, concession: tuple[Grid, str]) -> float:
        grid, how = concession
        if how == "whole range":
            return LEAST / 10
        return LEAST + self.products.get(grid, 0.0) + BYTES * self.weights.get(grid, 0.0)


def products(layer: Layer) -> int:
    """Multiplications of one sample's pass, with dimensions that are open counted as one."""
    shape = layer.output.shape
    dims = [d if isinstance(d, int) and d > 0 else 1 for d in (shape or ())]
    places = dims[2:] if layer.op in ("Conv", "ConvTranspose") else dims[1:-1]
    return math.prod(layer.weight_array().shape) * math.prod(places)
