"""plan -> plan: choose the bits of weights and activations within the budgets of the recipe (ZeroQ, section III-B).

The recipe's method makes one plan for each allowed number of bits; together they are the menu from which every layer
takes its weight, and every tensor that layers read its grid. Sensitivities say what each choice costs, and
`qgraph.methods.zeroq.allocate` chooses: weights and activations apart, each within a budget of its own, or, with
`max_drop`, both together by their bytes, those of activations in one sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx_ir as ir

import qmath
from qgraph.errors import ModelError
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.lowering.simulate import simulate
from qgraph.methods.zeroq.allocate import (
    MEGABYTE,
    Allocation,
    frontier,
    mix,
    mix_activations,
    search_groups,
    smallest_accepted,
    within,
)
from qgraph.methods.zeroq.config import MixConfig
from qgraph.methods.zeroq.predict import predict
from qgraph.methods.zeroq.sensitivity import Grids, Menu, Sensitivity, read_bits, sensitivity
from qgraph.observe.compared import Compared
from qgraph.observe.distance import Reference
from qgraph.observe.propagation import Moments
from qgraph.onnxfile.model import Model
from qgraph.plan.budgets import DEFAULT_AVERAGES
from qgraph.plan.grids import initial_plan, sound
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan
from qgraph.plan.ranges import Ranges
from qgraph.plan.recipe import Recipe
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Menus:
    """The choices for every layer's weight, and for every tensor that layers read; {} where they are not mixed.

    `readers` are the layers that read the tensors.
    """

    layers: Mapping[str, Sequence[LayerQuant]] = field(default_factory=dict)
    tensors: Mapping[str, Sequence[Grids]] = field(default_factory=dict)
    readers: tuple[LayerQuant, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Chooses the bits of every layer.

    `data` are the samples on which sensitivities are measured, `refine` is the recipe's method, and `lower` turns a
    plan into the model that counts. `observed` are the ranges that activations start from. `judge` measures a model on
    the task, on the samples `judging` if they are given. `norms` are the moments of BatchNormalization outputs.
    `on_better` gets every plan that a search accepts on its way.
    """

    net: Model
    recipe: Recipe
    data: Dataset
    refine: Refine
    lower: Lower
    judge: Judge
    observed: Ranges | None = None
    judging: Dataset | None = None
    norms: Mapping[str, Moments] = field(default_factory=dict)
    on_better: Better | None = None
    job: Job = field(default_factory=Job)

    @property
    def config(self) -> MixConfig:
        return self.recipe.config(MixConfig)

    @cached_property
    def view(self) -> GraphView:
        return GraphView(self.net)

    def mix(self, plan: QuantPlan) -> tuple[QuantPlan, Allocation]:
        """The plan with bits within the recipe's budgets, and how they were found."""
        stage = self.job.stage
        with stage("menu"):
            menus = self.menus()
        with stage("sensitivity"):
            table = self.sensitivity(menus)
        parts = [table] if self.recipe.max_drop is not None else table.apart()
        with stage("frontier"):
            fronts = [self.frontier(part, menus) for part in parts]
        found: list[Allocation] = []
        with stage("choose"):
            for part, front in zip(parts, fronts, strict=True):
                chosen, drop = self.choose(plan, part, front, menus)
                found.append(Allocation(sensitivity=part, frontier=front, chosen=chosen, drop=drop))
                plan = self.mixed(plan, found[-1], menus)
        return plan, dataclasses.replace(found[0], activations=found[1]) if found[1:] else found[0]

    def menus(self) -> Menus:
        """Every choice that the recipe mixes, as the method makes it at each of the recipe's bits, in ascending order.

        The tensors are those that integer kernels read.
        """
        weights = self.menu() if self.recipe.mixes_weights else {}
        if not self.recipe.mixes_activations:
            return Menus(layers=weights)
        tensors: dict[str, list[Grids]] = {}
        readers: tuple[LayerQuant, ...] = ()
        for bits in sorted(set(self.recipe.bits)):
            at = self.recipe.at_activations(bits)
            start = initial_plan(self.view, at, self.observed)
            grids = self.refine(dataclasses.replace(start, layers=()), at)
            readers = tuple(quant for quant in start.layers if quant.runs == "integers")
            for grid in _read(grids, readers, self.view):
                choices = tensors.setdefault(grid.tensor, [])
                if all(grid.bits != read_bits(known) for known in choices):
                    choices.append(tuple(a for a in grids.by_reach if a.tensor == grid.tensor))
        return Menus(layers=weights, tensors=tensors, readers=readers)

    def menu(self) -> dict[str, list[LayerQuant]]:
        """Every layer's weight as the method quantizes it at each of the recipe's bits, in ascending order."""
        menu: dict[str, list[LayerQuant]] = {}
        for bits in sorted(set(self.recipe.bits)):
            at = self.recipe.at(bits)
            start = initial_plan(self.view, at, self.observed)  # which tells the layers of bodies that run on integers
            for layer in self.refine(dataclasses.replace(start, activations=()), at).layers:
                choices = menu.setdefault(layer.name, [])
                if all(layer.weight.bits != known.weight.bits for known in choices):
                    choices.append(layer)
        return menu

    def sensitivity(self, menus: Menus) -> Sensitivity:
        """The sensitivity Omega of every choice in the menus, measured and, of weights, in closed form."""
        with open_executor(self.job.executor, workers=self.job.threads) as executor:
            table = sensitivity(
                self.net,
                self.data,
                menus.layers,
                tensors=menus.tensors,
                readers=menus.readers,
                count=self.config.samples,
                direction=self.recipe.direction,
                executor=executor,
                resume=self.job.resume,
                progress=self.job.progress,
            )
        return predict(table, self.view, self.norms) if table.layers else table

    def frontier(self, table: Sensitivity, menus: Menus) -> qmath.Frontier:
        """The frontier of sizes, by adding sensitivities or measuring combinations as the recipe says."""
        return frontier(table) if self.recipe.search == "frontier" else self._group_search(table, menus.layers)

    def choose(
        self, plan: QuantPlan, table: Sensitivity, front: qmath.Frontier, menus: Menus
    ) -> tuple[qmath.Selection, Compared | None]:
        """The selection within the recipe's budget and, with `max_drop`, what the task loses by it."""
        budget = self._budget(table)
        if budget is None:
            return self._smallest_within_drop(plan, table, front, menus, allowed=self.recipe.max_drop or 0.0)
        return within(front, table, budget), None

    def mixed(self, plan: QuantPlan, allocation: Allocation, menus: Menus) -> QuantPlan:
        """The plan with the bits of an allocation.

        Weights that are not mixed are made again for what they read: operands of fewer bits leave them more room.
        """
        plan = mix(plan, menus.layers, allocation.bits)
        if not allocation.activation_bits:
            return plan
        plan = mix_activations(plan, menus.tensors, allocation.activation_bits)
        if self.recipe.mixes_weights:
            return plan
        start = dataclasses.replace(initial_plan(self.view, self.recipe, None), activations=plan.activations)
        again = self.refine(sound(start, self.view, target_cpu=self.recipe.target_cpu), self.recipe)
        own = {quant.name: quant for quant in again.layers if quant.runs == "integers"}
        return plan.map_layers(lambda quant: own.get(quant.name, quant) if quant.runs == "integers" else quant)

    def _budget(self, table: Sensitivity) -> float | None:
        """The budget in bytes of weights, or of activations; None with `max_drop`."""
        recipe = self.recipe
        if recipe.max_drop is not None:
            return None
        if table.tensors:
            average = recipe.average_activation_bits or DEFAULT_AVERAGES["activations"]
        elif recipe.size_mb is not None:
            return recipe.size_mb * MEGABYTE
        else:
            average = recipe.average_bits or DEFAULT_AVERAGES["weights"]
        return sum(row.count for row in table.rows) * average / 8

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
        self, plan: QuantPlan, table: Sensitivity, front: qmath.Frontier, menus: Menus, *, allowed: float
    ) -> tuple[qmath.Selection, Compared]:
        """Bisect the frontier by measuring the task; `on_better` gets what is accepted."""
        floats = self._judged(self.net.ir_model)
        tried: dict[tuple[int, ...], Compared] = {}
        with open_store(
            self.job.resume,
            "max-drop",
            plan=plan.to_json(),
            choices=menus,
            samples=self.data,
            judging=self.judging,
            floats=floats,
        ) as store:

            def accept(point: qmath.Selection) -> bool:
                mixed = self.mixed(plan, Allocation(sensitivity=table, frontier=front, chosen=point), menus)
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
            fixed = [what for what in ("weights", "activations") if getattr(self.recipe, what) != "mixed"]
            other = "".join(f" or {option(what)}" for what in fixed)
            raise ModelError(
                f"even the most bits that are allowed lose {first.before - first.after:.2f} of "
                f"{first.before:.2f} ({first.name}, on {first.samples} samples), more than "
                f"{option('max_drop', allowed)}: allow more, or more {option('bits')}{other}"
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


def _read(plan: QuantPlan, readers: Sequence[LayerQuant], view: GraphView) -> list[ActivationQuant]:
    """The grids that layers read, each once, in the order of the layers."""
    grids = plan.operand_grids
    found = (nearest(view.by_name[quant.name].input, grids) for quant in readers)
    return list(dict.fromkeys(grid for grid in found if grid is not None))
