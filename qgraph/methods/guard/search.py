"""Find how much noise each grid of a plan makes at the outputs, and what is cheapest to give up."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.sites import GraphView
from qgraph.methods.guard.concessions import Concession, How, widened
from qgraph.methods.guard.costs import Costs
from qgraph.methods.guard.switches import Floats, Grid, Switches, grids_of
from qgraph.plan.plan import QuantPlan
from qgraph.samples.dataset import Batch

NEGLIGIBLE = 1 / 16  # of the allowed noise: a set of grids that makes less is not searched
WORTHWHILE = 0.2  # of all noise: if cheap grids make this much together, giving them up gains a decibel
MARGIN = 0.7  # of the allowed noise is used, because users will feed other samples
HELPS = 0.8  # of its noise: a whole range that leaves more is no help
REST = 0.25  # of the noise of a set: a half that has more, after the other half is measured, is not measured itself


_Noisy = tuple[float, int, Sequence[Grid], Floats]


def power(db: float) -> float:
    """The power of noise relative to that of the signal."""
    return float(10.0 ** (-db / 10))


class Search:
    """Finds how much noise each grid makes, and what is cheapest to give up, with at most `queries` measurements.

    The sets of grids with the most noise are searched first, so that what is known when the measurements are used up
    matters most. `stopped` tells whether they were.
    """

    def __init__(
        self,
        plan: QuantPlan,
        view: GraphView,
        batches: Sequence[Batch],
        *,
        queries: int,
        ranges: Mapping[str, tuple[float, float]],
        threads: int | None = None,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.plan, self.view, self.ranges = plan, view, ranges
        self.batches, self.threads = batches, threads
        self.switches = self._switches(plan)
        self.costs = Costs.of(view, plan)
        self.places = _places(view)
        self.outputs = self.switches.session.output_names
        self.left, self.stopped, self.tick = queries, False, tick
        self.known: dict[frozenset[Grid], Floats] = {}
        self.inferred = set[frozenset[Grid]]()
        self.widened: dict[Grid, Floats] = {}

    def _switches(self, plan: QuantPlan, *, weights: bool = False) -> Switches:
        return Switches(self.view.model, plan, self.batches, weights=weights, threads=self.threads)

    @cached_property
    def with_weights(self) -> Switches:
        """Switches for weights too, which run slower; only made when weights are searched."""
        return self._switches(self.plan, weights=True)

    @cached_property
    def wide(self) -> Switches:
        """Switches for the plan with full ranges instead of clips; only made when a culprit is clipped."""
        return self._switches(self.plan.map_activations(lambda a: widened(a, self.ranges)))

    def within(self, allowed: float, *, tensors: int | None = None) -> tuple[Concession, ...]:
        """The cheapest concessions after which the noise of all grids adds up to less than `allowed` at every output.

        With `tensors`, gives up at most that many tensors and no weights, even if that is not enough.
        """
        grids, negligible = grids_of(self.plan), NEGLIGIBLE * allowed
        noises = self.culprits([grid for grid in grids if grid.kind != "weight"], negligible)
        if tensors is None:
            noises |= self.culprits([grid for grid in grids if grid.kind == "weight"], negligible)
        return self.given(noises, allowed, most=tensors)

    def cheap(self, allowed: float, *, budget: float) -> tuple[Concession, ...]:
        """Concessions that cost at most `budget` together and bring the noise towards `allowed`; no weights.

        Empty if all grids that are cheap enough make too little of the noise together.
        """
        grids = [grid for grid in grids_of(self.plan) if grid.kind != "weight"]
        affordable = [grid for grid in grids if self.costs[grid, "float"] <= budget or self.is_clipped(grid)]
        total, theirs = self.noise(grids), self.noise(affordable)
        if total is None or theirs is None:
            return ()
        over = total > MARGIN * allowed
        if not np.any(theirs[over] > WORTHWHILE * total[over]):
            return ()
        noises = self.culprits(affordable, np.where(over, WORTHWHILE / 2 * total, np.inf))
        rest = np.maximum(total - sum(noises.values(), np.zeros_like(total)), 0.0)
        return self.given(noises, allowed, rest=rest, budget=budget)

    def given(
        self,
        noises: Mapping[Grid, Floats],
        allowed: float,
        *,
        rest: Floats | float = 0.0,
        most: int | None = None,
        budget: float = np.inf,
    ) -> tuple[Concession, ...]:
        """The grids to give up, of those with these `noises`, until the sum with the `rest` is below `allowed`.

        Makes at most `most` concessions, which cost at most `budget` together.
        """
        left, given, narrow = dict(noises), dict[Grid, Concession](), set[Grid]()

        def next_at(grid: Grid) -> How:
            if grid.kind == "weight":
                return "float"
            return "whole range" if self.is_clipped(grid) and grid not in {*given, *narrow} else "weights alone"

        while left and np.any(rest + sum(left.values()) > MARGIN * allowed) and len(given) != most:
            hurts = np.asarray(rest + sum(left.values()) > MARGIN * allowed)
            spent = sum(self.costs[c.grid, c.how] for c in given.values())
            options = {grid: how for grid in left if spent + self.costs[grid, (how := next_at(grid))] <= budget}
            if not options:
                break
            grid = max(options, key=lambda grid: self.worth(left[grid], hurts, grid))
            less = self.in_range(grid) if options[grid] == "whole range" else np.zeros_like(left[grid])
            if less is None or less.max() >= HELPS * left[grid].max():
                narrow.add(grid)
                continue
            given[grid] = self.concession(grid, options[grid], noises[grid])
            left[grid] = less
            if options[grid] != "whole range":
                del left[grid]
        return tuple(given.values())

    def concession(self, grid: Grid, how: How, noise: Floats) -> Concession:
        worst = int(np.argmax(noise))
        alone = float(-10 * np.log10(max(noise[worst], 1e-300)))
        return Concession(grid=grid, how=how, alone_db=alone, output=self.outputs[worst])

    def worth(self, noise: Floats, hurts: NDArray[np.bool_], grid: Grid) -> float:
        """The noise of a grid at outputs that have too much, per cost of giving it up."""
        finite = np.where(np.isfinite(noise[hurts]), noise[hurts], 1e9)
        return float(finite.sum() / self.costs[grid, "float"])

    def is_clipped(self, grid: Grid) -> bool:
        return any(a != widened(a, self.ranges) for a in self.plan.activations if a.tensor == grid.name)

    def in_range(self, grid: Grid) -> Floats | None:
        """The noise of a tensor's grid over its whole range; None if nothing more may be measured."""
        if grid not in self.widened and self.may_measure():
            self.widened[grid] = self.wide.noise({grid})
        return self.widened.get(grid)

    def noise(self, grids: Collection[Grid]) -> Floats | None:
        """The noise of a set of grids; None if it is unknown and nothing more may be measured."""
        asked = frozenset(grids)
        if asked not in self.known and self.may_measure():
            weights = any(grid.kind == "weight" for grid in asked)
            self.known[asked] = (self.with_weights if weights else self.switches).noise(asked)
        return self.known.get(asked)

    def may_measure(self) -> bool:
        """Whether one more measurement is left, which this takes."""
        if not self.left:
            self.stopped = True
            return False
        self.left -= 1
        self.tick()
        return True

    def culprits(self, grids: Sequence[Grid], negligible: float | Floats) -> dict[Grid, Floats]:
        """The grids whose error alone is not negligible at some output, with their noise; those with the most first.

        Halves sets of grids, the noisiest first, in graph order, because neighbours tend to hurt together. Where one
        half makes less than `1 - REST` of the measured noise of both, the other has the rest; else it is measured.
        """
        found, sets, order = dict[Grid, Floats](), list[_Noisy](), itertools.count()

        def add(part: Sequence[Grid], noise: Floats | None) -> None:
            excess = 0.0 if noise is None else float(np.max(noise / negligible, initial=0.0))
            if noise is not None and excess > 1:
                heapq.heappush(sets, (-excess, next(order), part, noise))

        ordered = sorted(grids, key=lambda grid: self.places.get((grid.kind == "tensor", grid.name), -1))
        add(ordered, self.noise(ordered) if ordered else None)
        while sets:
            _, _, part, noise = heapq.heappop(sets)
            if len(part) == 1:
                found[part[0]] = noise
                continue
            for half, theirs in self.halves(part, noise):
                add(half, theirs)
        return found

    def halves(self, grids: Sequence[Grid], noise: Floats) -> Iterator[tuple[Sequence[Grid], Floats | None]]:
        """Both halves of a set of grids with their noise."""
        first, second = grids[: len(grids) // 2], grids[len(grids) // 2 :]
        one, other = self.noise(first), frozenset(second)
        yield first, one
        measured = frozenset(grids) not in self.inferred and np.isfinite(noise).all()
        if one is not None and measured and other not in self.known and np.all(one <= (1 - REST) * noise):
            self.known[other] = noise - one
            self.inferred.add(other)
        yield second, self.noise(second)


def _places(view: GraphView) -> dict[tuple[bool, str], int]:
    """The place in the graph of every tensor that a node writes (True, name), and of every layer (False, name)."""
    tensors = {str(v.name): i for i, node in enumerate(view.model.graph) for v in node.outputs}
    layers = {(False, layer.name): tensors.get(str(layer.output.name), -1) for layer in view.layers}
    return {(True, name): place for name, place in tensors.items()} | layers
