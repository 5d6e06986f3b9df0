"""plan -> plan: choose the bits of every layer within the budget of the recipe (ZeroQ, section III-B).

The recipe's method makes one plan for each allowed number of bits; together they are the menu from which every layer
takes its weight. Sensitivities say what each choice costs, and `qgraph.methods.zeroq.allocate` chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

import qmath
from qgraph.errors import ModelError
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.zeroq.allocate import (
    MEGABYTE,
    Allocation,
    frontier,
    mix,
    search_groups,
    smallest_accepted,
    within,
)
from qgraph.methods.zeroq.config import MixConfig
from qgraph.methods.zeroq.predict import predict
from qgraph.methods.zeroq.sensitivity import Menu, Sensitivity, sensitivity
from qgraph.observe.compared import Compared
from qgraph.observe.distance import Reference
from qgraph.observe.propagation import Moments
from qgraph.onnxfile.model import Model
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.plan.recipe import DEFAULT_AVERAGE, Recipe
from qgraph.running.executor import open_executor
from qgraph.running.job import Job
from qgraph.running.sessions import Session
from qgraph.running.store import Store, open_store
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset

Refine = Callable[[QuantPlan, Recipe], QuantPlan]
Lower = Callable[[QuantPlan], ir.Model]
Judge = Callable[[ir.Model], Compared | None]
Better = Callable[[QuantPlan], object]


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Chooses the bits of every layer.

    `data` are the samples on which sensitivities are measured, `refine` is the recipe's method, and `lower` turns a
    plan into the model that counts. `judge` measures a model on the task, on the samples `judging` if they are given.
    `norms` are the moments of BatchNormalization outputs. `on_better` gets every plan that a search accepts on its way.
    """

    net: Model
    recipe: Recipe
    data: Dataset
    refine: Refine
    lower: Lower
    judge: Judge
    judging: Dataset | None = None
    norms: Mapping[str, Moments] = field(default_factory=dict)
    on_better: Better | None = None
    job: Job = field(default_factory=Job)

    @property
    def config(self) -> MixConfig:
        return self.recipe.config(MixConfig)

    def mix(self, plan: QuantPlan) -> tuple[QuantPlan, Allocation]:
        """The plan with bits within the recipe's budget, and how they were found."""
        stage = self.job.stage
        with stage("menu"):
            menu = self.menu()
        with stage("sensitivity"):
            table = self.sensitivity(menu)
        with stage("frontier"):
            front = self.frontier(table, menu)
        with stage("choose"):
            chosen, drop = self.choose(plan, table, front, menu)
        return mix(plan, menu, chosen), Allocation(sensitivity=table, frontier=front, chosen=chosen, drop=drop)

    def menu(self) -> dict[str, list[LayerQuant]]:
        """Every layer's weight as the method quantizes it at each of the recipe's bits, in ascending order."""
        view = GraphView(self.net)
        menu: dict[str, list[LayerQuant]] = {}
        for bits in sorted(set(self.recipe.bits)):
            at = self.recipe.at(bits)
            for layer in self.refine(initial_plan(view, at, None), at).layers:
                choices = menu.setdefault(layer.name, [])
                if all(layer.weight.bits != known.weight.bits for known in choices):
                    choices.append(layer)
        return menu

    def sensitivity(self, menu: Menu) -> Sensitivity:
        """The sensitivity Omega of every choice in the menu, measured and in closed form."""
        with open_executor(self.job.executor, workers=self.job.threads) as executor:
            table = sensitivity(
                self.net,
                self.data,
                menu,
                count=self.config.samples,
                direction=self.recipe.direction,
                executor=executor,
                resume=self.job.resume,
                progress=self.job.progress,
            )
        return predict(table, GraphView(self.net), self.norms)

    def frontier(self, table: Sensitivity, menu: Menu) -> qmath.Frontier:
        """The frontier of sizes, by adding sensitivities or measuring combinations as the recipe says."""
        return frontier(table) if self.recipe.search == "frontier" else self._group_search(table, menu)

    def choose(
        self, plan: QuantPlan, table: Sensitivity, front: qmath.Frontier, menu: Menu
    ) -> tuple[qmath.Selection, Compared | None]:
        """The selection within the recipe's budget and, with `max_drop`, what the task loses by it."""
        budget = self._budget(table)
        if budget is None:
            return self._smallest_within_drop(plan, front, menu, allowed=self.recipe.max_drop or 0.0)
        return within(front, table, budget), None

    def _budget(self, table: Sensitivity) -> float | None:
        """The budget in bytes of weights; None with `max_drop`."""
        recipe = self.recipe
        if recipe.max_drop is not None:
            return None
        if recipe.size_mb is not None:
            return recipe.size_mb * MEGABYTE
        return sum(row.weights for row in table.layers) * (recipe.average_bits or DEFAULT_AVERAGE) / 8

    def _group_search(self, table: Sensitivity, menu: Menu) -> qmath.Frontier:
        config = self.config
        reference = Reference.of(self.net, self.data, samples=config.samples, direction=self.recipe.direction)
        names = list(menu)
        groups = -(-len(names) // config.a)

        with (
            open_store(self.job.resume, "group search", model=self.net, samples=reference, choices=menu) as store,
            self.job.progress.stage("group search", groups * config.b * config.t1) as advance,
        ):

            def measure(choices: tuple[int, ...]) -> float:

                def distance() -> float:
                    layers = tuple(menu[name][index] for name, index in zip(names, choices, strict=False))
                    part = QuantPlan(model=self.net.digest, recipe="", layers=layers)
                    session = Session(simulate(self.net, part), threads=self.job.threads)
                    return reference.distance(session)

                advance(1)
                return _once(store, choices, distance)

            return search_groups(table, measure, budget=self._budget(table), config=config)

    def _smallest_within_drop(
        self, plan: QuantPlan, front: qmath.Frontier, menu: Menu, *, allowed: float
    ) -> tuple[qmath.Selection, Compared]:
        """Bisect the frontier by measuring the task; `on_better` gets what is accepted."""
        floats = self._judged(self.net.ir_model)
        tried: dict[tuple[int, ...], Compared] = {}
        with open_store(
            self.job.resume,
            "max-drop",
            plan=plan.to_json(),
            choices=menu,
            samples=self.data,
            judging=self.judging,
            floats=floats,
        ) as store:

            def accept(point: qmath.Selection) -> bool:
                mixed = mix(plan, menu, point)
                after, margin = _once(store, point.choices, lambda: self._after(mixed))
                drop = dataclasses.replace(floats, after=float(after), margin=margin)
                tried[tuple(point.choices)] = drop
                accepted = drop.before - drop.after <= allowed
                if accepted and self.on_better is not None:
                    self.on_better(mixed)
                return accepted

            chosen = smallest_accepted(front, accept)
        if chosen is None:
            first = next(iter(tried.values()))
            raise ModelError(
                f"even the largest weights that the allowed bits give lose {first.before - first.after:.2f} of "
                f"{first.before:.2f} ({first.name}, on {first.samples} samples), more than "
                f"{option('max_drop', allowed)}: allow more, or more {option('bits')} or {option('activations')}"
            )
        return chosen, tried[tuple(chosen.choices)]

    def _after(self, plan: QuantPlan) -> tuple[float, float | None]:
        drop = self._judged(self.lower(plan))
        return drop.after, drop.margin

    def _judged(self, model: ir.Model) -> Compared:
        drop = self.judge(model)
        if drop is None:
            raise ModelError(
                f"{self.net.source} has no output with one score per class: {option('max_drop')} cannot be measured "
                f"without a {option('metric')}"
            )
        return drop


def _once(store: Store, choices: Sequence[int], measure: Callable[[], Any]) -> Any:
    """The measurement of some choices, from the store if it is there."""
    key = ",".join(map(str, choices))
    kept = store.get(key)
    if kept is not None:
        return kept.content
    measured = measure()
    store.put(key, measured)
    return measured
