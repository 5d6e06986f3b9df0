"""Size against total sensitivity: the frontier of the multiple-choice knapsack problem (ZeroQ, section III-B).

Every layer takes one of its choices (bit-widths); sizes and costs add up over layers. Replacing each layer's choices by
their convex hull gives the linear relaxation, whose optimum for every budget is one sorted list of steps
(`relaxation`): it is the lower bound behind every gap reported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_parameter
from qmath.sample import Floats

Table = Sequence[ArrayLike] | ArrayLike  # one row of choices per layer; rows may differ in length
Trail = tuple[NDArray[np.integer], NDArray[np.uint8]]  # of one layer's states: parent state, choice
MAX_STATES = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """One choice per layer, with the total size and cost, and how far the cost may exceed the least at this size.

    `choices` has shape (layers,); `size`, `cost` and `gap`, the possible excess, are in the units of the tables.

    Example:
        >>> import qmath
        >>> qmath.knapsack([[3.0, 1.0], [5.0, 0.0]], [[2, 4], [2, 4]], 6).choices.tolist()
        [0, 1]
    """

    choices: NDArray[np.int64]
    size: float
    cost: float
    gap: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frontier:
    """Selections in order of size, each with a lower cost than all smaller ones.

    `sizes`, `costs` and `gaps` have shape (points,), `choices` (points, layers). No selection within sizes[i] costs
    less than costs[i] - gaps[i]; a gap is 0 where the point is proven optimal and NaN where no bound is known (measured
    costs).

    Example:
        >>> import qmath
        >>> frontier = qmath.pareto_frontier([[3.0, 1.0], [5.0, 0.0]], [[2, 4], [2, 4]])
        >>> frontier.sizes.tolist(), frontier.costs.tolist(), len(frontier)
        ([4.0, 6.0, 8.0], [8.0, 3.0, 1.0], 3)
    """

    sizes: Floats
    costs: Floats
    gaps: Floats
    choices: NDArray[np.uint8]

    def __len__(self) -> int:
        return int(self.sizes.size)

    def __getitem__(self, point: int) -> Selection:
        return Selection(
            choices=self.choices[point].astype(np.int64),
            size=float(self.sizes[point]),
            cost=float(self.costs[point]),
            gap=float(self.gaps[point]),
        )

    def within(self, budget: float) -> Selection:
        """Return the point of least cost whose size is at most `budget`.

        Raises:
            ValueError: When no point fits.

        Example:
            >>> import qmath
            >>> frontier = qmath.pareto_frontier([[3.0, 1.0], [5.0, 0.0]], [[2, 4], [2, 4]])
            >>> frontier.within(7).cost
            3.0
        """
        fits = int(np.searchsorted(self.sizes, budget, side="right"))
        if fits == 0:
            raise ValueError(f"no selection fits into {budget}: the smallest takes {self.sizes[0]}")
        return self[fits - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer's useful choices by ascending size and falling cost; `index` locates them in the caller's row."""

    sizes: Floats
    costs: Floats
    index: NDArray[np.int64]


def pareto_frontier(costs: Table, sizes: Table, *, steps: int = 100_000) -> Frontier:
    """Return all non-dominated totals of (size, cost): exactly, where at most `steps` of them can be listed.

    `costs` and `sizes` hold one row per layer and one entry per choice, in units of the caller's: arrays of shape
    (layers, choices), or rows of different lengths, at most 255 choices. The result is exact (every gap 0) when the
    sizes are multiples of a common integer that gives at most `steps` distinct totals, or when the list never outgrows
    `steps`. Otherwise totals are kept on `steps` equal steps of size, each choice rounded to the nearest one; every
    point is then a real selection with its true size and cost, and its gap is measured against the linear relaxation.
    Source: ZeroQ, section III-B.

    Raises:
        ValueError: For unequal shapes, empty or non-finite tables, or `steps` below 1.

    Example:
        >>> import qmath
        >>> qmath.pareto_frontier([[3.0, 1.0], [5.0, 0.0]], [[2, 4], [2, 4]]).choices.tolist()
        [[0, 0], [0, 1], [1, 1]]
    """
    layers = _layers(costs, sizes)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    unit = _common_unit(layers)
    span = sum(float(layer.sizes[-1] - layer.sizes[0]) for layer in layers)
    if unit and span / unit <= steps:
        return _by_steps(layers, unit, exact=True)
    listed = _by_listing(layers, steps)
    return listed if listed is not None else _by_steps(layers, span / steps, exact=False)


