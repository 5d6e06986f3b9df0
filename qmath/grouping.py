"""ZeroQ's group search (Appendix A): mixed precision for layers that influence each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qmath.pareto import Frontier, Table, _layers, _undominated
from qmath.sample import Floats

Evaluator = Callable[[tuple[int, ...]], float]
_ENUMERATED = 1 << 21  # partial selections listed in full; beyond that, only the best of fine slices of size
_SLICES = 64  # per interval


def group_search(
    costs: Table,
    sizes: Table,
    evaluate: Evaluator,
    *,
    group: int = 10,
    intervals: int = 5,
    candidates: int = 200,
    keep: int = 5,
) -> Frontier:
    """Search selections by measuring them, one group of layers after the other (ZeroQ, Appendix A).

    The next `group` layers are added to every selection kept so far, their `costs` taken as independent. The size range
    is cut into `intervals`; in each, the `candidates` cheapest selections are measured, and the `keep` best of those go
    on. (The paper calls these a, b, t1, t2.) `evaluate` receives the choices of the first layers (the others are to be
    left in floating point) and returns the true sensitivity; it is called at most layers / group * intervals *
    candidates times. Returns the non-dominated complete selections with their measured costs; the gaps are NaN, since
    no bound is known. Tables as for `qmath.pareto_frontier`.

    A group is listed in full up to two million selections (the paper's 3 choices of 10 layers give 59,049 for each one
    kept); beyond that, layer by layer, only the `candidates` cheapest in each of 64 slices of an interval go on.

    Raises:
        ValueError: For tables that do not fit, parameters below 1, or an `evaluate` that returns no finite number.

    Example:
        >>> import qmath
        >>> costs, sizes = [[3.0, 1.0], [5.0, 0.0]], [[2, 4], [2, 4]]
        >>> def evaluate(choices):
        ...     return 1.5 * sum(costs[layer][choice] for layer, choice in enumerate(choices))
        >>> qmath.group_search(costs, sizes, evaluate, group=1).costs.tolist()
        [12.0, 4.5, 1.5]
    """
    for name, value in (("group", group), ("intervals", intervals), ("candidates", candidates), ("keep", keep)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    layers = _layers(costs, sizes)
    prefixes = np.zeros((1, 0), np.uint8)
    size, cost = np.zeros(1), np.zeros(1)
    for start in range(0, len(layers), group):
        for layer in layers[start : start + group]:
            if size.size * layer.sizes.size > _ENUMERATED:
                best = _cheapest(size, cost, intervals * _SLICES, candidates)
                size, cost, prefixes = size[best], cost[best], prefixes[best]
            size, cost, prefixes = _extended(size, cost, prefixes, layer)
        tried = _cheapest(size, cost, intervals, candidates)
        size, prefixes = size[tried], prefixes[tried]
        cost = np.array([_measured(evaluate, choices) for choices in prefixes])
        if start + group < len(layers):
            best = _cheapest(size, cost, intervals, keep)
            size, cost, prefixes = size[best], cost[best], prefixes[best]
    kept = _undominated(size, cost)
    return Frontier(sizes=size[kept], costs=cost[kept], gaps=np.full(kept.size, np.nan), choices=prefixes[kept])


def _extended(size, cost, prefixes, layer):  # type: ignore[no-untyped-def]
    """Every selection so far, with every choice of one more layer."""
    choices = layer.index.astype(np.uint8)
    grown = np.column_stack((np.repeat(prefixes, choices.size, axis=0), np.tile(choices, len(prefixes))))
    return (size[:, None] + layer.sizes).ravel(), (cost[:, None] + layer.costs).ravel(), grown


def _cheapest(size: Floats, cost: Floats, intervals: int, count: int) -> NDArray[np.int64]:
    """Indices of the `count` cheapest selections in each of `intervals` equal parts of the size range."""
    low, span = float(size.min()), float(np.ptp(size)) or 1.0
    part = np.minimum((size - low) / span * intervals, intervals - 1).astype(np.int64)
    order = np.lexsort((size, cost, part))
    first = np.searchsorted(part[order], part[order])  # where the interval of each begins
    return np.asarray(order[np.arange(order.size) - first < count])


def _measured(evaluate: Evaluator, choices: NDArray[np.uint8]) -> float:
    value = float(evaluate(tuple(int(c) for c in choices)))
    if not np.isfinite(value):
        raise ValueError(
            f"evaluate returned {value} for the choices {choices.tolist()}: a finite sensitivity is needed"
        )
    return value
