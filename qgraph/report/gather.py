"""Measure the contents of a report: the float model and its quantized forms, on the same samples."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Unpack

from numpy.typing import NDArray

from qgraph.assess.bits_in_file import bits_in_file
from qgraph.assess.compare import compare
from qgraph.assess.evaluate import evaluate
from qgraph.assess.fused import FusedLayer, inspect_fused
from qgraph.assess.latency import latency
from qgraph.assess.layer_errors import LayerReport, layer_reports
from qgraph.assess.layers_in_file import InFile, layers_in_file
from qgraph.assess.verdict import Verdict
from qgraph.errors import DataError, ModelError, UsageError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.jobs.distil import distilled_samples
from qgraph.jobs.given import Given, open_given
from qgraph.jobs.result import Result
from qgraph.lowering.lower import lower
from qgraph.methods.zeroq.allocate import Allocation
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.plan.plan import QuantPlan
from qgraph.report.alternatives import Alternative, alternatives
from qgraph.report.contents import LayerRow, Report, Variant
from qgraph.report.ranges import Operand, operand_of
from qgraph.running.here import here
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session, fits_one_file
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, Dataset, Reading
from qgraph.samples.split import hold_out

OBSERVED, COMPARED = 256, 64  # samples for statistics, and for layers
SHOWN = 6  # layers whose operands are drawn


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A quantized form to report on: its graph, and the plan that made it, if known."""

    name: str
    model: Model
    plan: QuantPlan | None = None
    latency: float | None = None
    """Relative to float, if it has been measured."""
    in_file: Mapping[str, InFile] | None = None
    """The measured error of its layers on the samples of the report, if it is known."""


