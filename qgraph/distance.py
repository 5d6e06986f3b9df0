"""How far a model's outputs are from the float model's: one number per output, summed over outputs.

Class scores (a float output of shape N x C, C > 1) are compared by the mean Kullback-Leibler divergence of their
softmaxes (ZeroQ, Eq. 2); every other float output by its normalised squared error, sum (y - y')^2 / sum y^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

import qmath

Direction = Literal["forward", "reverse"]  # KL(float || quantized), KL(quantized || float)
DIRECTIONS: tuple[str, ...] = get_args(Direction)
Outputs = Mapping[str, NDArray[Any]]


def is_scores(output: NDArray[Any]) -> bool:
    """Whether an output holds one score per class."""
    return output.dtype.kind == "f" and output.ndim == 2 and output.shape[1] > 1


def divergence(expected: NDArray[Any], produced: NDArray[Any]) -> NDArray[np.float64]:
    """KL(expected || produced) per sample; outputs that are probabilities already are taken as such."""
    return np.asarray(qmath.kl_divergence(_logits(expected), _logits(produced), axis=-1))


def measures(outputs: Outputs, direction: Direction = "forward") -> dict[str, str]:
    """By what each float output is compared: `kl`, `kl-reverse` or `nse`; outputs of other types are left out."""
    kl = "kl" if direction == "forward" else "kl-reverse"
    return {name: kl if is_scores(o) else "nse" for name, o in outputs.items() if o.dtype.kind == "f"}


class Tally:
    """The distance of every output, summed up batch by batch."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self._kinds = kinds
        self._sums = {name: np.zeros(2) for name in kinds}

    def add(self, expected: Outputs, produced: Outputs) -> None:
        """Take in a batch; outputs that `produced` lacks are as expected."""
        for name, kind in self._kinds.items():
            want = expected[name]
            have = produced.get(name, want)
            self._sums[name] += _compared(want, have, kind)

    def result(self) -> float:
        """The sum of all outputs' distances; NaN where an output has NaN or infinite values."""
        return float(sum(total / weight for total, weight in self._sums.values() if weight != 0))


def _compared(want: NDArray[Any], have: NDArray[Any], kind: str) -> tuple[float, float]:
    if want.shape != have.shape or not np.isfinite(have).all():
        return np.nan, 1.0
    if kind == "nse":
        exact = want.astype(np.float64)
        return float(np.sum((have - exact) ** 2)), float(np.sum(exact**2))
    pair = (want, have) if kind == "kl" else (have, want)
    return float(divergence(*pair).sum()), float(len(want))


def _logits(scores: NDArray[Any]) -> NDArray[np.float64]:
    scores = scores.astype(np.float64)
    is_probability = (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1.0, atol=1e-3)
    return np.log(np.maximum(scores, 1e-12)) if is_probability else scores
