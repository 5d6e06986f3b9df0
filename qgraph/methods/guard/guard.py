"""plan -> plan: where an output misses its target, find the grids that ruin it and give them up, cheapest first.

Errors of different grids are nearly independent, so their powers add up at the outputs, where `Switches` measures them:

    noise_o(plan) ~ sum_g noise_o(g)        wanted: noise_o <= 10^(-target / 10)

The grids that matter are found by bisection: a half whose joint error is negligible is not searched. A tensor's grid
may first get its full range and then be given up (its layers keep quantized weights and multiply in floating point); a
weight's grid is given up last, and its layer becomes float. The concession that removes the most noise for its cost
comes first. The resulting plan is judged as it will be written, both with and without the shifts of its biases: a shift
that corrects the mean error where a tensor is large is itself an error where it is small. Where errors did not add up
as expected, more grids are given up.

A network that only a few grids ruin gets a margin: as long as at most a tenth of its tensors are given up, the guard
aims `REPAIR_DB` above the target. Beyond that only the target counts, and weights may be given up too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GLUE_OPS, GraphView
from qgraph.graph.tensors import CLIPPING_OPS, fused_output, nearest
from qgraph.methods.guard.costs import Costs
from qgraph.methods.guard.switches import Grid, Switches, grids_of
from qgraph.onnxfile.edit import constant
from qgraph.plan.grids import activation_grid
from qgraph.plan.plan import ActivationQuant, KeptFloat, QuantPlan
from qgraph.running.progress import SILENT, Progress
from qgraph.samples.dataset import Batch

Floats = NDArray[np.float64]
How = Literal["whole range", "weights alone", "float"]
Judge = Callable[[QuantPlan], float]
"""How far the written model of a plan is above its targets, in dB; negative where it misses one."""

NEGLIGIBLE = 1 / 16  # of the allowed noise: a set of grids that makes less is not searched
MARGIN = 0.7  # of the allowed noise is used, because users will feed other samples
ROUNDS = 4
REPAIR_DB = 10.0
FEW = 4  # tensors that may be given up for a margin even if they are more than a tenth


@dataclass(frozen=True, slots=True, kw_only=True)
class Concession:
    """A grid that was given up: how, and the SQNR in dB that its error alone leaves at the output it hurts most."""

    grid: Grid
    how: How
    alone_db: float
    output: str

    def __str__(self) -> str:
        said = {"whole range": "has its whole range", "weights alone": "stays floating point", "float": "stays float"}
        thing = {"weight": "weight of ", "operand": "what is read by ", "tensor": ""}[self.grid.kind]
        return (
            f"{thing}'{self.grid.name}' {said[self.how]}: its error alone leaves {self.alone_db:.1f} dB of output "
            f"'{self.output}'"
        )

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        said = {"how": self.how, "alone_db": self.alone_db, "output": self.output}
        return {"name": self.grid.name, "kind": self.grid.kind, **said}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """The plan that meets the target, or comes as close as possible, and the concessions it took."""

    plan: QuantPlan
    concessions: tuple[Concession, ...]
    margin: float
    """How far the outputs are above their targets on the judged samples, in dB; negative where they miss."""

    @property
    def holds(self) -> bool:
        return self.margin >= 0


def guard(
    plan: QuantPlan,
    view: GraphView,
    batches: Sequence[Batch],
    judge: Judge,
    *,
    target_db: float,
    ranges: Mapping[str, tuple[float, float]],
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Guarded:
    """Give up grids until `judge` accepts the plan; a plan that it accepts as it is does not change.

    `batches` are samples to measure errors on; `ranges` are the smallest and largest value of every tensor.
    """
    best = _judged(plan, (), judge)
    if best.holds:
        return best
    with progress.stage("finding what ruins the outputs", None) as advance:
        search = Search(plan, view, batches, ranges, threads, lambda: advance(1))
        generous = search.within(_power(target_db + REPAIR_DB), tensors=max(FEW, len(plan.activations) // 10))
        firm = (search.within(_power(target_db + 6 * more)) for more in range(ROUNDS))
        for conceded in itertools.chain([generous], firm):
            found = _judged(apply_concessions(plan, view, conceded, ranges), conceded, judge)
            best = max(best, found, key=lambda guarded: guarded.margin)
            if best.holds:
                break
    return best


def _power(db: float) -> float:
    """The power of noise relative to that of the signal."""
    return float(10.0 ** (-db / 10))


def _judged(plan: QuantPlan, concessions: tuple[Concession, ...], judge: Judge) -> Guarded:
    """The judged plan; without bias shifts if it misses its targets with them and comes closer without."""
    first = Guarded(plan=plan, concessions=concessions, margin=judge(plan))
    if first.holds or not any(layer.bias_shift for layer in plan.layers):
        return first
    plain = plan.map_layers(lambda layer: dataclasses.replace(layer, bias_shift=()))
    second = Guarded(plan=plain, concessions=concessions, margin=judge(plain))
    return max(first, second, key=lambda guarded: guarded.margin)


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
        given: dict[Grid, Concession] = {}
        while noises and np.any(sum(noises.values()) > MARGIN * allowed) and len(given) != tensors:
            excess = np.maximum(sum(noises.values()) / (MARGIN * allowed), 1.0)
            hurts = excess > 1
            options = [option for grid in noises for option in self.options(grid, noises[grid], given)]
            options = [o for o in options if tensors is None or o[0].grid.kind != "weight"]
            if not options:
                break
            concession, left = max(options, key=lambda o: self.worth(noises[o[0].grid] - o[1], hurts, o[0]))
            given[concession.grid] = concession
            noises[concession.grid] = left
            if concession.how != "whole range":
                del noises[concession.grid]
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

    def culprits(self, grids: Sequence[Grid], negligible: float) -> Iterable[tuple[Grid, Floats]]:
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


def widened(quant: ActivationQuant, ranges: Mapping[str, tuple[float, float]]) -> ActivationQuant:
    """The grid with the same bits over the tensor's whole range; grids of a special form stay as they are."""
    if quant.tensor not in ranges or quant.rounding is not None or quant.offset or quant.channel_scale:
        return quant
    low, high = ranges[quant.tensor]
    if quant.symmetric or (low >= quant.low and high <= quant.high):
        return quant
    return activation_grid(quant.tensor, low, high, bits=quant.bits, role=quant.role)