def knapsack(costs: Table, sizes: Table, budget: float) -> Selection:
    """Return the selection of least cost whose size is at most `budget`, proven optimal (gap 0).

    A size that exceeds the budget by a relative 1e-12, the rounding of the sum, still fits. Layers are added one at a
    time to a list of non-dominated partial selections; one is dropped when its cost plus the linear relaxation of the
    remaining layers exceeds the best complete selection known. Tables as for `pareto_frontier`.

    Raises:
        ValueError: When nothing fits, or when more than two million partial selections survive (then take the
            frontier).

    Example:
        >>> import qmath
        >>> best = qmath.knapsack([[3.0, 1.0], [5.0, 0.0]], [[2, 4], [2, 4]], 6)
        >>> best.choices.tolist(), best.size, best.cost
        ([0, 1], 6.0, 3.0)
    """
    layers = sorted(enumerate(_layers(costs, sizes)), key=lambda item: float(item[1].sizes[0] - item[1].sizes[-1]))
    ordered = [layer for _, layer in layers]
    smallest = sum(float(layer.sizes[0]) for layer in ordered)
    slack = 1e-12 * max(abs(budget), abs(smallest))
    rounding = 1e-12 * sum(float(np.abs(layer.costs).max()) for layer in ordered)
    if not smallest <= budget + slack:
        raise ValueError(f"no selection fits into {budget}: the smallest takes {smallest}")
    size, cost, best = np.zeros(1), np.zeros(1), np.inf
    trail: list[Trail] = []
    for layer, (rest_size, rest_cost) in zip(ordered, _remainders(ordered), strict=True):
        size = (size[:, None] + layer.sizes).ravel()
        cost = (cost[:, None] + layer.costs).ravel()
        room = budget + slack - size
        corner = np.searchsorted(rest_size, room, side="right") - 1
        reachable = corner >= 0
        best = min(best, float((cost + rest_cost[corner])[reachable].min()))
        bound = cost + np.interp(room, rest_size, rest_cost)
        kept = np.flatnonzero(reachable & (bound <= best + rounding))
        kept = kept[_undominated(size[kept], cost[kept])]
        if kept.size > MAX_STATES:
            raise ValueError(
                f"more than {MAX_STATES} partial selections survive: use pareto_frontier(...).within(budget)"
            )
        trail.append((kept // layer.sizes.size, layer.index[kept % layer.sizes.size].astype(np.uint8)))
        size, cost = size[kept], cost[kept]
    chosen = _follow(trail, np.array([int(np.argmin(cost))]))[0]
    choices = np.empty(len(layers), np.int64)
    choices[[place for place, _ in layers]] = chosen
    at = int(np.argmin(cost))
    return Selection(choices=choices, size=float(size[at]), cost=float(cost[at]), gap=0.0)


def relaxation(layers: Sequence[Layer]) -> tuple[Floats, Floats]:
    """Corners (sizes ascending, costs falling) of the linear relaxation; interpolate between them for any budget.

    Each layer contributes the edges of its convex hull; sorted by cost per size, steepest first, they are taken in
    turn. Every corner is itself a selection.
    """
    width, drop, _ = _steepest_edges(layers)
    return (
        sum(float(layer.sizes[0]) for layer in layers) + np.append(0.0, np.cumsum(width)),
        sum(float(layer.costs[0]) for layer in layers) - np.append(0.0, np.cumsum(drop)),
    )


def _remainders(layers: Sequence[Layer]) -> Iterator[tuple[Floats, Floats]]:
    """For each layer in turn, the relaxation of the layers after it."""
    width, drop, owner = _steepest_edges(layers)
    size = sum(float(layer.sizes[0]) for layer in layers)
    cost = sum(float(layer.costs[0]) for layer in layers)
    for i, layer in enumerate(layers):
        later = owner > i
        width, drop, owner = width[later], drop[later], owner[later]
        size, cost = size - float(layer.sizes[0]), cost - float(layer.costs[0])
        yield size + np.append(0.0, np.cumsum(width)), cost - np.append(0.0, np.cumsum(drop))


def _steepest_edges(layers: Sequence[Layer]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """(width, cost drop, layer) of every edge of the hulls, by falling drop per width."""
    edges = [_hull_edges(layer) for layer in layers]
    width = np.concatenate([edge[0] for edge in edges])
    drop = np.concatenate([edge[1] for edge in edges])
    owner = np.repeat(np.arange(len(layers)), [edge[0].size for edge in edges])
    order = np.argsort(-drop / width, kind="stable")
    return width[order], drop[order], owner[order]


def _hull_edges(layer: Layer) -> tuple[Floats, Floats]:
    """Widths and cost drops of the lower convex hull of a layer's choices."""
    corners = [0]
    for j in range(1, layer.sizes.size):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            first = (layer.costs[a] - layer.costs[b]) * (layer.sizes[j] - layer.sizes[b])
            second = (layer.costs[b] - layer.costs[j]) * (layer.sizes[b] - layer.sizes[a])
            if first > second:
                break
            corners.pop()
        corners.append(j)
    return np.diff(layer.sizes[corners]), -np.diff(layer.costs[corners])


def _layers(costs: Table, sizes: Table) -> list[Layer]:
    """Checked rows, without choices that are no smaller and no cheaper than another."""
    cost_rows = [as_parameter(row, "costs").ravel() for row in costs]  # type: ignore[union-attr]
    size_rows = [as_parameter(row, "sizes").ravel() for row in sizes]  # type: ignore[union-attr]
    if not cost_rows or [row.size for row in cost_rows] != [row.size for row in size_rows]:
        raise ValueError(
            f"costs and sizes need the same layers and choices, found "
            f"{len(cost_rows)} rows of {sorted({row.size for row in cost_rows})} and "
            f"{len(size_rows)} of {sorted({row.size for row in size_rows})}"
        )
    if max(row.size for row in cost_rows) > 255:
        raise ValueError("a layer may have at most 255 choices")
    layers = []
    for cost, size in zip(cost_rows, size_rows, strict=True):
        kept = _undominated(size, cost)
        layers.append(Layer(sizes=size[kept], costs=cost[kept], index=kept))
    return layers


def _undominated(size: Floats, cost: Floats) -> NDArray[np.int64]:
    """Indices of the points that no other point beats in both respects, by ascending size."""
    order = np.lexsort((cost, size))
    cheapest = np.minimum.accumulate(cost[order])
    first = np.concatenate(([True], cost[order][1:] < cheapest[:-1]))
    return np.asarray(order[first])


def _follow(trail: list[Trail], ends: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Choices of every end state, shape (states, layers), from the (parent, choice) of each layer's states."""
    choices = np.empty((len(trail), ends.size), np.uint8)
    for layer in range(len(trail) - 1, -1, -1):
        parent, choice = trail[layer]
        choices[layer], ends = choice[ends], parent[ends].astype(np.int64)
    return np.ascontiguousarray(choices.T)


def _common_unit(layers: list[Layer]) -> float:
    """Largest integer that divides every size difference, or 0 when some are not integers."""
    offsets = np.concatenate([layer.sizes - layer.sizes[0] for layer in layers])
    if np.any(offsets != np.rint(offsets)) or offsets.max() >= 2**53:
        return 0.0
    return float(np.gcd.reduce(offsets.astype(np.int64))) or 1.0


def _by_listing(layers: list[Layer], limit: int) -> Frontier | None:
    """Merge layer by layer, keeping every non-dominated total; None once there are more than `limit`."""
    from qmath.kernels import pareto as pareto_kernels

    size, cost = np.zeros(1), np.zeros(1)
    trail: list[Trail] = []
    for layer in layers:
        size, cost, parent, choice = pareto_kernels.merged(size, cost, layer.sizes, layer.costs, limit)
        if size.size > limit:
            return None
        trail.append((parent, layer.index[choice].astype(np.uint8)))
    choices = _follow(trail, np.arange(size.size))
    return Frontier(sizes=size, costs=cost, gaps=np.zeros(size.size), choices=choices)


def _by_steps(layers: list[Layer], step: float, *, exact: bool) -> Frontier:
    """Dynamic programming over the total size in multiples of `step`."""
    from qmath.kernels import pareto as pareto_kernels

    offsets = [np.rint((layer.sizes - layer.sizes[0]) / step).astype(np.int64) for layer in layers]
    picked = pareto_kernels.frontier(offsets, [layer.costs for layer in layers])
    size, cost = np.zeros(len(picked)), np.zeros(len(picked))
    choices = np.empty(picked.shape, np.uint8)
    for i, layer in enumerate(layers):
        size += layer.sizes[picked[:, i]]
        cost += layer.costs[picked[:, i]]
        choices[:, i] = layer.index[picked[:, i]]
    kept = _undominated(size, cost)
    size, cost = size[kept], cost[kept]
    gaps = np.zeros(kept.size)
    if not exact:
        gaps = np.maximum(cost - np.interp(size, *relaxation(layers)), 0.0)
    return Frontier(sizes=size, costs=cost, gaps=gaps, choices=choices[kept])
