"""The cost of giving a grid up: the shares of the network's products and bytes that return to floating point."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output, nearest
from qgraph.graph.work import multiplications
from qgraph.methods.guard.switches import Grid
from qgraph.plan.plan import QuantPlan

LEAST = 1e-4  # the cost of a concession that moves no product to floats, but adds a conversion
BYTES = 2.0  # the weight of a share of the bytes relative to a share of the products


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The cost of each concession, from 0 (free) to 1 + `BYTES` (the whole network back in floating point)."""

    products: Mapping[Grid, float]
    weights: Mapping[Grid, float]

    @classmethod
    def of(cls, view: GraphView, plan: QuantPlan) -> Costs:
        layers = [view.by_name[quant.name] for quant in plan.layers]
        work = {layer.name: multiplications(layer) for layer in layers}
        size = {layer.name: math.prod(layer.weight_array().shape) for layer in layers}
        all_work, all_size = sum(work.values()) or 1, sum(size.values()) or 1
        shares: dict[Grid, float] = defaultdict(float)
        for layer in layers:
            share = work[layer.name] / all_work
            shares[Grid("weight", layer.name)] += share
            shares[Grid("operand", layer.name)] += share
            operand = nearest(layer.input, plan.operand_grids)
            if operand is not None:
                shares[Grid("tensor", operand.tensor)] += share
            if layer.op == "Conv":  # a convolution on integers also writes integers
                shares[Grid("tensor", str(fused_output(layer.output).name))] += share
        return cls(products=shares, weights={Grid("weight", name): n / all_size for name, n in size.items()})

    def __getitem__(self, concession: tuple[Grid, str]) -> float:
        grid, how = concession
        if how == "whole range":
            return LEAST / 10
        return LEAST + self.products.get(grid, 0.0) + BYTES * self.weights.get(grid, 0.0)
