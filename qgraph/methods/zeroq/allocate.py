"""Mixed precision (ZeroQ, Eq. 4): choose bits per layer from sensitivities, under a budget of bytes.

    minimise sum_i Omega_i(k_i)  subject to  sum_i bytes_i(k_i) <= budget

over the choices of every layer's weight, or of every tensor that layers read, exactly: one pass gives the Pareto
frontier of all sizes (`qmath.pareto_frontier`). Where layers influence each other, `search_groups` measures
combinations instead of adding sensitivities (Appendix A).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import qmath
from qgraph.errors import UsageError
from qgraph.methods.zeroq.config import MixConfig
from qgraph.methods.zeroq.sensitivity import (
    LayerSensitivity,
    Menu,
    Row,
    Sensitivity,
    TensorMenu,
    TensorSensitivity,
    read_bits,
)
from qgraph.observe.compared import Compared
from qgraph.plan.plan import ActivationQuant, QuantPlan
from qgraph.running.wording import Blank, option

MEGABYTE = 2**20
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Allocation:
    """The frontier of sizes and sensitivities, and the selection taken from it.

    Sizes are bytes of weights, and of the activations of one sample. With `max_drop`, `drop` is the measured loss of
    the selection. Activations with a budget of their own have an allocation of their own, `activations`, beside that
    of weights.
    """

    sensitivity: Sensitivity
    frontier: qmath.Frontier
    chosen: qmath.Selection
    drop: Compared | None = None
    activations: Allocation | None = None

    @property
    def bits(self) -> dict[str, int]:
        """The bits of every layer's weight in the chosen selection."""
        return {row.name: bits for row, bits in self.taken if isinstance(row, LayerSensitivity)}

    @property
    def activation_bits(self) -> dict[str, int]:
        """The bits of every tensor that layers read."""
        own = {row.name: bits for row, bits in self.taken if isinstance(row, TensorSensitivity)}
        return own if self.activations is None else {**own, **self.activations.activation_bits}

    @property
    def taken(self) -> list[tuple[Row, int]]:
        """The rows of the frontier's table, with the chosen bits."""
        rows = zip(self.sensitivity.rows, self.chosen.choices.tolist(), strict=True)
        return [(row, row.bits[choice]) for row, choice in rows]

    @property
    def parts(self) -> tuple[Allocation, ...]:
        """This allocation, and that of activations if they have a budget of their own."""
        return (self,) if self.activations is None else (self, self.activations)


def average_bits(taken: Iterable[tuple[Row, int]]) -> float:
    """The bits of an average weight or activation: of each as many as it has numbers."""
    bits, counts = zip(*((width * row.count, row.count) for row, width in taken), strict=True)
    return sum(bits) / max(sum(counts), 1)


def frontier(table: Sensitivity) -> qmath.Frontier:
    """The Pareto frontier of bytes (`sizes`) and sums of sensitivities."""
    return qmath.pareto_frontier([row.measured for row in table.rows], [row.nbytes for row in table.rows])


def search_groups(
    table: Sensitivity,
    measure: Callable[[tuple[int, ...]], float],
    *,
    budget: float | None = None,
    config: MixConfig | None = None,
) -> qmath.Frontier:
    """The frontier of sizes and measured sensitivities of whole selections, built group by group (Appendix A).

    `measure` gets the choices for the first layers, with the others in floating point, and returns their joint
    sensitivity. The smallest and largest selection, and the one that the sum of sensitivities would choose at `budget`,
    are measured as well, so that the result is never worse than that one.
    """
    costs, sizes = [row.measured for row in table.layers], [row.nbytes for row in table.layers]
    c = config or MixConfig()
    found = qmath.group_search(costs, sizes, measure, group=c.a, intervals=c.b, candidates=c.t1, keep=c.t2)
    added = frontier(table)
    known = sorted({0, len(added) - 1, *([] if budget is None else [_index(added, budget)])})
    measured = [measure(tuple(added.choices[i].tolist())) for i in known]
    size = np.concatenate([found.sizes, added.sizes[known]])
    cost = np.concatenate([found.costs, measured])
    order = np.lexsort((cost, size))
    cheapest = np.minimum.accumulate(cost[order])
    kept = order[np.concatenate(([True], cost[order][1:] < cheapest[:-1]))]
    choices = np.concatenate([found.choices, added.choices[known]])[kept]
    return qmath.Frontier(sizes=size[kept], costs=cost[kept], gaps=np.full(kept.size, np.nan), choices=choices)


