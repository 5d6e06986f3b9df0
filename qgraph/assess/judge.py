"""Judge many candidates by accuracy or the user's metric, against the float model on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.assess.float_constants import is_linear
from qgraph.assess.metric import Collected, Metric, compare_by
from qgraph.assess.output_quality import AccuracyTally, classified
from qgraph.errors import DataError
from qgraph.observe.compared import Compared
from qgraph.onnxfile.model import Model
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session, in_parallel
from qgraph.samples.dataset import Batch, Dataset

BATCH = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class Judge:
    """Compares models with `reference` on `samples` by `metric`, or by accuracy if there is none.

    Only the classes of the float model's outputs are kept, or all of the outputs if there is a metric.
    """

    reference: Model
    samples: Dataset
    metric: Metric | None = None
    threads: int | None = None
    progress: Progress = SILENT

    def __call__(self, model: ir.Model) -> Compared | None:
        """The figures of the float model and of `model`; None if the model has no classes.

        Raises `DataError` for labels that are not classes of the model, or a metric that fails.
        """
        if not any(self._before):
            return None
        after = self._answers(model)
        if self.metric is not None:
            names = [str(value.name) for value in self.reference.graph.outputs]
            labels = _together([batch_labels(batch) for batch in self.samples.batches(BATCH)])
            runs = (Collected(names=names, runs=answers, labels=labels) for answers in (self._before, after))
            return compare_by(self.metric, *runs)
        tally = AccuracyTally()
        for batch, want, have in zip(self.samples.batches(BATCH), self._before, after, strict=True):
            labels = batch_labels(batch)
            if want and labels is not None:
                tally.take(want[0], have[0], labels)
        return tally.result()

    @cached_property
    def _before(self) -> list[Sequence[Any]]:
        return self._answers(self.reference.ir_model)

    @cached_property
    def _linear(self) -> list[bool]:
        return [is_linear(value) for value in self.reference.graph.outputs]

    def _answers(self, model: ir.Model) -> list[Sequence[Any]]:
        session = Session(model, threads=1)

        def run(batch: Batch) -> tuple[Sequence[Any], int]:
            outputs = [batch.real(o) for o in session.run_list(batch.feeds)]
            return (outputs if self.metric is not None else self._classes(outputs, batch)), batch.count

        answers = []
        with self.progress.stage("judging", self.samples.count) as advance:
            for answer, count in in_parallel(run, self.samples.batches(BATCH), workers=self.threads):
                answers.append(answer)
                advance(count)
        return answers

    def _classes(self, outputs: list[Any], batch: Batch) -> Sequence[Any]:
        labels = batch_labels(batch)
        found = None if labels is None else classified(outputs, labels, self._linear)
        if found is None or labels is None:
            return ()
        index, axis = found
        classes = outputs[index].shape[axis]
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise DataError(
                f"labels must be whole numbers from 0 to {classes - 1}, the data have {labels.min()}..{labels.max()}"
            )
        return (outputs[index].argmax(axis=axis),)


def batch_labels(batch: Batch) -> NDArray[Any] | None:
    """The labels of a batch, whatever their shape."""
    return batch.targets if batch.labels is None else batch.labels


def _together(labels: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    known = [part for part in labels if part is not None]
    return np.concatenate(known) if known else None
