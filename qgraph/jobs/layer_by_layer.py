"""Layer by layer: the best mix of plans that run the products of a network in different ways.

Layers that share an operand or a weight are a group, which runs alike. Each group is taken from one of the plans:

    noise_o(mix) ~ rest_o + sum_g noise_o(g, plan)        seconds(mix) ~ seconds(base) + sum_g seconds(g, plan)

The noise of a group is what the grids of its operands alone add at output o, measured with `Switches`; the seconds are
foretold from kernel times of this machine. The mix starts with the least noise of every group. Then the change that
saves the most time for the noise it adds comes first, until half a decibel is spent, which counts as nothing. To
multiply in floats, without noise, is a way to run a group where that is faster than on any integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.assess.foretold import Foreteller
from qgraph.assess.kernel_table import Kernel
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output, nearest
from qgraph.graph.walk import walk
from qgraph.methods.guard.concessions import without_islands
from qgraph.methods.guard.switches import Grid, Switches
from qgraph.plan.dynamic import is_product
from qgraph.plan.grids import weights_alone
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.samples.dataset import Batch

WORTH_DB = 0.5  # of exactness count as nothing
MATTERS = 2e-3  # of the network's time: a change that saves less is not made for speed
FLOATS = "floats"

Floats = NDArray[np.float64]
Group = frozenset[str]
Choice = Mapping[Group, str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Ways:
    """The ways to run the products of a network, as whole plans by name.

    `base` is the plan that measured best, `first` the one with static grids, which has those of all other layers too.
    """

    view: GraphView
    plans: Mapping[str, QuantPlan]
    base: str
    first: str

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The names of products that run alike, where the plans differ in how."""
        records = [{quant.name: quant for quant in plan.layers} for plan in self.plans.values()]
        names = [n for n, quant in records[0].items() if any(quant != other.get(n) for other in records[1:])]
        layers = [self.view.by_name[name] for name in names]
        dynamic = {quant.name for plan in self.plans.values() for quant in plan.layers if quant.runs == "dynamic"}
        able = [layer for layer in layers if is_product(layer) or layer.name in dynamic]
        layers = [layer for layer in able if layer.has_integer_kernel]
        things = {layer.name: (self.view.root(layer.input), layer.weight) for layer in layers}
        tied: dict[ir.Value, list[str]] = {}
        for name, pair in things.items():
            for thing in pair:
                tied.setdefault(thing, []).append(name)
        found = (walk([name], lambda n: (m for thing in things[n] for m in tied[thing])) for name in things)
        return tuple(dict.fromkeys(frozenset(group) for group in found))

    def mixed(self, choice: Choice) -> QuantPlan:
        """The base plan with every group as in the plan that `choice` names for it."""
        taken = dict[str, LayerQuant]()
        for group, way in choice.items():
            taken |= {quant.name: quant for quant in self.plans[way].layers if quant.name in group}
        base, static = self.plans[self.base], self.plans[self.first]
        known = {(a.tensor, a.role) for a in static.activations}
        grids = *static.activations, *(a for a in base.activations if (a.tensor, a.role) not in known)
        plan = base.map_layers(lambda quant: taken.get(quant.name, quant))
        return without_islands(dataclasses.replace(plan, activations=grids), self.view)

    def noise(self, way: str, batches: Sequence[Batch], *, threads: int | None) -> list[Floats]:
        """What the operands of each group add to the outputs in one of the plans, relative to each output's power."""
        plan = self.plans[way]
        switches = Switches(self.view.model, plan, batches, weights=False, threads=threads)
        return [switches.noise(self._grids(plan, group)) for group in self.groups]

    def _grids(self, plan: QuantPlan, group: Group) -> frozenset[Grid]:
        runs = {quant.name: quant.runs for quant in plan.layers}
        operands = {Grid("operand", name) for name in group if runs[name] == "dynamic"}
        layers = [self.view.by_name[name] for name in group if runs[name] == "integers"]
        read = (nearest(layer.input, plan.operand_grids) for layer in layers)
        tensors = {grid.tensor for grid in read if grid is not None}
        tensors |= {str(fused_output(layer.output).name) for layer in layers if layer.op == "Conv"}
        return frozenset(operands | {Grid("tensor", name) for name in tensors})

    def in_floats(self) -> QuantPlan:
        """The static plan with all groups in floats."""
        names = frozenset[str]().union(*self.groups)
        by_name = self.view.by_name
        return self.plans[self.first].map_layers(lambda q: weights_alone(q, by_name[q.name]) if q.name in names else q)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mix:
    """A plan with a way of its own for every group, and the share of the network's time that this saves, foretold."""

    plan: QuantPlan
    saves: float


