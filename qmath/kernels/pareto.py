"""Compiled dynamic programming of `qmath.pareto`."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from qmath.kernels.compiled import compiled


@compiled()
def merged(size, cost, sizes, costs, limit):
    """(sizes, costs, parents, choices) of the non-dominated sums of a sorted list and one layer's choices.

    The shifted lists are merged by size; sums that are no cheaper than all before them are skipped. When there are more
    than `limit` points, limit + 1 are returned.
    """
    count, total = sizes.size, min(size.size * sizes.size, limit + 1)
    new_size, new_cost = np.empty(total), np.empty(total)
    parent, choice = np.empty(total, np.int32), np.empty(total, np.uint8)
    head = np.zeros(count, np.int64)
    next_size = size[0] + sizes
    least, points = np.inf, 0
    while points < total:
        c = 0
        for k in range(1, count):
            if next_size[k] < next_size[c] or (
                next_size[k] == next_size[c] and cost[head[k]] + costs[k] < cost[head[c]] + costs[c]
            ):
                c = k
        if next_size[c] == np.inf:
            break
        value = cost[head[c]] + costs[c]
        if value < least:
            least = value
            new_size[points], new_cost[points], parent[points], choice[points] = next_size[c], value, head[c], c
            points += 1
        at = head[c] + 1
        while at < size.size and cost[at] + costs[c] >= least:
            at += 1
        if at < size.size:
            head[c], next_size[c] = at, size[at] + sizes[c]
        else:
            head[c], next_size[c] = size.size - 1, np.inf
    return new_size[:points], new_cost[:points], parent[:points], choice[:points]


@compiled()
def frontier(offsets, costs, counts):
    """Choices (points, layers) of the non-dominated totals over integer size offsets.

    `offsets` and `costs` hold the layers' choices one after another, `counts` the number of each layer's; offsets start
    at 0 and ascend within a layer. best[b] is the least cost of the layers so far at total offset b.
    """
    layers = counts.size
    reach = 0
    start = 0
    for i in range(layers):
        reach += offsets[start + counts[i] - 1]
        start += counts[i]
    best = np.full(reach + 1, np.inf)
    best[0] = 0.0
    chosen = np.zeros((layers, reach + 1), np.uint8)
    reach, start = 0, 0
    for i in range(layers):
        before = best[: reach + 1].copy()
        best[: reach + 1] += costs[start]
        for c in range(1, counts[i]):
            _relax(best, chosen[i], before, offsets[start + c], costs[start + c], c)
        reach += offsets[start + counts[i] - 1]
        start += counts[i]
    return _trace(best, chosen, offsets, counts)


@compiled()
def _relax(best, chosen, before, offset, cost, choice):
    """best[b + offset] = min(best[b + offset], before[b] + cost), recording the choice."""
    target, mark = best[offset : offset + before.size], chosen[offset : offset + before.size]
    for b in range(before.size):
        value = before[b] + cost
        better = value < target[b]
        target[b] = value if better else target[b]
        mark[b] = choice if better else mark[b]


@compiled()
def _trace(best, chosen, offsets, counts):
    """Walk back from every total that is cheaper than all smaller ones."""
    least, points = np.inf, 0
    ends = np.empty(best.size, np.int64)
    for b in range(best.size):
        if best[b] < least:
            least = best[b]
            ends[points] = b
            points += 1
    at = ends[:points].copy()
    picked = np.empty((points, counts.size), np.uint8)
    start = offsets.size
    for i in range(counts.size - 1, -1, -1):
        start -= counts[i]
        for p in range(points):
            c = chosen[i, at[p]]
            picked[p, i] = c
            at[p] -= offsets[start + c]
    return picked
