"""Mixed precision (ZeroQ, Eq. 4): choose bits per layer from sensitivities, under a budget of bytes.

    minimise sum_i Omega_i(k_i)  subject to  sum_i bytes_i(k_i) <= budget

over every layer's choices, exactly: one pass gives the Pareto frontier of all sizes (`qmath.pareto_frontier`). Where
layers influence each other, `search_groups` measures combinations instead of adding sensitivities (Appendix A).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import qmath
from qgraph.errors import UsageError
from qgraph.methods.zeroq.config import MixConfig
from qgraph.methods.zeroq.sensitivity import Menu, Sensitivity
from qgraph.observe.compared import Compared
from qgraph.plan.plan import QuantPlan
from qgraph.running.wording import Blank, option

MEGABYTE = 2**20
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Allocation:
    """The frontier of sizes and sensitivities, and the selection taken from it.

    With `max_drop`, `drop` is the measured loss of the selection.
    """

    sensitivity: Sensitivity
    frontier: qmath.Frontier
    chosen: qmath.Selection
    drop: Compared | None = None

    @property
    def bits(self) -> dict[str, int]:
        """The bits of every layer in the chosen selection."""
        rows = zip(self.sensitivity.layers, self.chosen.choices.tolist(), strict=True)
        return {layer.name: layer.bits[choice] for layer, choice in rows}


def frontier(table: Sensitivity) -> qmath.Frontier:
    """The Pareto frontier of bytes of weights (`sizes`) and sums of sensitivities."""
    return qmath.pareto_frontier([row.measured for row in table.layers], [row.nbytes for row in table.layers])


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
    smallest = float(sum(min(row.nbytes) for row in table.layers))
    if budget < smallest:
        raise UsageError(
            f"a budget of {_mb(budget)} MB cannot be reached: the smallest weights that the allowed bits give take "
            f"{_mb(smallest, up=True)} MB; pass {option('size_mb', Blank(_mb(smallest, up=True)))} or more, or allow "
            f"fewer {option('bits')}"
        )
    floats = FLOAT_BYTES * sum(row.weights for row in table.layers)
    if budget > floats:
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


def mix(plan: QuantPlan, menu: Menu, chosen: qmath.Selection) -> QuantPlan:
    """The plan with each layer of the menu quantized as chosen."""
    picked = {
        name: choices[index] for (name, choices), index in zip(menu.items(), chosen.choices.tolist(), strict=True)
    }
    return plan.map_layers(lambda layer: picked.get(layer.name, layer))


def _index(front: qmath.Frontier, budget: float) -> int:
    """The index of the largest point within the budget, or of the smallest point."""
    return max(int(np.searchsorted(front.sizes, budget, side="right")) - 1, 0)


def _mb(nbytes: float, *, up: bool = False) -> str:
    """Megabytes with four decimals; with `up`, rounded up so that the number is a safe lower bound."""
    tenths = nbytes / MEGABYTE * 10_000
    return f"{(-(-tenths // 1) if up else tenths) / 10_000:.4f}"
