"""A metric of the user's own task: a function of outputs and labels, higher is better."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError, UsageError
from qgraph.observe.compared import Compared
from qgraph.running.wording import option

_GROUPS, _STUDENT = 10, 2.262157  # parts left out in turn, and Student's t at 95 % for 9 degrees of freedom


class Outputs(Mapping[str, Any]):
    """The outputs of a model over all samples, by name or by position.

    Each is one array with samples along axis 0 or, if shapes differ, a list of one array per sample.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = dict(arrays)

    def __getitem__(self, key: str | int) -> Any:
        return self._arrays[list(self._arrays)[key] if isinstance(key, int) else key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A named `function(outputs, labels)` that returns a number, higher is better; without labels, `labels` is None."""

    name: str
    function: Callable[[Any, Any], Any]

    def __call__(self, outputs: Outputs, labels: NDArray[Any] | None) -> float:
        """The value of the metric; raises `DataError` if the function fails or does not return a number."""
        try:
            figure = float(self.function(outputs, labels))
        except Exception as error:
            raise DataError(
                f"the metric {self.name} fails on these data: {type(error).__name__}: {error}; it gets the outputs by "
                f"name or position and the labels (or None), and must return a number"
            ) from error
        return figure


MetricLike: TypeAlias = "str | Callable[[Any, Any], Any] | Metric"


def load_metric(metric: MetricLike) -> Metric:
    """The metric that `MODULE:FUNCTION` names, in the working directory or an installed package; or a given function.

    Raises `UsageError` if there is no such function.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return Metric(name=getattr(metric, "__name__", "metric"), function=metric)
    module, _, name = metric.partition(":")
    if not module or not name:
        raise UsageError(
            f"{option('metric')} '{metric}' is not MODULE:FUNCTION, for example mytask:score for mytask.py here"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = importlib.import_module(module.removesuffix(".py"))
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UsageError(f"{option('metric')} {metric} cannot be imported: {error}") from error
    if not callable(function):
        raise UsageError(
            f"{option('metric')} {metric} is a {type(function).__name__}, not a function of (outputs, labels)"
        )
    return Metric(name=metric, function=function)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The outputs of a model for every batch, in order, and the labels."""

    names: Sequence[str]
    runs: Sequence[Sequence[Any]]
    labels: NDArray[Any] | None

    def outputs(self, chosen: Sequence[int] | None = None) -> Outputs:
        runs = self.runs if chosen is None else [self.runs[i] for i in chosen]
        return Outputs({name: _joined([run[i] for run in runs]) for i, name in enumerate(self.names)})


def compare_by(metric: Metric, before: Collected, after: Collected) -> Compared:
    """The metric of two models on the same samples, and the margin of the difference by a jackknife over ten parts."""
    labels = before.labels
    return Compared(
        name=metric.name,
        before=metric(before.outputs(), labels),
        after=metric(after.outputs(), labels),
        samples=len(before.runs) if labels is None else len(labels),
        margin=_jackknife(metric, before, after),
    )


def _jackknife(metric: Metric, before: Collected, after: Collected) -> float | None:
    """t sqrt((g - 1) / g sum (d_i - mean d)^2) over g differences, each without one of g parts of the samples."""
    count = len(before.runs)
    if count < 2 * _GROUPS or (before.labels is not None and len(before.labels) != count):
        return None
    differences = []
    for group in range(_GROUPS):
        rest = [i for i in range(count) if i % _GROUPS != group]
        labels = None if before.labels is None else before.labels[rest]
        try:
            differences.append(metric(before.outputs(rest), labels) - metric(after.outputs(rest), labels))
        except DataError:
            return None
    spread = np.square(np.array(differences) - np.mean(differences)).sum()
    margin = _STUDENT * math.sqrt((_GROUPS - 1) / _GROUPS * float(spread))
    return margin if math.isfinite(margin) else None


def _joined(parts: list[Any]) -> Any:
    """One array if the parts have samples along axis 0 and fit together, else a list of the parts."""
    arrays = [part for part in parts if isinstance(part, np.ndarray) and part.ndim]
    if len(arrays) == len(parts) and len({part.shape[1:] for part in arrays}) == 1:
        return np.concatenate(arrays)
    return parts
