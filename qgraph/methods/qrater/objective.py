"""Score outputs sample by sample; larger is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.errors import DataError
from qgraph.methods.qrater.config import LABELLED, WITH_LABELS, Objective
from qgraph.observe.distance import are_probabilities, as_logits
from qgraph.running.wording import option

INVALID = -1e6  # the score of a sample whose outputs are not finite
TIE = 1e-3  # images per nat: what the loss weighs beside a correct answer in the objective `task`
SUREST = 20.0  # nats: the most that one sample may lose by its loss there

Outputs = list[NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores a batch against its labels or the float network's outputs.

    `scores` is the index of the output with one score per class: logits, or `probabilities`. `power` holds the mean
    square of every floating-point output that has one row per sample, and 0 for other outputs. If every batch is a
    single sample (`whole`), outputs of any shape count.
    """

    objective: Objective
    scores: int
    probabilities: bool = False
    power: tuple[float, ...] = ()
    whole: bool = False

    def __call__(self, outputs: Outputs, reference: Outputs, labels: NDArray[Any] | None) -> NDArray[np.float64]:
        """One number per sample, depending on the objective.

        accuracy: 1 if correct, else 0; loss: minus the cross entropy; task: the first, and a thousandth of the second,
        which decides between equals; kl: minus the divergence from the float network, in nats; mse: minus the squared
        distance from its outputs, relative to their mean square.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            values = self._values(outputs, reference, labels)
        return np.where(np.isfinite(values), np.maximum(values, INVALID), INVALID)

    def _values(self, outputs: Outputs, reference: Outputs, labels: NDArray[Any] | None) -> NDArray[np.float64]:
        if self.objective == "mse":
            pairs = zip(outputs, reference, self.power, strict=True)
            return -np.sum([_distance(self._rows(a), self._rows(b), p) for a, b, p in pairs if p], axis=0)
        scores = self._logits(outputs[self.scores])
        scores = np.where(np.isfinite(scores).all(axis=1, keepdims=True), scores, np.nan)
        if self.objective == "kl":
            return -_divergence(self._logits(reference[self.scores]), scores)
        if labels is None:
            raise DataError(f"the objective '{self.objective}' needs labels: choose kl or mse")
        correct = np.where(np.isnan(scores[:, 0]), np.nan, scores.argmax(axis=1) == labels)
        if self.objective == "accuracy":
            return correct
        likelihood = scores[np.arange(len(labels)), labels] - _log_sum_exp(scores)
        return likelihood if self.objective == "loss" else correct + TIE * np.maximum(likelihood, -SUREST)

    def _rows(self, array: NDArray[Any]) -> NDArray[Any]:
        return array[None] if self.whole else array

    def _logits(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        return as_logits(scores, probabilities=self.probabilities)


def choose_scorer(
    objective: Objective | None, reference: list[Outputs], labels: NDArray[Any] | None, *, counts: Sequence[int] = ()
) -> Scorer:
    """The scorer for the float network's outputs; raises `DataError` if the objective cannot be computed.

    By default, the task is measured (`LABELLED`) where labels are classes of an output, else the distance of outputs.

    Outputs that do not have one row per sample of a batch (`counts`), such as constant anchors or strings, are ignored.
    """
    counts = counts or [len(batch[0]) for batch in reference]
    whole = max(counts) == 1
    by_output = list(zip(*reference, strict=True))
    bad = next((i for i, outputs in enumerate(by_output) if not all(map(_finite, outputs))), None)
    if bad is not None:
        raise DataError(f"the float model computes NaN or infinite values for its output {bad} on these data")
    rows = [all(_has_rows(o, n) for o, n in zip(outputs, counts, strict=True)) for outputs in by_output]
    found = next((i for i, outputs in enumerate(by_output) if rows[i] and _are_scores(outputs)), None)
    wanted: Objective = objective or _default(labels, 0 if found is None else by_output[found][0].shape[1])
    if wanted in WITH_LABELS and labels is None:
        raise DataError(
            f"the objective '{wanted}' needs labels and the data have none: add an array 'labels', or choose kl"
        )
    if wanted == "mse":
        power = tuple(_power(outputs) if rows[i] or whole else 0.0 for i, outputs in enumerate(by_output))
        if not any(power):
            raise DataError(
                "every float output is zero, not of a floating type, or has no row for each sample: there is no "
                f"objective to measure; if the model takes one sample at a time, pass {option('batch', 1)}"
            )
        return Scorer(objective="mse", scores=-1, power=power, whole=whole)
    if found is None:
        raise DataError(f"the objective '{wanted}' needs an output with one score per class; choose mse")
    if labels is not None and wanted != "kl":
        _check_labels(labels, by_output[found][0].shape[1])
    return Scorer(objective=wanted, scores=found, probabilities=are_probabilities(by_output[found]))


def _default(labels: NDArray[Any] | None, classes: int) -> Objective:
    if labels is None or not classes or not _are_classes(labels, classes):
        return "mse"
    return LABELLED


def _are_classes(labels: NDArray[Any], classes: int) -> bool:
    return labels.ndim == 1 and labels.dtype.kind in "iu" and 0 <= labels.min() <= labels.max() < classes


def _check_labels(labels: NDArray[Any], classes: int) -> None:
    if not _are_classes(labels, classes):
        raise DataError(
            f"labels must be whole numbers from 0 to {classes - 1}, the data have {labels.min()}..{labels.max()} "
            f"({labels.dtype})"
        )


def _is_float(output: Any) -> bool:
    return isinstance(output, np.ndarray) and output.dtype.kind == "f"


def _finite(output: Any) -> bool:
    return not _is_float(output) or bool(np.isfinite(output).all())


def _has_rows(output: Any, count: int) -> bool:
    """Whether an output of a batch has one row per sample."""
    return isinstance(output, np.ndarray) and output.ndim > 0 and len(output) == count


def _are_scores(outputs: Sequence[Any]) -> bool:
    """Whether the outputs of all batches hold one score per class, of the same number of classes."""
    flat = all(_is_float(o) and o.ndim == 2 and o.shape[1] > 1 for o in outputs)
    return flat and len({o.shape[1] for o in outputs}) == 1


def _power(outputs: Sequence[Any]) -> float:
    """The mean square of an output over all batches; 0 if it is not floating point."""
    if not all(map(_is_float, outputs)):
        return 0.0
    size = sum(o.size for o in outputs)
    return float(sum(np.square(o.astype(np.float64)).sum() for o in outputs) / size) if size else 0.0


def _distance(output: NDArray[Any], reference: NDArray[Any], power: float) -> NDArray[np.float64]:
    """The mean squared distance per sample relative to the output's power; 0 where it cannot be measured."""
    if output.shape != reference.shape or not reference.size:
        return np.zeros(len(reference))
    difference = output.astype(np.float64) - reference
    return np.asarray(np.mean(difference.reshape(len(difference), -1) ** 2, axis=1) / power)


def _divergence(expected: NDArray[np.float64], produced: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = ~np.isnan(produced).any(axis=1)
    values = np.full(len(produced), np.nan)
    if finite.any():
        values[finite] = qmath.kl_divergence(expected[finite], produced[finite], axis=-1)
    return values


def _log_sum_exp(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    highest = scores.max(axis=1)
    return np.asarray(highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1)))