def within(front: qmath.Frontier, table: Sensitivity, budget: float) -> qmath.Selection:
    """The selection of least sensitivity that takes at most `budget` bytes.

    Raises `UsageError` if the budget is below the smallest possible size; warns if it exceeds that of float weights.
    """
    smallest = float(sum(min(row.nbytes) for row in table.rows))
    if budget < smallest and table.tensors:
        least = Blank(f"{math.ceil(800 * smallest / sum(row.values for row in table.tensors)) / 100:.2f}")
        raise UsageError(
            f"a budget of so few bits cannot be reached: pass {option('average_activation_bits', least)} or more, or "
            f"allow fewer {option('bits')}"
        )
    if budget < smallest:
        raise UsageError(
            f"a budget of {_mb(budget)} MB cannot be reached: the smallest weights that the allowed bits give take "
            f"{_mb(smallest, up=True)} MB; pass {option('size_mb', Blank(_mb(smallest, up=True)))} or more, or allow "
            f"fewer {option('bits')}"
        )
    floats = FLOAT_BYTES * sum(row.weights for row in table.layers)
    if table.layers and budget > floats:
        most = max(bits for row in table.layers for bits in row.bits)
        warnings.warn(
            f"the budget of {_mb(budget)} MB is above the {_mb(floats)} MB of float weights: {most} bits are used",
            stacklevel=2,
        )
    return front.within(budget)


def smallest_accepted(front: qmath.Frontier, accept: Callable[[qmath.Selection], bool]) -> qmath.Selection | None:
    """The smallest selection that `accept` accepts, by bisection, assuming that larger ones are no worse.

    The largest is tried first; None if even that is rejected.
    """
    low, high = 0, len(front) - 1
    if not accept(front[high]):
        return None
    while low < high:
        middle = (low + high) // 2
        if accept(front[middle]):
            high = middle
        else:
            low = middle + 1
    return front[high]


def mix(plan: QuantPlan, menu: Menu, bits: Mapping[str, int]) -> QuantPlan:
    """The plan with the weight of each layer at its `bits`, as the menu has it."""
    picked = {name: next(c for c in menu[name] if c.weight.bits == width) for name, width in bits.items()}
    return plan.map_layers(lambda layer: picked.get(layer.name, layer))


def mix_activations(plan: QuantPlan, menu: TensorMenu, bits: Mapping[str, int]) -> QuantPlan:
    """The plan with the grids of each tensor at its `bits`, as the menu has them, in the order of the plan."""
    own: dict[str, Sequence[ActivationQuant]] = {}
    for grid in plan.activations:
        own[grid.tensor] = (*own.get(grid.tensor, ()), grid)
    own |= {name: next(c for c in menu[name] if read_bits(c) == width) for name, width in bits.items()}
    return dataclasses.replace(plan, activations=tuple(grid for grids in own.values() for grid in grids))


def _index(front: qmath.Frontier, budget: float) -> int:
    """The index of the largest point within the budget, or of the smallest point."""
    return max(int(np.searchsorted(front.sizes, budget, side="right")) - 1, 0)


def _mb(nbytes: float, *, up: bool = False) -> str:
    """Megabytes with four decimals; with `up`, rounded up so that the number is a safe lower bound."""
    tenths = nbytes / MEGABYTE * 10_000
    return f"{(-(-tenths // 1) if up else tenths) / 10_000:.4f}"
