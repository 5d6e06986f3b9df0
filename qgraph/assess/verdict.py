"""The verdict on a quantized file: run in onnxruntime beside the float model, on held-out samples.

It is measured on the very bytes that are written: how far every output moved, what the task lost if that is known, how
large and how fast the file is, and how much of it is still in floating point.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.assess.float_constants import float_constant_bytes, is_linear
from qgraph.assess.fused import FusedGraph, read_fused
from qgraph.assess.judge import batch_labels
from qgraph.assess.latency import latency
from qgraph.assess.metric import Collected, Metric, compare_by
from qgraph.assess.output_quality import AccuracyTally, OutputQuality, OutputTally, classified
from qgraph.assess.verify import first_run
from qgraph.errors import DataError, ModelError
from qgraph.observe.compared import Compared
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.noise import TRIED_SIZES, noise
from qgraph.onnxfile.write import serialised
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session, fits_one_file, in_parallel
from qgraph.samples.dataset import Batch, Dataset, open_data

Basis = Literal["held-out", "calibration", "given", "distilled", "noise", "none"]
_SAID: dict[Basis, str] = {
    "held-out": "held out from calibration",
    "calibration": "that also calibrated it: too few to hold any out",
    "given": "that a job on the same data would hold out",
    "distilled": "distilled from the model, for lack of data",
    "noise": "of random noise, for lack of data: only samples give a meaningful figure",
    "none": "",
}
_INVENTED: tuple[Basis, ...] = ("distilled", "noise")  # such samples belong to no class
NOISE_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of a verdict; `value` is None where it is unknown."""

    name: str
    value: float | None
    unit: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a quantized file compares with its float model.

    `basis` says what it was measured on: `held-out` samples, the `calibration` samples themselves, samples `given` for
    an existing plan, `distilled` samples, `noise`, or `none`. `latency` is that of the file relative to float, for one
    sample on one thread. `integer_layers` of `layers` run on integers in onnxruntime. `float_constant_bytes` are those
    of the constants that the file holds in floating point. `notes` say what went wrong.
    """

    basis: Basis
    samples: int
    nbytes: int
    float_nbytes: int
    outputs: tuple[OutputQuality, ...] = ()
    accuracy: Compared | None = None
    metric: Compared | None = None
    latency: float | None = None
    float_seconds: float | None = None
    """The time of one sample in the float model, on one thread."""
    layers: int | None = None
    integer_layers: int | None = None
    float_constant_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> OutputQuality | None:
        """The output that moved most: one with a problem, else the one with the lowest SQNR."""
        troubled = [o for o in self.outputs if o.problem and o.sqnr_db is None]
        measured = [o for o in self.outputs if o.sqnr_db is not None]
        return troubled[0] if troubled else min(measured, key=lambda o: o.sqnr_db or 0.0, default=None)

    def figure(self, unit: str = "") -> Figure:
        """The figure that a threshold applies to: the worst output's `dB`, or the accuracy in `%`.

        Without a unit it is the metric if there is one, else the accuracy if there are labels, else dB. A problem in an
        output is below any threshold; without floats and without labels there is no figure.
        """
        if unit == "" and self.metric is not None:
            return Figure(name=self.metric.name, value=self.metric.after)
        if unit in ("", "%") and self.accuracy is not None:
            return Figure(name="accuracy", value=self.accuracy.after, unit="%")
        worst = self.worst
        if unit == "%" or (worst is None and not any(output.exact for output in self.outputs)):
            return Figure(name="accuracy" if unit == "%" else "signal over error", value=None, unit=unit)
        if worst is None:
            return Figure(name="every output", value=math.inf, unit="dB")
        value = -math.inf if worst.sqnr_db is None else worst.sqnr_db
        return Figure(name=f"output '{worst.name}'", value=value, unit="dB", problem=worst.problem)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """The value of `quality` in `--json`."""
        return dataclasses.asdict(self)

    def lines(self) -> tuple[str, str, str]:
        """The verdict in three lines: outputs, size, speed."""
        return (f"quality: {self._quality()}", f"size: {self._size()}", f"speed: {self._speed()}")

    def _quality(self) -> str:
        if self.basis == "none":
            return "; ".join(("not measured", *self.notes))
        parts = []
        for compared in (self.metric, self.accuracy):
            if compared is not None:
                parts.append(described(compared))
        ranked = sorted(self.outputs, key=lambda o: (not o.problem, o.sqnr_db is None, o.sqnr_db or 0.0))
        parts += [_described(output) for output in ranked[:3]]
        if len(ranked) > 3:
            parts.append(f"{len(ranked) - 3} more outputs are better")
        on = f"on {self.samples:,} sample{'s' * (self.samples != 1)} {_SAID[self.basis]}"
        return "; ".join((*parts, *self.notes)) + f" ({on})"

    def _size(self) -> str:
        share = self.nbytes / max(self.float_nbytes, 1)
        return f"{share:.0%} of float; {self.float_constant_bytes:,} bytes of constants still in floating point"

    def _speed(self) -> str:
        ratio = "latency not measured" if self.latency is None else f"{self.latency:.2f} of float's latency"
        if self.layers is None:
            return ratio
        return f"{ratio}; {self.integer_layers} of {self.layers} layers on integers"


def described(compared: Compared) -> str:
    """A figure before and after quantization, with the margin of the difference."""
    unit = " %" if compared.name == "accuracy" else ""
    margin = "" if compared.margin is None else f" +- {compared.margin:.3g}"
    change = f"difference {compared.difference:+.3g}{margin}"
    return f"{compared.name} {compared.before:.4g} -> {compared.after:.4g}{unit} ({change})"


def _described(output: OutputQuality) -> str:
    said = [f"{output.name} {output.problem}" if output.problem else output.name]
    if output.sqnr_db is not None:
        said.append(f"{output.sqnr_db:.1f} dB")
    elif output.exact:
        said.append("exact")
    if output.same_argmax is not None:
        said.append(f"{output.same_argmax:.1%} same class")
    if output.same_values is not None:
        said.append(f"{output.same_values:.1%} same values")
    return " ".join(said[:2]) + "".join(f", {more}" for more in said[2:])


def measure(
    reference: Model,
    quantized: ir.Model,
    samples: Dataset | None,
    *,
    basis: Basis = "held-out",
    metric: Metric | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Verdict:
    """Run `quantized`, as it will be written, beside the float model `reference`.

    Samples run one at a time, on as many `threads` in parallel, so that few runs are in memory at once. Without samples
    the models run on noise, unless the weights do not fit one file. A file that onnxruntime cannot run, or that returns
    NaN, is described in the verdict and does not raise.

    Raises `DataError` for a metric that fails on the float model's outputs.
    """
    large = not fits_one_file(quantized)
    data = quantized if large else serialised(quantized)
    nbytes = _bytes_of(quantized) if isinstance(data, ir.Model) else len(data)
    found = Verdict(
        basis="none",
        samples=0,
        nbytes=nbytes,
        float_nbytes=reference.nbytes,
        float_constant_bytes=float_constant_bytes(quantized),
    )
    if large and samples is None:
        return dataclasses.replace(found, notes=("weights of this size are only run on given samples",))
    try:
        float_session = Session(reference.ir_model, threads=1)
    except ModelError as error:
        return dataclasses.replace(found, notes=(f"the float model does not run: {error}",))
    try:
        session, fused = _load(quantized, data, large)
    except ModelError as error:
        return dataclasses.replace(found, notes=(f"the file does not run: {error}",))
    names = zip(session.output_names, float_session.output_types, session.output_types, strict=True)
    if changed := [f"output '{name}' is {now}, not {before}" for name, before, now in names if now != before]:
        found = dataclasses.replace(found, notes=tuple(changed))
    layers = None if fused is None else len(fused.layers)
    integers = None if fused is None else sum(layer.integer for layer in fused.layers)
    found = dataclasses.replace(found, layers=layers, integer_layers=integers)
    if samples is None:
        samples, basis = _noise(reference, float_session), "noise"
    if samples is None:
        return dataclasses.replace(found, notes=("no samples, and noise does not run through the float model",))
    try:
        size, first, want = first_run(float_session, samples)
    except ModelError as error:
        return dataclasses.replace(found, notes=(f"the float model does not run on the held-out samples: {error}",))
    run = _Run(reference=reference, before=float_session, after=session, metric=metric, size=size, known=(first, want))
    return run.judged(dataclasses.replace(found, basis=basis), samples, threads=threads, progress=progress)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    """Two single-threaded sessions, of the float model and of the file, and the first batch with its float outputs."""

    reference: Model
    before: Session
    after: Session
    metric: Metric | None
    size: int
    known: tuple[Batch, list[Any]]

    def judged(self, found: Verdict, samples: Dataset, *, threads: int | None, progress: Progress) -> Verdict:
        names = [str(value.name) for value in self.reference.graph.outputs]
        linear = [is_linear(value) for value in self.reference.graph.outputs]
        total = _Tally.empty(names, linear)
        with progress.stage("measuring the file", samples.count) as advance:
            first = self.known[0]
            rest = ((batch, None) for batch in samples.choose(range(first.count, samples.count)).batches(self.size))
            runs = itertools.chain([self.known], rest)
            for tally in in_parallel(lambda run: self._one(*run, names, linear), runs, workers=threads):
                total.merge(tally)
                advance(tally.samples)
        timed = latency(self.before, self.after, first.feeds)
        outputs = (output.result() for output in total.outputs)
        return dataclasses.replace(
            found,
            samples=total.samples,
            outputs=tuple(_without_classes(o) if found.basis in _INVENTED else o for o in outputs),
            accuracy=total.accuracy.result(),
            metric=self._metric(total, names),
            latency=timed.ratio,
            float_seconds=timed.float_seconds,
            notes=(*found.notes, *total.notes()),
        )

    def _one(self, batch: Batch, known: list[Any] | None, names: Sequence[str], linear: Sequence[bool]) -> _Tally:
        tally = _Tally.empty(names, linear)
        tally.samples = batch.count
        want = [batch.real(output) for output in known or self.before.run_list(batch.feeds)]
        try:
            have = [batch.real(output) for output in self.after.run_list(batch.feeds)]
        except ModelError as error:
            tally.failures.append(str(error))
            return tally
        for output, ours, theirs in zip(tally.outputs, want, have, strict=True):
            output.take(ours, theirs)
        labels = batch_labels(batch)
        if labels is not None:
            _classify(tally, want, have, labels)
        if self.metric is not None:
            tally.kept.append((want, have, labels))
        return tally

    def _metric(self, total: _Tally, names: Sequence[str]) -> Compared | None:
        if self.metric is None or not total.kept or total.failures:
            return None
        labels = None
        if total.kept[0][2] is not None:
            labels = np.concatenate([kept for _, _, kept in total.kept])
        before = Collected(names=names, runs=[want for want, _, _ in total.kept], labels=labels)
        after = Collected(names=names, runs=[have for _, have, _ in total.kept], labels=labels)
        return compare_by(self.metric, before, after)


def _without_classes(output: OutputQuality) -> OutputQuality:
    return dataclasses.replace(output, same_argmax=None, decisions=0)


@dataclass(slots=True)
class _Tally:
    outputs: list[OutputTally]
    samples: int = 0
    accuracy: AccuracyTally = field(default_factory=AccuracyTally)
    failures: list[str] = field(default_factory=list)
    unfit: str = ""
    kept: list[tuple[list[Any], list[Any], NDArray[Any] | None]] = field(default_factory=list)

    @classmethod
    def empty(cls, names: Sequence[str], linear: Sequence[bool]) -> _Tally:
        return cls(outputs=[OutputTally(name=n, linear=flat) for n, flat in zip(names, linear, strict=True)])

    def merge(self, other: _Tally) -> None:
        for mine, theirs in zip(self.outputs, other.outputs, strict=True):
            mine.merge(theirs)
        self.accuracy.merge(other.accuracy)
        self.samples += other.samples
        self.failures += other.failures
        self.kept += other.kept
        self.unfit = self.unfit or other.unfit

    def notes(self) -> list[str]:
        said = [self.unfit] if self.unfit else []
        if self.failures:
            said.append(f"the file fails in {len(self.failures)} runs: {self.failures[0]}")
        return said


def _load(quantized: ir.Model, data: ir.Model | bytes, large: bool) -> tuple[Session, FusedGraph | None]:
    """A session on the file, and the graph that onnxruntime makes of it unless the file is large."""
    if large:
        return Session(data, threads=1), None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        session = Session(data, threads=1, optimized_path=path)
        return session, read_fused(Model(ir_model=quantized, source="", nbytes=0), path)


def _noise(reference: Model, session: Session) -> Dataset | None:
    """Noise that the float model accepts; None if no size of its open dimensions works."""
    for size in TRIED_SIZES:
        feeds = noise(reference, size, samples=NOISE_SAMPLES)
        try:
            data = open_data(feeds, reference)
            session.run_list(next(data.batches(1)).feeds)
        except (ModelError, DataError, MemoryError, ValueError):
            continue
        return data
    return None


def _classify(tally: _Tally, want: list[Any], have: list[Any], labels: NDArray[Any]) -> None:
    """Count what the first output whose classes fit the labels classifies correctly."""
    found = classified(want, labels, [output.linear for output in tally.outputs])
    if found is None or want[found[0]].shape != have[found[0]].shape:
        return
    index, axis = found
    classes = want[index].shape[axis]
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        tally.unfit = f"accuracy is left out: labels from 0 to {classes - 1} are needed"
    else:
        tally.accuracy.take(want[index].argmax(axis=axis), have[index].argmax(axis=axis), labels)


def _bytes_of(model: ir.Model) -> int:
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return sum(tensor.nbytes for tensor in weights)