@keeps_threads
def report_on(
    reference: ModelLike,
    others: Sequence[str | QuantPlan],
    data: DataLike | None = None,
    *,
    command: str = "",
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> Report:
    """Compare plans (`.json` files or values) and quantized models of one float model.

    Data that calibrated one of the plans, as its command says, are measured on the samples that it held out. Without
    data, layers are measured on distilled samples. `command` is shown on the page, and `reading` are the options of
    `open_data`. Raises `PlanError` for a plan of another model, and `UsageError` if there is nothing to compare.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> from qgraph.report import render, report_on
        >>> demo = files("qgraph") / "demo_assets"
        >>> network = demo / "digits.onnx"
        >>> plan = qgraph.quantize(network, demo / "digits_calibration.npz", limit=32, measure=False).plan
        >>> report = report_on(network, [plan], demo / "digits_test.npz", limit=50)
        >>> report.count, [variant.name for variant in report.variants]
        (50, ['plan 1'])
        >>> render(report)[:15]
        '<!DOCTYPE html>'
    """
    if not others:
        raise UsageError("nothing to report on: give the float model, then at least one plan or quantized model")
    given = open_given(reference, data, **reading)
    net = given.net
    names = _short_names([f"plan {i}" if isinstance(o, QuantPlan) else str(o) for i, o in enumerate(others, 1)])
    candidates = [_candidate(net, other, name) for other, name in zip(others, names, strict=True)]
    samples, observed = given.samples, None
    if samples is None:
        samples = _distilled(given, Job(threads=threads, progress=progress), reading)
    if samples is not None and any(c.plan is not None for c in candidates):
        observed = observe(net, _first(samples, OBSERVED), threads=threads, progress=progress)
    made = _one_input(samples) if data is None else None
    said = ""
    if samples is not None and data is not None and _calibrated_by(samples, [c.plan for c in candidates]):
        samples, said = hold_out(samples).held_out, "held out from calibration"
    return gather(
        net,
        candidates,
        samples,
        observed,
        said=said,
        distilled=made,
        command=command,
        threads=threads,
        progress=progress,
    )


def _calibrated_by(samples: Dataset, plans: Iterable[QuantPlan | None]) -> bool:
    """Whether the command that made one of the plans names the file of the samples."""
    commands = [str((plan.made or {}).get("command", "")) for plan in plans if plan is not None]
    return any(PurePath(samples.description).name in map(_file_name, command.split()) for command in commands)


def report_of(result: Result, *, name: str = "quantized", command: str = "", progress: Progress = SILENT) -> Report:
    """The report on one `quantize` job, measured on the samples that it held out from calibration, if it could."""
    trial = result.trial
    apart = trial is not None and trial.basis == "held-out"
    samples = trial.samples if trial is not None and apart else result.samples
    quantized = Model(ir_model=result.model, source=name, nbytes=result.nbytes)
    timed = None if result.quality is None else result.quality.latency
    made = _one_input(result.samples) if result.data == "distilled" else None
    known = result.layers_in_file if trial is not None and samples is not None and samples is trial.samples else None
    return gather(
        result.net,
        [Candidate(name=name, model=quantized, plan=result.plan, latency=timed, in_file=known)],
        samples,
        result.observed,
        said="held out from calibration" if apart else "",
        distilled=made,
        command=command,
        allocation=result.allocation,
        verdict=result.quality,
        threads=result.threads,
        progress=progress,
    )


def gather(
    net: Model,
    candidates: Sequence[Candidate],
    samples: Dataset | None,
    observed: Observations | None,
    *,
    said: str = "",
    distilled: NDArray[Any] | None = None,
    allocation: Allocation | None = None,
    verdict: Verdict | None = None,
    command: str = "",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Measure every candidate against the float model `net`; without samples, only sizes and bits.

    `said` is what the page says about the samples.
    """
    view = GraphView(net)
    count = 0 if samples is None else samples.count
    labelled = samples is not None and samples.labels is not None
    return Report(
        source=PurePath(net.source).name,
        digest=net.digest,
        nbytes=net.nbytes,
        data="nothing" if samples is None else "distilled samples" if distilled is not None else _said(samples, said),
        count=count,
        made=here(),
        command=command,
        quality=evaluate(net, samples, threads=threads, progress=progress) if samples and labelled else None,
        variants=tuple(
            _variant(view, candidate, samples, observed, threads=threads, progress=progress) for candidate in candidates
        ),
        distilled=distilled,
        allocation=allocation,
        verdict=verdict,
    )


def _said(samples: Dataset, more: str) -> str:
    """What the samples are, in words."""
    return ", ".join(part for part in (PurePath(samples.description).name, more) if part)


def _file_name(word: str) -> str:
    return PurePath(word.strip("'\"").removeprefix("--data=")).name


def _one_input(samples: Dataset | None) -> NDArray[Any] | None:
    """The samples of the first input."""
    return None if samples is None else next(iter(samples.parts[0].values()))


def _short_names(paths: Sequence[str]) -> list[str]:
    """File names, or whole paths where two files share a name."""
    short = [PurePath(path).name for path in paths]
    return short if len(set(short)) == len(short) else list(paths)


def _candidate(net: Model, other: str | QuantPlan, name: str) -> Candidate:
    """The candidate for a plan, which is applied, or for a model."""
    if not isinstance(other, QuantPlan) and not str(other).endswith(".json"):
        return Candidate(name=name, model=load(other))
    plan = other if isinstance(other, QuantPlan) else QuantPlan.load(other)
    quantized = lower(net, plan, format="qdq")
    nbytes = load(quantized).nbytes
    return Candidate(name=name, model=Model(ir_model=quantized, source=name, nbytes=nbytes), plan=plan)


def _distilled(given: Given, job: Job, reading: Reading) -> Dataset | None:
    """Samples distilled from the model, where that can be done."""
    try:
        return distilled_samples(given, job, reading)
    except DataError as error:
        warnings.warn(f"nothing is measured: {error}", stacklevel=3)
        return None


def _first(samples: Dataset, count: int) -> Dataset:
    return dataclasses.replace(samples, limit=min(count, samples.count))


def _variant(
    view: GraphView,
    candidate: Candidate,
    samples: Dataset | None,
    observed: Observations | None,
    *,
    threads: int | None,
    progress: Progress,
) -> Variant:
    quality, ratio = None, candidate.latency
    accumulated: dict[str, float | None] = {}
    if samples is not None:
        accumulated = _accumulated(view.model, candidate, samples, threads, progress)
        quality = evaluate(candidate.model, samples, against=view.model, threads=threads, progress=progress)
        if ratio is None:
            before, after = (Session(model.ir_model, threads=1) for model in (view.model, candidate.model))
            ratio = latency(before, after, next(iter(samples.batches(1))).feeds).ratio
    rows = _from_file(view, candidate.model)
    operands: tuple[Operand, ...] = ()
    others: tuple[Alternative, ...] = ()
    if candidate.plan is not None:
        in_file = candidate.in_file or {}
        if samples is not None and candidate.in_file is None:
            in_file = layers_in_file(view, candidate.plan, candidate.model.ir_model, samples, threads=threads)
        for entry in layer_reports(view, candidate.plan, observed, samples, in_file=in_file, threads=threads):
            rows[entry.name] = _from_plan(rows.get(entry.name) or _row(view.by_name[entry.name]), entry)
        if observed is not None:
            predicted = {n: r.predicted_sqnr_db for n, r in rows.items() if r.predicted_sqnr_db is not None}
            others = alternatives(view, candidate.plan, predicted, observed)
            operands = _worst_operands(view, candidate.plan, list(rows.values()), observed)
    return Variant(
        name=candidate.name,
        nbytes=candidate.model.nbytes,
        quality=quality,
        latency=ratio,
        operands=operands,
        alternatives=others,
        kept_float=() if candidate.plan is None else candidate.plan.kept_float,
        layers=tuple(
            dataclasses.replace(rows[name], accumulated_sqnr_db=accumulated.get(name))
            for name in view.by_name
            if name in rows
        ),
    )


def _worst_operands(
    view: GraphView, plan: QuantPlan, rows: Sequence[LayerRow], observed: Observations
) -> tuple[Operand, ...]:
    """What the layers with the largest errors of their own read, a tensor once; the worst first."""
    grids, found = plan.operand_grids, {}
    for row in sorted(rows, key=_own_sqnr):
        layer = view.by_name[row.name]
        grid = None if layer.weight_only or row.activation_bits is None else nearest(layer.input, grids)
        if grid is not None and grid.tensor not in found and not grid.channel_scale and grid.tensor in observed.tensors:
            operand = operand_of(row.name, grid, observed[grid.tensor])
            if operand is not None:
                found[grid.tensor] = operand
        if len(found) == SHOWN:
            break
    return tuple(found.values())


def _own_sqnr(row: LayerRow) -> float:
    """The dB of a layer alone: simulated, else predicted."""
    known = row.predicted_sqnr_db if row.simulated_sqnr_db is None else row.simulated_sqnr_db
    return math.inf if known is None or math.isnan(known) else known


def _accumulated(
    net: Model, candidate: Candidate, samples: Dataset, threads: int | None, progress: Progress
) -> dict[str, float | None]:
    """The SQNR after every layer; empty, with a warning, for a file whose tensors have all been renamed."""
    try:
        rows = compare(net, [candidate.model], _first(samples, COMPARED), threads=threads, progress=progress)
    except UsageError as error:
        warnings.warn(str(error), stacklevel=2)
        return {}
    return {row.layer: row.sqnr_db[0] for row in rows}


def _from_file(view: GraphView, model: Model) -> dict[str, LayerRow]:
    bits, kernels = bits_in_file(model), _kernels(model)
    rows = {}
    for layer in view.layers:
        weight, operand = bits.get(layer.name) or bits.get(str(layer.output.name)) or (None, None)
        rows[layer.name] = dataclasses.replace(
            _row(layer),
            weight_bits=weight,
            activation_bits=operand,
            integer=None if layer.name not in kernels else kernels[layer.name].integer,
            why_float="" if layer.name not in kernels else kernels[layer.name].why,
        )
    return rows


def _row(layer: Layer) -> LayerRow:
    """What every layer has."""
    return LayerRow(name=layer.name, op=layer.op, weight_count=layer.weight_array().size)


def _kernels(model: Model) -> dict[str, FusedLayer]:
    """What onnxruntime makes of the layers; empty for files that it does not run, or that are too large to try."""
    if not fits_one_file(model.ir_model):
        return {}
    try:
        return {layer.name: layer for layer in inspect_fused(model).layers}
    except ModelError:
        return {}


def _from_plan(row: LayerRow, entry: LayerReport) -> LayerRow:
    return dataclasses.replace(
        row,
        weight_bits=entry.weight_bits,
        activation_bits=entry.activation_bits,
        weight_bytes=entry.weight_bytes,
        predicted_sqnr_db=entry.predicted_sqnr_db,
        simulated_sqnr_db=entry.simulated_sqnr_db,
        measured_sqnr_db=entry.measured_sqnr_db,
        integer=entry.runs != "floats" if row.integer is None else row.integer,
    )
