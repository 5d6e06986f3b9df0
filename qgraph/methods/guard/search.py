"""Find how much noise each grid of a plan makes at the outputs, and what is cheapest to give up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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


def power(db: float) -> float:
    """The power of noise relative to that of the signal."""
    return float(10.0 ** (-db / 10))


class Search:
    """Finds how much noise each grid makes, and what is cheapest to give up."""

    def __init__(
        self,
        plan: QuantPlan,
        view: GraphView,
        batches: Sequence[Batch],
        ranges: Mapping[str, tuple[float, float]],
        threads: int | None,
        tick: Callable[[], None],
    ) -> None:
        self.plan, self.view, self.ranges = plan, view, ranges
        self.switches = Switches(view.model, plan, batches, threads=threads)
        self.batches, self.threads = batches, threads
        self.costs = Costs.of(view, plan)
        self.outputs = self.switches.session.output_names
        self.tick = tick
        self.known: dict[frozenset[Grid], Floats] = {}

    @cached_property
    def wide(self) -> Switches:
        """Switches for the plan with full ranges instead of clips; only made when a culprit is clipped."""
        plan = self.plan.map_activations(lambda a: widened(a, self.ranges))
        return Switches(self.view.model, plan, self.batches, threads=self.threads)

    def within(self, allowed: float, *, tensors: int | None = None) -> tuple[Concession, ...]:
        """The cheapest concessions after which the noise of all grids adds up to less than `allowed` at every output.

        With `tensors`, gives up at most that many tensors and no weights, even if that is not enough.
        """
        noises = dict(self.culprits(grids_of(self.plan), NEGLIGIBLE * allowed))
        kinds = ("tensor", "operand", *(("weight",) if tensors is None else ()))
        return self.given({g: n for g, n in noises.items() if g.kind in kinds}, allowed, most=tensors)

    def cheap(self, allowed: float, *, budget: float) -> tuple[Concession, ...]:
        """Concessions that cost at most `budget` together and bring the noise towards `allowed`.

        Empty if all grids that are cheap enough make too little of the noise together.
        """
        grids = grids_of(self.plan)
        affordable = [grid for grid in grids if self.costs[grid, "float"] <= budget or self.is_clipped(grid)]
        total, theirs = self.noise(frozenset(grids)), self.noise(frozenset(affordable))
        over = total > MARGIN * allowed
        if not np.any(theirs[over] > WORTHWHILE * total[over]):
            return ()
        noises = dict(self.culprits(affordable, np.where(over, WORTHWHILE / 2 * total, np.inf)))
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
        left, given = dict(noises), dict[Grid, Concession]()
        while left and np.any(rest + sum(left.values()) > MARGIN * allowed) and len(given) != most:
            hurts = np.asarray(rest + sum(left.values()) > MARGIN * allowed)
            spent = sum(self.costs[c.grid, c.how] for c in given.values())
            options = [
                (concession, less)
                for grid, noise in left.items()
                for concession, less in self.options(grid, noise, given)
                if spent + self.costs[grid, concession.how] <= budget
            ]
            if not options:
                break
            concession, less = max(options, key=lambda o: self.worth(left[o[0].grid] - o[1], hurts, o[0]))
            given[concession.grid] = concession
            left[concession.grid] = less
            if concession.how != "whole range":
                del left[concession.grid]
        return tuple(given.values())

    def options(
        self, grid: Grid, noise: Floats, given: Mapping[Grid, Concession]
    ) -> Iterable[tuple[Concession, Floats]]:
        """The concessions still possible at a grid, each with the noise that remains."""
        worst = int(np.argmax(self.alone(grid)))
        alone = float(-10 * np.log10(max(self.alone(grid)[worst], 1e-300)))

        def conceding(how: How) -> Concession:
            return Concession(grid=grid, how=how, alone_db=alone, output=self.outputs[worst])

        if grid.kind == "weight":
            yield conceding("float"), np.zeros_like(noise)
            return
        if grid not in given and self.is_clipped(grid):
            wide = self.wide.noise({grid})
            self.tick()
            if wide.max() < 0.8 * noise.max():
                yield conceding("whole range"), wide
        yield conceding("weights alone"), np.zeros_like(noise)

    def worth(self, less: Floats, hurts: NDArray[np.bool_], concession: Concession) -> float:
        """The noise removed from outputs that have too much, per cost."""
        noise = np.where(np.isfinite(less[hurts]), less[hurts], 1e9)
        return float(noise.sum() / self.costs[concession.grid, concession.how])

    def is_clipped(self, grid: Grid) -> bool:
        return any(a != widened(a, self.ranges) for a in self.plan.activations if a.tensor == grid.name)

    def alone(self, grid: Grid) -> Floats:
        return self.noise(frozenset({grid}))

    def noise(self, grids: frozenset[Grid]) -> Floats:
        if grids not in self.known:
            self.known[grids] = self.switches.noise(grids)
            self.tick()
        return self.known[grids]

    def culprits(self, grids: Sequence[Grid], negligible: float | Floats) -> Iterable[tuple[Grid, Floats]]:
        """The grids whose error alone is not negligible at some output, with their noise."""
        noise = self.noise(frozenset(grids))
        if not np.any(noise > negligible):
            return
        if len(grids) == 1:
            yield grids[0], noise
            return
        half = len(grids) // 2
        yield from self.culprits(grids[:half], negligible)
        yield from self.culprits(grids[half:], negligible)
