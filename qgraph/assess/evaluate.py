"""Measure how good a model is on data, alone or against its float original, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, Unpack

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.observe.distance import are_probabilities, divergence, is_scores, ratio_db
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.running.executor import LOCAL, Executor, SentWithoutCaches, open_executor
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session
from qgraph.running.threads import keeps_threads
from qgraph.running.wording import Blank, option
from qgraph.samples.dataset import Batch, DataLike, Dataset, Reading, open_data
from qgraph.samples.fallback import falling_back

BATCH = 32
DECIDING = 8  # samples that show whether scores are probabilities
AHEAD = 64  # batches in flight on a cluster, all of them in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`top1` is in percent and needs labels; `kl`, in nats, and `sqnr_db` are relative to the float model's outputs.

    `against_top1` is the accuracy of the float model.
    """

    count: int
    top1: float | None = None
    kl: float | None = None
    sqnr_db: float | None = None
    against_top1: float | None = None
    outputs: dict[str, float | None] = field(default_factory=dict)
    """The SQNR in dB of every floating-point output; `sqnr_db` is that of all of them together."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "top1": self.top1,
            "against_top1": self.against_top1,
            "kl": self.kl,
            "sqnr_db": self.sqnr_db,
            "outputs": self.outputs,
        }


@keeps_threads
def evaluate(
    model: ModelLike,
    data: DataLike,
    *,
    against: ModelLike | None = None,
    threads: int | None = None,
    executor: str = LOCAL,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> Evaluation:
    """Measure accuracy on labelled data, and divergence and signal-to-noise ratio against another model.

    Samples run in batches; one by one in a model with dynamic grids, which would span a whole batch.

    Args:
        model: a path, `onnx.ModelProto`, onnx-ir model, or the result of `quantize` or `apply`.
        data: samples; with labels, top-1 accuracy is measured on the first output with one score per class.
        against: the float model, by default that of a `Result`; KL divergence is measured on that output, SQNR on all
            floating-point outputs.
        executor: where batches run: `local` or `dask:ADDRESS`; the result is the same.
        preprocessing, limit, batch, shapes, batch_axes, labels, threads, progress: as in `quantize`; the normalisation
            of a `Result` is that of its samples.

    Raises:
        DataError: there is nothing to measure, or the two models have different inputs or outputs.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> found = qgraph.evaluate(demo / "digits.onnx", demo / "digits_test.npz", limit=100)
        >>> found.count, found.top1
        (100, 99.0)
        >>> result = qgraph.quantize(demo / "digits.onnx", demo / "digits_calibration.npz", limit=16, measure=False)
        >>> qgraph.evaluate(result, demo / "digits_test.npz", limit=100).sqnr_db > 20
        True
    """
    net = load(model)
    made_from = getattr(model, "samples", None)
    if isinstance(made_from, Dataset) and reading.get("preprocessing") is None:
        reading["preprocessing"] = made_from.preprocessing
    samples = open_data(data, net, **reading)
    against = getattr(model, "net", None) if against is None else against
    reference = None if against is None else load(against)
    if samples.labels is None and reference is None:
        raise DataError(
            f"{samples.description} has no labels, so there is nothing to measure: add labels, or pass "
            f"{option('against', Blank('FLOAT.onnx'))}"
        )
    if reference is not None:
        check_interface(net, reference)
    names = [str(value.name) for value in net.graph.outputs]
    nodes = ir.traversal.RecursiveGraphIterator(net.graph)
    size = 1 if any(node.op_type == "DynamicQuantizeLinear" for node in nodes) else BATCH

    def measured(samples: Dataset) -> _Tally:
        job, total = _Job(net, reference, next(samples.batches(DECIDING))), _Tally(len(names))
        _ = job.sessions, job.probabilities  # before threads need them; also refuses a model that does not load
        pieces = -(-samples.count // size)
        with (
            progress.stage("evaluating", samples.count, pieces=pieces) as advance,
            open_executor(executor, workers=threads) as pool,
        ):
            for tally in _in_order(pool, job, samples.batches(size)):
                total += tally
                advance(tally.count)
        return total

    return falling_back(net, samples, measured)[1].result(names)


@dataclass(frozen=True, eq=False)
class _Job(SentWithoutCaches):
    """What all batches share; sessions are not sent to other processes."""

    model: Model
    reference: Model | None
    first: Batch

    @cached_property
    def sessions(self) -> tuple[Session, Session | None]:
        twin = None if self.reference is None else Session(self.reference.ir_model, threads=1)
        return Session(self.model.ir_model, threads=1), twin

    @cached_property
    def probabilities(self) -> bool:
        """Whether the scores of the float model are probabilities, which those of a quantized one only nearly are."""
        _, twin = self.sessions
        outputs = [] if twin is None else [self.first.real(o) for o in twin.run_list(self.first.feeds)]
        scores = scores_of(outputs)
        return scores is not None and are_probabilities([outputs[scores]])


def _measured(job: _Job, batch: Batch) -> _Tally:
    session, twin = job.sessions
    produced = [batch.real(o) for o in session.run_list(batch.feeds)]
    expected = None if twin is None else [batch.real(o) for o in twin.run_list(batch.feeds)]
    return _Tally.of(produced, expected, batch, probabilities=job.probabilities)


def _in_order(pool: Executor, job: _Job, batches: Iterator[Batch]) -> Iterator[_Tally]:
    """The tallies in the order of their batches, so that sums do not depend on which is done first."""
    done, following = {}, 0
    for index, tally in pool.run(_measured, job, batches, ahead=AHEAD):
        done[index] = tally
        while following in done:
            yield done.pop(following)
            following += 1


def latency_ratio(
    model: Model,
    reference: Model,
    feeds: dict[str, NDArray[Any]],
    *,
    runs: int = 30,
    threads: int | None = None,
) -> float:
    """The median time of a run of `model` divided by that of `reference`; the two take turns."""
    sessions = [Session(m.ir_model, threads=threads) for m in (model, reference)]
    times: list[list[float]] = [[], []]
    for _ in range(runs + 3):
        for session, seen in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run_list(feeds)
            seen.append(time.perf_counter() - start)
    return median(times[0][3:]) / median(times[1][3:])


class _Tally:
    """Sums of everything an `Evaluation` reports, over one batch or several."""

    def __init__(self, outputs: int) -> None:
        self.signal = np.zeros(outputs)
        self.noise = np.zeros(outputs)
        self.count = self.labelled = self.correct = self.right = 0
        self.kl, self.compared = 0.0, 0

    @classmethod
    def of(
        cls, produced: list[NDArray[Any]], expected: list[NDArray[Any]] | None, batch: Batch, *, probabilities: bool
    ) -> _Tally:
        tally = cls(len(produced))
        tally.count = batch.count
        scores = scores_of(produced)
        if batch.labels is not None and scores is not None:
            labels = class_labels(batch.labels, produced[scores].shape[1])
            tally.correct = int((produced[scores].argmax(axis=1) == labels).sum())
            tally.labelled = batch.count
            if expected is not None:
                tally.right = int((expected[scores].argmax(axis=1) == labels).sum())
        if expected is None:
            return tally
        if scores is not None:
            tally.kl = float(np.sum(divergence(expected[scores], produced[scores], probabilities=probabilities)))
            tally.compared = batch.count
        for index, (have, want) in enumerate(zip(produced, expected, strict=True)):
            if have.dtype.kind == "f" and have.shape == want.shape:
                difference = have.astype(np.float64) - want
                tally.signal[index] = float(np.sum(want.astype(np.float64) ** 2))
                tally.noise[index] = float(np.sum(difference**2))
        return tally

    def __iadd__(self, other: _Tally) -> _Tally:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def result(self, names: Sequence[str]) -> Evaluation:
        measured = {n: ratio_db(s, e) for n, s, e in zip(names, self.signal, self.noise, strict=True) if s > 0}
        return Evaluation(
            count=self.count,
            top1=100.0 * self.correct / self.labelled if self.labelled else None,
            against_top1=100.0 * self.right / self.labelled if self.labelled and self.compared else None,
            kl=self.kl / self.compared if self.compared else None,
            sqnr_db=ratio_db(self.signal.sum(), self.noise.sum()) if measured else None,
            outputs=measured,
        )


def scores_of(outputs: list[NDArray[Any]]) -> int | None:
    """The index of the first output that holds one score per class: floats of shape N x C."""
    return next((i for i, output in enumerate(outputs) if is_scores(output)), None)


def class_labels(labels: NDArray[Any], classes: int) -> NDArray[Any]:
    """The labels as classes from 0 to `classes` - 1; raises `DataError` for others."""
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iu" or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise DataError(
            f"labels must be whole numbers from 0 to {classes - 1}, the data have "
            f"{labels.min()}..{labels.max()} ({labels.dtype})"
        )
    return labels


def check_interface(model: Model, reference: Model) -> None:
    """Raise `DataError` if two models have inputs or outputs of different names."""
    for kind, mine, theirs in (
        ("inputs", model.input_values(), reference.input_values()),
        ("outputs", model.graph.outputs, reference.graph.outputs),
    ):
        names = [v.name for v in mine], [v.name for v in theirs]
        if names[0] != names[1]:
            raise DataError(
                f"{model.source} and {reference.source} are not the same network: their {kind} are {names[0]} "
                f"and {names[1]}"
            )
