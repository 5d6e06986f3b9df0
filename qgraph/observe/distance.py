"""The distance of a model's outputs from the float model's: one number per output, summed over outputs.

Class scores (a float output of shape N x C, C > 1) are compared by the mean Kullback-Leibler divergence of their
softmaxes (ZeroQ, Eq. 2); every other float output by its normalised squared error, sum (y - y')^2 / sum y^2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.errors import ModelError
from qgraph.onnxfile.model import Model
from qgraph.plan.words import Direction
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Batch, Dataset

BATCH = 32
Outputs = Mapping[str, NDArray[Any]]


def is_scores(output: NDArray[Any]) -> bool:
    """Whether an output holds one score per class."""
    return isinstance(output, np.ndarray) and output.dtype.kind == "f" and output.ndim == 2 and output.shape[1] > 1


def score_axis(output: NDArray[Any], *, linear: bool = False) -> int | None:
    """The axis along which an output holds one score per class; None if it holds something else.

    Scores are floats of shape N x C; distributions, or their logarithms, along the last axis (sequences, N x T x C) or
    along axis 1 (maps, N x C x H x W); and, if the output is `linear` in its last axis, N x T x C before a softmax.
    """
    if output.dtype.kind != "f" or output.ndim < 2:
        return None
    if is_scores(output):
        return 1
    if output.ndim == 2:
        return None
    along = [axis for axis in (output.ndim - 1, 1) if output.shape[axis] > 1 and is_distribution(output, axis)]
    last = output.ndim - 1 if linear and output.ndim == 3 and output.shape[-1] > 1 else None
    return along[0] if along else last


def is_distribution(scores: NDArray[Any], axis: int = 1) -> bool:
    """Whether scores are probabilities along an axis, or their logarithms."""
    if not scores.size:
        return False
    if (scores >= 0).all():
        return are_probabilities([scores], axis=axis)
    if (scores <= 1e-6).all():
        return bool(np.allclose(np.exp(scores.astype(np.float64)).sum(axis=axis), 1.0, atol=1e-3))
    return False


def are_probabilities(scores: Iterable[NDArray[Any]], *, axis: int = 1) -> bool:
    """Whether scores are probabilities along an axis, rather than logits.

    Decide this once per network, from its float model: quantized probabilities need not sum to 1.
    """
    return all((s >= 0).all() and np.allclose(s.sum(axis=axis, dtype=np.float64), 1.0, atol=1e-3) for s in scores)


def as_logits(scores: NDArray[Any], *, probabilities: bool) -> NDArray[np.float64]:
    """The scores, or the logarithms of probabilities."""
    scores = scores.astype(np.float64)
    return np.log(np.maximum(scores, 1e-12)) if probabilities else scores


def divergence(expected: NDArray[Any], produced: NDArray[Any], *, probabilities: bool = False) -> NDArray[np.float64]:
    """KL(expected || produced) per sample, for logits or `probabilities`."""
    pair = (as_logits(scores, probabilities=probabilities) for scores in (expected, produced))
    return np.asarray(qmath.kl_divergence(*pair, axis=-1))


def ratio_db(signal: float, noise: float) -> float | None:
    """The signal-to-noise ratio of two powers in dB; None if either is zero or unknown (NaN)."""
    return float(qmath.power_ratio_db(signal, noise)) if signal > 0 and noise > 0 else None


def measures(outputs: Outputs, direction: Direction = "forward") -> dict[str, str]:
    """The measure for each float output: `kl`, `kl-reverse` or `nse`; outputs of other types are left out."""
    kl = "kl" if direction == "forward" else "kl-reverse"
    return {name: kl if is_scores(o) else "nse" for name, o in outputs.items() if o.dtype.kind == "f"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Samples, and the float model's outputs for them; `kinds` has the measure for each output."""

    batches: tuple[Batch, ...]
    expected: tuple[Outputs, ...]
    kinds: dict[str, str]
    probabilities: frozenset[str] = frozenset()
    """The outputs of the float model that are probabilities."""

    @classmethod
    def of(cls, model: Model, data: Dataset, *, samples: int, direction: Direction = "forward") -> Reference:
        """Run the float model on the first batches of `data` that hold `samples` samples.

        Raises `ModelError` when its outputs are NaN or infinite, or none is in floating point.
        """
        session = Session(model.ir_model, threads=1)
        batches: list[Batch] = []
        for batch in data.batches(BATCH):
            batches.append(batch)
            if sum(b.count for b in batches) >= samples:
                break
        expected = tuple(_real(session.run(batch.feeds), batch) for batch in batches)
        for name, output in ((name, o) for outputs in expected for name, o in outputs.items()):
            if output.dtype.kind == "f" and not np.isfinite(output).all():
                raise ModelError(
                    f"{model.source} computes NaN or infinite values in its output '{name}' on {data.description}: "
                    f"there is nothing to compare quantized models with; give other data"
                )
        kinds = measures(expected[0], direction)
        if not kinds:
            raise ModelError(f"{model.source} has no floating-point output, so there is nothing to compare")
        scores = (name for name, kind in kinds.items() if kind != "nse")
        sure = frozenset(name for name in scores if are_probabilities(outputs[name] for outputs in expected))
        return cls(batches=tuple(batches), expected=expected, kinds=kinds, probabilities=sure)

    def of_squares(self) -> Reference:
        """The same with all outputs compared by squared errors."""
        return dataclasses.replace(self, kinds=dict.fromkeys(self.kinds, "nse"))

    @property
    def samples(self) -> int:
        return sum(batch.count for batch in self.batches)

    @property
    def digest(self) -> str:
        """A digest of the samples and of the measures."""
        digest = sha256(repr(self.kinds).encode())
        for batch in self.batches:
            for array in batch.feeds.values():
                digest.update(array.tobytes())
        return digest.hexdigest()

    def distance(self, session: Session, feeds: Sequence[Mapping[str, NDArray[Any]]] | None = None) -> float:
        """The sum of the distances of all outputs; NaN if one holds NaN or infinite values.

        `feeds` has an entry per batch, by default the samples; outputs that the session lacks count as equal.
        """
        sums = {name: np.zeros(2) for name in self.kinds}
        given = feeds or [batch.feeds for batch in self.batches]
        for batch, known, expected in zip(self.batches, given, self.expected, strict=True):
            produced = _real(session.run({name: known[name] for name in session.input_names}), batch)
            for name in self.kinds:
                if name in produced:
                    sums[name] += self._compared(name, expected[name], produced[name])
        return float(sum(total / weight for total, weight in sums.values() if weight != 0))

    def _compared(self, name: str, want: NDArray[Any], have: NDArray[Any]) -> tuple[float, float]:
        """The distance of an output times its weight, and the weight."""
        kind = self.kinds[name]
        if want.shape != have.shape or not np.isfinite(have).all():
            return np.nan, 1.0
        if kind == "nse":
            exact = want.astype(np.float64)
            return float(np.sum((have - exact) ** 2)), float(np.sum(exact**2))
        pair = (want, have) if kind == "kl" else (have, want)
        return float(divergence(*pair, probabilities=name in self.probabilities).sum()), float(len(want))


def _real(outputs: Outputs, batch: Batch) -> Outputs:
    """The outputs, without the samples that only pad a fixed batch."""
    return {name: batch.real(o) for name, o in outputs.items()}
