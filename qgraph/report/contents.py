"""The contents of a report: a float model and quantized forms of it, measured on the same samples."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Unpack

from numpy.typing import NDArray

from qgraph.assess.bits_in_file import bits_in_file
from qgraph.assess.compare import compare
from qgraph.assess.evaluate import Evaluation, evaluate, latency_ratio
from qgraph.assess.layer_errors import LayerReport, layer_reports
from qgraph.assess.layers_in_file import layers_in_file
from qgraph.assess.verdict import Verdict
from qgraph.errors import DataError, UsageError
from qgraph.graph.sites import GraphView
from qgraph.jobs.distil import distilled_samples
from qgraph.jobs.given import Given, open_given
from qgraph.jobs.result import Result
from qgraph.lowering.lower import lower
from qgraph.methods.zeroq.allocate import Allocation
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.plan.plan import KeptFloat, QuantPlan
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, Dataset, Reading

OBSERVED, COMPARED, TIMED = 256, 64, 15  # samples for statistics, samples for layers, runs for latency


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer of one variant, with its errors in dB.

    The predicted and simulated errors are those of the layer alone. The measured and accumulated ones are those of the
    file and include all layers before: measured after the grid of the layer's result, accumulated before it.
    """

    name: str
    op: str
    weight_count: int
    weight_bits: int | None = None
    activation_bits: int | None = None
    weight_bytes: int | None = None
    predicted_sqnr_db: float | None = None
    simulated_sqnr_db: float | None = None
    measured_sqnr_db: float | None = None
    accumulated_sqnr_db: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One quantized form of the network; `latency` is relative to the float model."""

    name: str
    nbytes: int
    layers: tuple[LayerRow, ...]
    kept_float: tuple[KeptFloat, ...] = ()
    quality: Evaluation | None = None
    latency: float | None = None

    @property
    def mean_weight_bits(self) -> float | None:
        """The average bits per weight, without layers in floating point."""
        quantized = [(r.weight_count, r.weight_bits) for r in self.layers if r.weight_bits is not None]
        count = sum(n for n, _ in quantized)
        return sum(n * bits for n, bits in quantized) / count if count else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """Everything on the page; `data` says what it was measured on, `distilled` are the samples if they were made."""

    source: str
    digest: str
    nbytes: int
    data: str
    count: int
    variants: tuple[Variant, ...]
    quality: Evaluation | None = None
    distilled: NDArray[Any] | None = None
    verdict: Verdict | None = None
    """The verdict on the written file, if the report is about one job."""
    allocation: Allocation | None = None
    """How bits were chosen, if they are mixed."""

    def to_dict(self) -> dict[str, Any]:
        """What `qgraph report --json` prints."""
        return {
            "model": self.source,
            "bytes": self.nbytes,
            "data": self.data,
            "count": self.count,
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "top1": None if self.quality is None else self.quality.top1,
            "variants": [
                {
                    "name": v.name,
                    "bytes": v.nbytes,
                    "latency": v.latency,
                    "quality": None if v.quality is None else v.quality.to_dict(),
                    "layers": [dataclasses.asdict(layer) for layer in v.layers],
                    "kept_float": [dataclasses.asdict(k) for k in v.kept_float],
                }
                for v in self.variants
            ],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A quantized form to report on: its graph, and the plan that made it, if known."""

    name: str
    model: Model
    plan: QuantPlan | None = None


@keeps_threads
def report_on(
    reference: ModelLike,
    others: Sequence[str | QuantPlan],
    data: DataLike | None = None,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> Report:
    """Compare plans (`.json` files or values) and quantized models of one float model.

    Without data, layers are measured on distilled samples. `reading` are the options of `open_data`. Raises `PlanError`
    for a plan of another model, and `UsageError` if there is nothing to compare.
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
    return gather(net, candidates, samples, observed, distilled=made, threads=threads, progress=progress)


def report_of(result: Result, *, name: str = "quantized", progress: Progress = SILENT) -> Report:
    """The report on one `quantize` job, measured on the samples it was calibrated with."""
    quantized = Model(ir_model=result.model, source=name, nbytes=result.nbytes)
    made = _one_input(result.samples) if result.data == "distilled" else None
    return gather(
        result.net,
        [Candidate(name=name, model=quantized, plan=result.plan)],
        result.samples,
        result.observed,
        distilled=made,
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
    distilled: NDArray[Any] | None = None,
    allocation: Allocation | None = None,
    verdict: Verdict | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Measure every candidate against the float model `net`; without samples, only sizes and bits."""
    view = GraphView(net)
    count = 0 if samples is None else samples.count
    labelled = samples is not None and samples.labels is not None
    return Report(
        source=PurePath(net.source).name,
        digest=net.digest,
        nbytes=net.nbytes,
        data="nothing"
        if samples is None
        else "distilled samples"
        if distilled is not None
        else PurePath(samples.description).name,
        count=count,
        quality=evaluate(net, samples, threads=threads, progress=progress) if samples and labelled else None,
        variants=tuple(
            _variant(view, candidate, samples, observed, threads=threads, progress=progress) for candidate in candidates
        ),
        distilled=distilled,
        allocation=allocation,
        verdict=verdict,
    )


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
    quality = latency = None
    accumulated: dict[str, float | None] = {}
    if samples is not None:
        accumulated = _accumulated(view.model, candidate, samples, threads, progress)
        quality = evaluate(candidate.model, samples, against=view.model, threads=threads, progress=progress)
        feeds = next(iter(samples.batches(1))).feeds
        latency = latency_ratio(candidate.model, view.model, feeds, runs=TIMED, threads=threads)
    rows = _from_file(view, candidate.model)
    if candidate.plan is not None:
        in_file = {}
        if samples is not None:
            in_file = layers_in_file(view, candidate.plan, candidate.model.ir_model, samples, threads=threads)
        for entry in layer_reports(view, candidate.plan, observed, samples, in_file=in_file, threads=threads):
            rows[entry.name] = _from_plan(rows[entry.name], entry)
    return Variant(
        name=candidate.name,
        nbytes=candidate.model.nbytes,
        quality=quality,
        latency=latency,
        kept_float=() if candidate.plan is None else candidate.plan.kept_float,
        layers=tuple(
            dataclasses.replace(rows[layer.name], accumulated_sqnr_db=accumulated.get(layer.name))
            for layer in view.layers
        ),
    )


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
    bits = bits_in_file(model)
    rows = {}
    for layer in view.layers:
        weight, operand = bits.get(layer.name) or bits.get(str(layer.output.name)) or (None, None)
        rows[layer.name] = LayerRow(
            name=layer.name,
            op=layer.op,
            weight_count=layer.weight_array().size,
            weight_bits=weight,
            activation_bits=operand,
        )
    return rows


def _from_plan(row: LayerRow, entry: LayerReport) -> LayerRow:
    return dataclasses.replace(
        row,
        weight_bits=entry.weight_bits,
        activation_bits=entry.activation_bits,
        weight_bytes=entry.weight_bytes,
        predicted_sqnr_db=entry.predicted_sqnr_db,
        simulated_sqnr_db=entry.simulated_sqnr_db,
        measured_sqnr_db=entry.measured_sqnr_db,
    )
