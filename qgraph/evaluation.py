"""How good a model is on data, alone or against its float original; and how fast."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data import Batch, DataLike, open_data
from qgraph.distance import divergence, is_scores
from qgraph.errors import DataError
from qgraph.measure import sqnr_db as ratio_db
from qgraph.model import Model, ModelLike, load
from qgraph.preprocessing import Preprocessing
from qgraph.progress import SILENT, Progress
from qgraph.runtime import Session, in_parallel

BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`top1` in percent (needs labels); `kl` in nats and `sqnr_db` against the float model's outputs."""

    count: int
    top1: float | None = None
    kl: float | None = None
    sqnr_db: float | None = None
    outputs: dict[str, float | None] = field(default_factory=dict)
    """sqnr_db of every floating-point output; `sqnr_db` is that of all of them together."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "top1": self.top1,
            "kl": self.kl,
            "sqnr_db": self.sqnr_db,
            "outputs": self.outputs,
        }


def evaluate(
    model: ModelLike,
    data: DataLike,
    *,
    against: ModelLike | None = None,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Accuracy with labels; divergence and signal-to-noise ratio against another model.

    `top1` and `kl` are of the first output with one score per class. Raises `DataError` when there is nothing to
    measure.
    """
    net = load(model)
    samples = open_data(data, net, preprocessing=preprocessing, limit=limit)
    reference = None if against is None else load(against)
    if samples.labels is None and reference is None:
        raise DataError(
            f"{samples.description} has no labels, so there is nothing to measure: add an array 'labels', or "
            f"pass --against FLOAT.onnx"
        )
    if reference is not None:
        _check_interface(net, reference)
    session = Session(net.ir_model, threads=1)
    twin = Session(reference.ir_model, threads=1) if reference is not None else None
    tally = _Tally(session.output_names)

    def run(batch: Batch) -> tuple[Batch, list[NDArray[Any]], list[NDArray[Any]] | None]:
        expected = [batch.real(o) for o in twin.run_list(batch.feeds)] if twin is not None else None
        return batch, [batch.real(o) for o in session.run_list(batch.feeds)], expected

    with progress.stage("evaluating", samples.count) as advance:
        for batch, produced, expected in in_parallel(run, samples.batches(BATCH), workers=threads):
            tally.add(produced, expected, batch)
            advance(batch.count)
    return tally.result()


def latency_ratio(
    model: Model,
    reference: Model,
    feeds: dict[str, NDArray[Any]],
    *,
    runs: int = 30,
    threads: int | None = None,
) -> float:
    """Median time of one run of `model` over that of `reference`, the two run in turn."""
    sessions = [Session(m.ir_model, threads=threads) for m in (model, reference)]
    times: list[list[float]] = [[], []]
    for _ in range(runs + 3):
        for session, seen in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run_list(feeds)
            seen.append(time.perf_counter() - start)
    return median(times[0][3:]) / median(times[1][3:])


class _Tally:
    """Running sums of everything an `Evaluation` reports."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.signal = np.zeros(len(names))
        self.noise = np.zeros(len(names))
        self.count = self.labelled = self.correct = 0
        self.kl, self.compared = 0.0, 0

    def add(self, produced: list[NDArray[Any]], expected: list[NDArray[Any]] | None, batch: Batch) -> None:
        self.count += batch.count
        scores = _scores(produced)
        if batch.labels is not None and scores is not None:
            labels = _class_labels(batch.labels, produced[scores].shape[1])
            self.correct += int((produced[scores].argmax(axis=1) == labels).sum())
            self.labelled += batch.count
        if expected is None:
            return
        if scores is not None:
            self.kl += float(np.sum(divergence(expected[scores], produced[scores])))
            self.compared += batch.count
        for index, (have, want) in enumerate(zip(produced, expected, strict=True)):
            if have.dtype.kind == "f" and have.shape == want.shape:
                difference = have.astype(np.float64) - want
                self.signal[index] += float(np.sum(want.astype(np.float64) ** 2))
                self.noise[index] += float(np.sum(difference**2))

    def result(self) -> Evaluation:
        measured = {n: ratio_db(s, e) for n, s, e in zip(self.names, self.signal, self.noise, strict=True) if s > 0}
        return Evaluation(
            count=self.count,
            top1=100.0 * self.correct / self.labelled if self.labelled else None,
            kl=self.kl / self.compared if self.compared else None,
            sqnr_db=ratio_db(self.signal.sum(), self.noise.sum()) if measured else None,
            outputs=measured,
        )


def _scores(outputs: list[NDArray[Any]]) -> int | None:
    """Index of the first output that holds one score per class: floats of shape N x C."""
    return next((i for i, output in enumerate(outputs) if is_scores(output)), None)


def _class_labels(labels: NDArray[Any], classes: int) -> NDArray[Any]:
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iu" or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise DataError(
            f"labels must be whole numbers from 0 to {classes - 1}, the data have "
            f"{labels.min()}..{labels.max()} ({labels.dtype})"
        )
    return labels


def _check_interface(model: Model, reference: Model) -> None:
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