def best_mix(
    ways: Ways,
    batches: Sequence[Batch],
    total: Floats,
    foretell: Foreteller | None,
    *,
    enough_db: float = np.inf,
    threads: int | None = None,
) -> Mix:
    """The mix of the ways with the least noise, and then with the least time that costs `WORTH_DB` at most.

    `total` is the noise of the base plan at each output; where an output has `enough_db` or more, time comes first.
    Without `foretell` all ways take the same time.
    """
    names, groups = list(ways.plans), ways.groups
    noise = np.stack([ways.noise(way, batches, threads=threads) for way in names], axis=1)
    seconds = np.zeros(noise.shape[:2])
    if foretell is not None:
        names.append(FLOATS)
        ways = dataclasses.replace(ways, plans={**ways.plans, FLOATS: ways.in_floats()})
        seconds = np.array([[_seconds(ways, foretell, group, way) for way in names] for group in groups])
        faster = seconds[:, -1] < seconds[:, :-1].min(axis=1) - _matters(foretell)
        in_floats = np.where(faster[:, None], np.zeros(noise.shape[2]), np.inf)
        noise = np.concatenate([noise, in_floats[:, None]], axis=1)
    now, each = names.index(ways.base), np.arange(len(groups))
    rest = np.maximum(total - noise[:, now].sum(axis=0), 0.0)
    enough = 10 ** (-enough_db / 10)
    chosen = traded(noise, seconds, rest=rest, worth_db=WORTH_DB, matters=_matters(foretell), enough=enough)
    saved = (seconds[:, now] - seconds[each, chosen]).sum()
    return Mix(
        plan=ways.mixed({group: names[way] for group, way in zip(groups, chosen, strict=True)}),
        saves=float(saved) / foretell.float_seconds if foretell is not None else 0.0,
    )


def _matters(foretell: Foreteller | None) -> float:
    return 0.0 if foretell is None else MATTERS * foretell.float_seconds


def _seconds(ways: Ways, foretell: Foreteller, group: Group, way: str) -> float:
    """The foretold seconds of the base plan with one group run in another way."""
    plan = ways.mixed({group: way})
    divided = {(q.weight.input_scale, ways.view.by_name[q.name].input): q for q in plan.layers if q.name in group}
    dividing = (_dividing(ways.view, foretell, q) for (factors, _), q in divided.items() if factors)
    return foretell(plan).seconds + sum(dividing)


def _dividing(view: GraphView, foretell: Foreteller, quant: LayerQuant) -> float:
    """The seconds of dividing the operand of a layer by its factors, and of the channels that are multiplied apart."""
    layer, factors = view.by_name[quant.name], quant.weight.input_scale
    operand = foretell.shapes.get(str(layer.input.name))
    if operand is None:  # in a branch that these feeds do not take
        return 0.0
    total = foretell.table[Kernel(op="Mul", operand=operand, weight=(len(factors),))]
    if apart := factors.count(0):
        outputs = layer.weight_array().shape[layer.output_axis]
        total += foretell.table[Kernel(op="MatMul", operand=(*operand[:-1], apart), weight=(apart, outputs))]
        total += foretell.table[Kernel(op="Add", operand=(*operand[:-1], outputs))]
    return total


def traded(
    noise: Floats, seconds: Floats, *, rest: Floats, worth_db: float, matters: float, enough: float = 0.0
) -> list[int]:
    """The way of every group: the least noise, and then the least time that costs at most `worth_db` of it.

    Args:
        noise: groups x ways x outputs, relative to the power of the output.
        seconds: groups x ways.
        rest: the noise of everything else at each output.
        worth_db: how much of the exactness of the least noise may be given up at any output.
        matters: the least seconds that a change must save.
        enough: noise that any output may have, however much less it could have.

    Example:
        >>> noise = np.array([[[1.0], [1.1]], [[5.0], [9.0]]])
        >>> seconds = np.array([[3.0, 1.0], [3.0, 1.0]])
        >>> traded(noise, seconds, rest=np.array([1.0]), worth_db=0.5, matters=0.1)
        [1, 0]
    """
    groups = np.arange(len(noise))
    chosen = noise.max(axis=2, initial=0.0).argmin(axis=1)
    total = rest + noise[groups, chosen].sum(axis=0)
    limit = np.maximum(total * 10 ** (worth_db / 10), max(enough, np.finfo(np.float64).tiny))
    while True:
        added = ((noise - noise[groups, chosen][:, None]) / limit).max(axis=2)
        saved = seconds[groups, chosen][:, None] - seconds
        fits = (total + noise - noise[groups, chosen][:, None] <= limit).all(axis=2)
        worth = np.where(fits & (saved > matters), saved / np.maximum(added, 1e-9), 0.0)
        group, way = np.unravel_index(worth.argmax(), worth.shape)
        if not worth[group, way]:
            return [int(way) for way in chosen]
        total = total + noise[group, way] - noise[group, chosen[group]]
        chosen[group] = way