def apply_concessions(
    plan: QuantPlan,
    view: GraphView,
    concessions: Collection[Concession],
    ranges: Mapping[str, tuple[float, float]],
) -> QuantPlan:
    """The plan without the grids given up, and without those that no integer kernel would use any more."""
    how = {c.grid: c for c in concessions}
    activations = []
    for quant in plan.activations:
        given = how.get(Grid("tensor", quant.tensor))
        if given is None:
            activations.append(quant)
        elif given.how == "whole range":
            activations.append(widened(quant, ranges))
    layers = tuple(
        dataclasses.replace(layer, runs="floats") if Grid("operand", layer.name) in how else layer
        for layer in plan.layers
        if Grid("weight", layer.name) not in how
    )
    floats = tuple(
        KeptFloat(name=c.grid.name, why=f"its rounded weight alone leaves {c.alone_db:.1f} dB of output '{c.output}'")
        for c in concessions
        if c.how == "float"
    )
    notes = tuple(str(c) for c in concessions if c.how != "float")
    conceded = dataclasses.replace(
        plan,
        layers=layers,
        activations=tuple(activations),
        kept_float=(*plan.kept_float, *floats),
        notes=(*plan.notes, *notes),
    )
    return without_islands(conceded, view)


def without_islands(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """The plan without the grids of tensors that no integer kernel reads or writes, which would only cost time.

    A convolution whose result has no grid does not have an integer kernel and runs in floats.
    """
    layers = [view.by_name[quant.name] for quant in plan.layers if quant.runs == "integers"]
    kept = {a.tensor: a.tensor for a in plan.activations}
    while True:
        integer = [layer for layer in layers if nearest(layer.input, kept) and _writes_to(layer, kept)]
        nodes = {layer.node for layer in integer}
        useful = {nearest(layer.input, kept) for layer in integer}
        useful |= {tensor for tensor in kept if _is_written_in_integers(view.values[tensor], nodes, kept)}
        if useful >= kept.keys():
            names = {layer.name for layer in integer}
            return dataclasses.replace(
                plan,
                layers=tuple(
                    dataclasses.replace(q, runs="floats") if q.runs == "integers" and q.name not in names else q
                    for q in plan.layers
                ),
                activations=tuple(a for a in plan.activations if a.tensor in kept),
            )
        kept = {tensor: tensor for tensor in kept if tensor in useful}


def _writes_to(layer: Layer, kept: Collection[str]) -> bool:
    """Whether the layer's result has a grid, if its integer kernel needs one."""
    return layer.op != "Conv" or str(fused_output(layer.output).name) in kept


def _is_written_in_integers(value: ir.Value, layers: Collection[ir.Node], kept: Mapping[str, str]) -> bool:
    node = value.producer()
    if node is not None and node.op_type in CLIPPING_OPS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node in layers:
        return node is not None
    read = [v for v in node.inputs if v is not None and constant(v) is None]
    return node.op_type in GLUE_OPS and bool(read) and all(nearest(v, kept) for v in read)
