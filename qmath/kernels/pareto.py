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


def frontier(offsets, costs):
    """Choices (points, layers) of the non-dominated totals over integer size offsets.

    `offsets` and `costs` hold those of every layer's choices; offsets start at 0 and ascend. best[b] is the least cost
    of the layers so far at total offset b.
    """
    reaches = np.cumsum([0, *(offset[-1] for offset in offsets)])
    best = np.full(reaches[-1] + 1, np.inf)
    best[0] = 0.0
    chosen = np.zeros((len(offsets), best.size), np.uint8)
    for i, reach in enumerate(reaches[:-1]):
        before = best[: reach + 1].copy()
        best[: reach + 1] += costs[i][0]
        for c in range(1, len(offsets[i])):
            _relax(best, chosen[i], before, offsets[i][c], costs[i][c], c)
    return _trace(best, chosen, offsets)


@compiled()
def _relax(best, chosen, before, offset, cost, choice):
    """best[b + offset] = min(best[b + offset], before[b] + cost), recording the choice."""
    target, mark = best[offset : offset + before.size], chosen[offset : offset + before.size]
    for b in range(before.size):
        value = before[b] + cost
        better = value < target[b]
        target[b] = value if better else target[b]
        mark[b] = choice if better else mark[b]


def _trace(best, chosen, offsets):
    """Walk back from every total that is cheaper than all smaller ones."""
    at = np.empty(best.size, np.int64)
    at = at[: _records(best, at)].copy()
    picked = np.empty((at.size, len(offsets)), np.uint8)
    for i in range(len(offsets) - 1, -1, -1):
        picked[:, i] = chosen[i, at]
        at = at - offsets[i][picked[:, i]]
    return picked


@compiled()
def _records(best, at):
    """Fill `at` with the places of values below all before them; returns how many."""
    least, count = np.inf, 0
    for b in range(best.size):
        if best[b] < least:
            least = best[b]
            at[count] = b
            count += 1
    return count
