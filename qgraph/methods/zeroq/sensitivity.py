"""Sensitivity (ZeroQ, Eq. 2): how far the outputs move when one weight, or one activation, alone is quantized.

    Omega_i(k) = 1/N sum_j KL(M(x_j) || M_i,k(x_j))

with the weight of layer i, or tensor i, on a grid of k bits and all else in floating point. The part of the network
before it runs once, in floats; all bit-widths share its results and only run the part behind.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import ModelError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.graph.walk import descendants, reads
from qgraph.lowering.packing import stored_bytes
from qgraph.lowering.simulate import simulate, simulate_activations
from qgraph.methods.zeroq.config import MixConfig
from qgraph.observe.distance import Reference
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan
from qgraph.plan.words import Direction
from qgraph.running.executor import Executor, open_executor
from qgraph.running.outputs import arrays_of
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session
from qgraph.running.store import Store, open_store
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset

Menu = Mapping[str, Sequence[LayerQuant]]
"""By layer name, the ways to quantize it."""
Grids = tuple[ActivationQuant, ...]
"""The grid of a tensor, and on top of it the one that layers read, if that is another."""
TensorMenu = Mapping[str, Sequence[Grids]]
"""By the name of a tensor that layers read, the ways to quantize it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """The sensitivity of one layer and the bytes of its weights at each of `bits`; `predicted` is in closed form."""

    name: str
    op: str
    weights: int
    bits: tuple[int, ...]
    nbytes: tuple[int, ...]
    measured: tuple[float, ...]
    predicted: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """How many numbers have the bits."""
        return self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSensitivity:
    """The sensitivity of one tensor that layers read, and the bytes of its `values` in one sample at each of `bits`."""

    name: str
    values: int
    bits: tuple[int, ...]
    nbytes: tuple[int, ...]
    measured: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many numbers have the bits."""
        return self.values


Row = LayerSensitivity | TensorSensitivity


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The sensitivity of every layer's weight, and of every tensor that layers read, over `samples` samples.

    `outputs` says how each output was compared.
    """

    model: str
    data: str
    samples: int
    outputs: tuple[tuple[str, str], ...]
    layers: tuple[LayerSensitivity, ...]
    tensors: tuple[TensorSensitivity, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """Those of layers, then those of tensors."""
        return *self.layers, *self.tensors

    def apart(self) -> list[Sensitivity]:
        """The table of layers and that of tensors, as far as there are any."""
        tables = dataclasses.replace(self, tensors=()), dataclasses.replace(self, layers=())
        return [table for table in tables if table.rows]

    def agreement(self) -> float:
        """Spearman's rank correlation of measured and predicted over all layers and bits; NaN if one is constant."""
        from scipy import stats  # takes a while to import

        pairs = [pair for row in self.layers for pair in zip(row.measured, row.predicted, strict=True)]
        measured, closed = np.array(pairs).T
        constant = np.ptp(measured) == 0 or np.ptp(closed) == 0
        return float("nan") if constant else float(stats.spearmanr(measured, closed).statistic)

    def to_dict(self) -> dict[str, Any]:
        """What `qgraph sensitivity` prints and writes."""
        return {**dataclasses.asdict(self), "outputs": dict(self.outputs)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"


def sensitivity(
    model: Model,
    data: Dataset,
    menu: Menu,
    *,
    tensors: TensorMenu | None = None,
    readers: Iterable[LayerQuant] = (),
    count: int = MixConfig().samples,
    direction: Direction = "forward",
    executor: Executor | None = None,
    resume: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Measure the sensitivity Omega of every choice in `menu` and `tensors` on the first `count` samples of `data`.

    The result does not depend on the executor, the number of threads, or interruptions.

    Args:
        model: the normalised float model.
        menu: the grids to try for each layer, one `LayerQuant` from each plan that a method made.
        tensors: the grids to try for each tensor that layers read.
        readers: the layers of a plan, which read the tensors on these grids.
        direction: of the KL divergence between class scores.
        executor: where layers are measured; by default in threads.
        resume: folder for checkpoints; layers found there are not measured again.

    Raises:
        ModelError: outputs are NaN or infinite; the message names the layer or tensor and its bits.
    """
    reference = Reference.of(model, data, samples=count, direction=direction)
    kept = {name: tuple(choices) for name, choices in menu.items()}
    grids = {name: tuple(choices) for name, choices in (tensors or {}).items()}
    job = _Job(model=model, reference=reference, menu=kept, tensors=grids, readers=tuple(readers) if grids else ())
    found = []
    for stage, measure, choices in (
        ("sensitivity", _omega, job.menu),
        ("activation sensitivity", _omega_of_tensor, job.tensors),
    ):
        with open_store(resume, stage, model=model, samples=reference, choices=choices, readers=job.readers) as store:
            found.append(_measured(stage, measure, job, list(choices), store, executor, threads, progress))
    by_name = GraphView(model).by_name
    return Sensitivity(
        model=model.digest,
        data=data.description,
        samples=reference.samples,
        outputs=tuple(reference.kinds.items()),
        layers=tuple(_row(by_name[name], kept[name], omega) for name, omega in found[0].items()),
        tensors=tuple(_tensor_row(name, grids[name], *pair) for name, pair in found[1].items()),
    )


def _measured(
    stage: str,
    measure: Callable[[_Job, str], Any],
    job: _Job,
    names: list[str],
    store: Store,
    executor: Executor | None,
    threads: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """What `measure` finds for every name, from the store where it is there."""
    if not names:
        return {}
    with progress.stage(stage, len(names), pieces=len(names)) as advance:
        done = store.done()
        missing = [name for name in names if name not in done]
        advance(len(names) - len(missing))
        with nullcontext(executor) if executor or not missing else open_executor(workers=threads) as workers:
            for index, omega in workers.run(measure, job, missing) if workers and missing else ():
                store.put(missing[index], omega)
                advance(1, missing[index])
        return {name: piece.content for name in names if (piece := store.get(name))}


def _row(layer: Layer, choices: Sequence[LayerQuant], omega: list[float]) -> LayerSensitivity:
    shape = layer.weight_array().shape
    bits = tuple(choice.weight.bits for choice in choices)
    return LayerSensitivity(
        name=layer.name,
        op=layer.op,
        weights=int(np.prod(shape)),
        bits=bits,
        nbytes=tuple(stored_bytes(shape, choice.weight) for choice in choices),
        measured=tuple(omega),
    )


def _tensor_row(name: str, choices: Sequence[Grids], values: int, omega: list[float]) -> TensorSensitivity:
    bits = tuple(read_bits(grids) for grids in choices)
    nbytes = tuple(-(-values * k // 8) for k in bits)
    return TensorSensitivity(name=name, values=values, bits=bits, nbytes=nbytes, measured=tuple(omega))


def read_bits(grids: Grids) -> int:
    """The bits that layers read a tensor in."""
    return grids[-1].bits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all measurements share: the float model, its results on the samples, and the grids to try."""

    model: Model
    reference: Reference
    menu: dict[str, tuple[LayerQuant, ...]]
    tensors: dict[str, tuple[Grids, ...]]
    readers: tuple[LayerQuant, ...]


def _omega(job: _Job, name: str) -> list[float]:
    """The sensitivity of one layer for all its choices; raises `ModelError` if outputs are not finite."""
    view = GraphView(job.model)
    first = view.around(view.by_name[name])[-1]
    cut = _Cut.before(job, [first, *descendants(first.outputs)])
    result = []
    for choice in job.menu[name]:
        plan = QuantPlan(model=job.model.digest, recipe="", layers=(choice,))
        what = f"'{name}' alone has {choice.weight.bits}-bit weights"
        result.append(cut.distance(simulate(cut.rest, plan), what, name))
    return result


def _omega_of_tensor(job: _Job, name: str) -> tuple[int, list[float]]:
    """The values of one tensor in a sample, and its sensitivity for all choices, as `_omega`."""
    view = GraphView(job.model)
    value, bits = view.values[name], {name: 0}
    readers = tuple(q for q in job.readers if nearest(view.by_name[q.name].input, bits) is not None)
    cut = _Cut.before(job, _reading(view, value, view.by_name[readers[0].name]))
    result = []
    for grids in job.tensors[name]:
        plan = QuantPlan(model=job.model.digest, recipe="", layers=readers, activations=grids)
        what = f"'{name}' alone has {read_bits(grids)} bits"
        result.append(cut.distance(simulate_activations(cut.rest, plan), what, readers[0].name))
    inside = None if name in cut.feeds[0] else Session(cut.rest.ir_model, outputs=[name], threads=1)
    seen = (feeds if inside is None else inside.run(feeds) for feeds in cut.feeds)
    return sum(a.size for found in seen for a in arrays_of(found[name])) // job.reference.samples, result


def _reading(view: GraphView, value: ir.Value, reader: Layer) -> list[ir.Node]:
    """The nodes of the main graph that depend on a tensor; where it is in a body, first the node that has the body."""
    if value.graph is view.model.graph:
        return list(descendants([value]))
    first = view.around(reader)[-1]
    return [first, *descendants(first.outputs)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A part of the network, and what it reads on the samples: `feeds`, an entry per batch."""

    rest: Model
    feeds: list[dict[str, NDArray[Any]]]
    reference: Reference

    @classmethod
    def before(cls, job: _Job, behind: Sequence[ir.Node]) -> _Cut:
        """The cut in front of some nodes and all that depend on them."""
        rest, boundary = _behind(job.model, behind)
        before = Session(job.model.ir_model, outputs=boundary, threads=1) if boundary else None
        feeds = [dict(b.feeds) for b in job.reference.batches]
        at_cut = feeds if before is None else [{**given, **before.run(given)} for given in feeds]
        return cls(rest=rest, feeds=at_cut, reference=job.reference)

    def distance(self, quantized: ir.Model, what: str, layer: str) -> float:
        """How far the outputs are from the float model's; raises `ModelError` if they are not finite."""
        omega = self.reference.distance(Session(quantized, threads=1), self.feeds)
        if not np.isfinite(omega):
            raise ModelError(
                f"the outputs are NaN or infinite when {what}: leave it in floating point with "
                f"{option('keep', [layer])}"
            )
        return omega


def _behind(model: Model, nodes: Iterable[ir.Node]) -> tuple[Model, list[str]]:
    """A model of these nodes alone, and the names of the float tensors they need, except graph inputs.

    For a layer in a body, the operator that has the body takes its place.
    """
    net, wanted = model.ir_model, set(nodes)
    behind = [node for node in net.graph if node in wanted]
    made = {value for node in behind for value in node.outputs}
    read = dict.fromkeys(value for node in behind for value in reads(node))
    needed = [v for v in read if v not in made and v.const_value is None]
    part = ir.convenience.extract(net.graph, needed, [v for v in net.graph.outputs if v in made])
    for value in part.inputs:  # shape inference does not know all operators
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    rest = ir.Model(part, ir_version=net.ir_version)
    return dataclasses.replace(model, ir_model=rest), [str(v.name) for v in needed if not v.is_graph_input()]
