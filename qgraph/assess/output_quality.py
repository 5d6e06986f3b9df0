"""How far each output of a quantized file is from the float model's, summed batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.observe.compared import Compared
from qgraph.observe.distance import ratio_db, score_axis

_NORMAL = 1.959964  # two-sided 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputQuality:
    """One output of the file compared with the float model's.

    `sqnr_db` is the signal-to-noise ratio in dB; None where the output is `exact`, holds no floats, or has a `problem`.
    `same_argmax` is the share of `decisions` (rows of scores) with the largest score at the same class, unknown where
    samples are invented; `same_values` is the share of equal entries in outputs of integers, Booleans or strings.
    """

    name: str
    sqnr_db: float | None = None
    exact: bool = False
    same_argmax: float | None = None
    decisions: int = 0
    same_values: float | None = None
    problem: str = ""


@dataclass(slots=True)
class OutputTally:
    """The sums over batches behind an `OutputQuality`; `linear` as in `score_axis`."""

    name: str
    linear: bool = False
    signal: float = 0.0
    noise: float = 0.0
    floats: int = 0
    same_class: int = 0
    classes: int = 0
    equal: int = 0
    others: int = 0
    broken: int = 0
    float_broken: int = 0
    runs: int = 0
    misshapen: str = ""

    def take(self, want: NDArray[Any], have: NDArray[Any]) -> None:
        """Compare one output of one run."""
        self.runs += 1
        if want.shape != have.shape:
            self.misshapen = f"the shape is {_shape(have)}, the float model's {_shape(want)}"
        elif want.dtype.kind == "f":
            self._take_floats(want, have)
        else:
            self.equal += int((want == have).sum())
            self.others += want.size

    def _take_floats(self, want: NDArray[Any], have: NDArray[Any]) -> None:
        finite = np.isfinite(want)
        self.float_broken += not finite.all()
        same_elsewhere = np.array_equal(want[~finite], have[~finite], equal_nan=True)
        if not same_elsewhere or not np.isfinite(have[finite]).all():
            self.broken += 1
            return
        exact = want[finite].astype(np.float64)
        self.signal += float(exact @ exact)
        error = have[finite].astype(np.float64) - exact
        self.noise += float(error @ error)
        self.floats += exact.size
        axis = score_axis(want, linear=self.linear)
        if axis is not None:
            agree = want.argmax(axis=axis) == have.argmax(axis=axis)
            self.same_class += int(agree.sum())
            self.classes += agree.size

    def merge(self, other: OutputTally) -> None:
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.misshapen = self.misshapen or other.misshapen

    def result(self) -> OutputQuality:
        measured = not self.misshapen and not self.broken and self.floats > 0
        return OutputQuality(
            name=self.name,
            sqnr_db=ratio_db(self.signal, self.noise) if measured else None,
            exact=measured and self.noise == 0,
            same_argmax=self.same_class / self.classes if self.classes and not self.broken else None,
            decisions=self.classes,
            same_values=self.equal / self.others if self.others else None,
            problem=self._problem(),
        )

    def _problem(self) -> str:
        if self.misshapen:
            return self.misshapen
        if self.broken:
            return f"NaN or infinite values in {self.broken} of {self.runs} runs where the float model has numbers"
        if self.noise > 0 and self.signal == 0:
            return "the float model answers zeros throughout, and the file does not"
        if self.float_broken:
            return f"the float model itself computes NaN or infinite values in {self.float_broken} of {self.runs} runs"
        return ""


_SUMMED = ("signal", "noise", "floats", "same_class", "classes", "equal", "others", "broken", "float_broken", "runs")


@dataclass(slots=True)
class AccuracyTally:
    """Counts the samples that two models classify correctly, and the paired differences between them."""

    samples: int = 0
    before: float = 0.0
    after: float = 0.0
    difference: float = 0.0
    squares: float = 0.0

    def take(self, want: NDArray[Any], have: NDArray[Any], labels: NDArray[Any]) -> None:
        """Add samples: the classes that the float model and the file give them, and their labels."""
        count = len(labels)
        right = (want == labels).reshape(count, -1).mean(axis=1)
        still = (have == labels).reshape(count, -1).mean(axis=1)
        self.samples += count
        self.before += float(right.sum())
        self.after += float(still.sum())
        self.difference += float((right - still).sum())
        self.squares += float(np.square(right - still).sum())

    def merge(self, other: AccuracyTally) -> None:
        for name in ("samples", "before", "after", "difference", "squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def result(self) -> Compared | None:
        """The accuracy of both in percent; None without labels."""
        if not self.samples:
            return None
        return Compared(
            name="accuracy",
            before=100 * self.before / self.samples,
            after=100 * self.after / self.samples,
            samples=self.samples,
            margin=100 * paired_margin(self.samples, self.difference, self.squares),
        )


def classified(outputs: Sequence[Any], labels: NDArray[Any], linear: Sequence[bool]) -> tuple[int, int] | None:
    """The first output whose classes fit the labels, and the axis of its scores; None if there is none."""
    for index, (output, flat) in enumerate(zip(outputs, linear, strict=True)):
        axis = score_axis(output, linear=flat)
        if (
            axis is not None
            and labels.dtype.kind in "iub"
            and labels.shape == (*output.shape[:axis], *output.shape[axis + 1 :])
        ):
            return index, axis
    return None


def paired_margin(samples: int, difference: float, squares: float) -> float:
    """Half the 95 % confidence interval of the difference of two shares measured on the same samples.

    `difference` and `squares` are the sums of the differences, each from -1 to 1, and of their squares. Two samples on
    which the shares differ by one half are added, so that agreement on few samples does not count as certainty
    (Agresti and Min, 2005).
    """
    count, spread = samples + 2, squares + 1
    variance = max(spread - difference**2 / count, 0.0) / count**2
    return _NORMAL * math.sqrt(variance)


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"
