"""Sensitivity (ZeroQ, Eq. 2): how far the outputs move when one layer alone is quantized.

    Omega_i(k) = 1/N sum_j KL(M(x_j) || M_i,k(x_j))

with layer i on a grid of k bits and all others in floating point. The part of the network before layer i runs once, in
floats; all bit-widths of the layer share its results and only run the part behind.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qgraph.errors import ModelError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.walk import descendants, reads
from qgraph.lowering.packing import stored_bytes
from qgraph.lowering.simulate import simulate
from qgraph.methods.zeroq.config import MixConfig
from qgraph.observe.distance import Reference
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.plan.recipe import Direction
from qgraph.running.executor import Executor, open_executor
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session
from qgraph.running.store import open_store
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset

Menu = Mapping[str, Sequence[LayerQuant]]
"""By layer name, the ways to quantize it."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The sensitivity of every layer over `samples` samples; `outputs` says how each output was compared."""

    model: str
    data: str
    samples: int
    outputs: tuple[tuple[str, str], ...]
    layers: tuple[LayerSensitivity, ...]

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
    count: int = MixConfig().samples,
    direction: Direction = "forward",
    executor: Executor | None = None,
    resume: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Measure the sensitivity Omega of every choice of every layer in `menu` on the first `count` samples of `data`.

    The result does not depend on the executor, the number of threads, or interruptions.

    Args:
        model: the normalised float model.
        menu: the grids to try for each layer, one `LayerQuant` from each plan that a method made.
        direction: of the KL divergence between class scores.
        executor: where layers are measured; by default in threads.
        resume: folder for checkpoints; layers found there are not measured again.

    Raises:
        ModelError: outputs are NaN or infinite; the message names the layer and its bits.
    """
    reference = Reference.of(model, data, samples=count, direction=direction)
    job = _Job(model=model, reference=reference, menu={name: tuple(choices) for name, choices in menu.items()})
    with (
        open_store(resume, "sensitivity", model=model, samples=reference, choices=job.menu) as store,
        progress.stage("sensitivity", len(menu)) as advance,
    ):
        done = store.done()
        missing = [name for name in menu if name not in done]
        advance(len(menu) - len(missing))
        if executor is not None:
            _measure(executor, job, missing, store.put, advance)
        elif missing:
            with open_executor(workers=threads) as threads_here:
                _measure(threads_here, job, missing, store.put, advance)
        found = {name: piece.content for name in menu if (piece := store.get(name))}
    by_name = GraphView(model).by_name
    return Sensitivity(
        model=model.digest,
        data=data.description,
        samples=reference.samples,
        outputs=tuple(reference.kinds.items()),
        layers=tuple(_row(by_name[name], menu[name], found[name]) for name in menu),
    )


def _measure(executor: Executor, job: _Job, names: list[str], note: Any, advance: Any) -> None:
    for index, omega in executor.run(_omega, job, names):
        note(names[index], omega)
        advance(1, names[index])


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all layers share: the float model, its results on the samples, and the grids to try."""

    model: Model
    reference: Reference
    menu: dict[str, tuple[LayerQuant, ...]]


def _omega(job: _Job, name: str) -> list[float]:
    """The sensitivity of one layer for all its choices; raises `ModelError` if outputs are not finite."""
    rest, boundary = _behind(job.model, name)
    before = Session(job.model.ir_model, outputs=boundary, threads=1) if boundary else None
    feeds = [b.feeds for b in job.reference.batches]
    at_cut = feeds if before is None else [{**given, **before.run(given)} for given in feeds]
    result = []
    for choice in job.menu[name]:
        quantized = simulate(rest, QuantPlan(model=rest.digest, recipe="", layers=(choice,)))
        omega = job.reference.distance(Session(quantized, threads=1), at_cut)
        if not np.isfinite(omega):
            raise ModelError(
                f"the outputs are NaN or infinite when '{name}' alone has {choice.weight.bits}-bit weights: leave it "
                f"in floating point with {option('keep', [name])}"
            )
        result.append(omega)
    return result


def _behind(model: Model, name: str) -> tuple[Model, list[str]]:
    """The layer and all that depends on it, and the names of the float tensors they need, except graph inputs.

    For a layer in a body, the operator that has the body takes its place.
    """
    net, view = model.ir_model, GraphView(model)
    first = view.around(view.by_name[name])[-1]
    later = descendants(first.outputs)
    behind = [node for node in net.graph if node is first or node in later]
    made = {value for node in behind for value in node.outputs}
    read = dict.fromkeys(value for node in behind for value in reads(node))
    needed = [v for v in read if v not in made and v.const_value is None]
    part = ir.convenience.extract(net.graph, needed, [v for v in net.graph.outputs if v in made])
    for value in part.inputs:  # shape inference does not know all operators
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    rest = ir.Model(part, ir_version=net.ir_version)
    return dataclasses.replace(model, ir_model=rest), [str(v.name) for v in needed if not v.is_graph_input()]
