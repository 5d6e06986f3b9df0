"""Two models on the same samples, one by one: what only one of them has right, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qgraph.assess.evaluate import check_interface, class_labels, scores_of
from qgraph.errors import DataError
from qgraph.onnxfile.model import Model
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session, in_parallel
from qgraph.samples.dataset import Batch, Dataset
from qgraph.samples.fallback import falling_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Counts over `samples`; those about classes are None without one score per class, or without labels.

    `lost` samples are right in the float model alone, `gained` ones in the other alone; `same` have the same class.
    `distinct` samples differ from all before them in what is fed; `classes` are those among the labels. `decibels`
    holds the SQNR of every sample's worst output, infinite where outputs are equal.
    """

    samples: int
    distinct: int
    classes: int | None
    float_right: int | None
    right: int | None
    lost: int | None
    gained: int | None
    same: int | None
    decibels: tuple[float, ...]


def run_paired(
    reference: Model, model: Model, data: Dataset, *, threads: int | None = None, progress: Progress = SILENT
) -> Paired:
    """Run both models on every sample.

    Raises:
        DataError: the models differ in their inputs or outputs, or outputs cannot be told apart sample by sample.
        ModelError: a model does not load or run.
    """
    check_interface(model, reference)

    def compared(samples: Dataset) -> list[_Compared]:
        before, after = Session(reference.ir_model, threads=1), Session(model.ir_model, threads=1)

        def run(batch: Batch) -> _Compared:
            want, have = ([batch.real(o) for o in s.run_list(batch.feeds)] for s in (before, after))
            labels = () if batch.labels is None else batch.labels.reshape(-1).tolist()
            return _Compared(_rows(want, have, batch), _content(batch), frozenset(labels))

        found = []
        with progress.stage("comparing", samples.count) as advance:
            for one in in_parallel(run, samples.batches(1), workers=threads):
                found.append(one)
                advance(len(one.rows))
        return found

    batches = falling_back(model, data, compared)[1]
    decibel, same, before, after = np.concatenate([one.rows for one in batches]).T
    right = None if np.isnan(before).any() else (before > 0, after > 0)
    return Paired(
        samples=len(decibel),
        distinct=sum({one.content: len(one.rows) for one in batches}.values()),
        classes=None if right is None else len(frozenset().union(*(one.labels for one in batches))),
        float_right=None if right is None else int(right[0].sum()),
        right=None if right is None else int(right[1].sum()),
        lost=None if right is None else int((right[0] & ~right[1]).sum()),
        gained=None if right is None else int((right[1] & ~right[0]).sum()),
        same=None if np.isnan(same).any() else int(same.sum()),
        decibels=tuple(decibel.tolist()),
    )


class _Compared(NamedTuple):
    """What was found of the samples of a run, which are mostly one: `_rows`, a digest of them, and their labels."""

    rows: NDArray[np.float64]
    content: bytes
    labels: frozenset[int]


def _content(batch: Batch) -> bytes:
    """A digest of what is fed."""
    found = sha256()
    for name, array in sorted(batch.feeds.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data if array.dtype.kind != "O" else repr(array.tolist()).encode())
    return found.digest()


def _rows(want: list[Any], have: list[Any], batch: Batch) -> NDArray[np.float64]:
    """For every sample: dB, whether the class is the same, and whether each model is right; NaN where unknown.

    Scores with a NaN among them are of no class.
    """
    rows = np.full((batch.count, 4), np.nan)
    floats = [pair for pair in zip(want, have, strict=True) if _is_float(pair[0])]
    if not floats:
        raise DataError("the models have no floating-point output to compare")
    rows[:, 0] = np.min([_decibels(_each(a, batch), _each(b, batch)) for a, b in floats], axis=0)
    scores = scores_of(want)
    if scores is not None:
        given = [np.asarray(outputs[scores]) for outputs in (want, have)]
        classes = [
            np.where(np.isnan(x).any(axis=1), none, x.argmax(axis=1)) for none, x in zip((-1, -2), given, strict=True)
        ]
        rows[:, 1] = classes[0] == classes[1]
        if batch.labels is not None:
            labels = class_labels(batch.labels, want[scores].shape[1])
            rows[:, 2], rows[:, 3] = (found == labels for found in classes)
    return rows


def _each(output: NDArray[Any], batch: Batch) -> NDArray[np.float64]:
    """An output as samples x values."""
    if batch.count != 1 and (not output.ndim or len(output) != batch.count):
        raise DataError(
            f"an output of shape {list(output.shape)} cannot be divided among the {batch.count} samples of a run: "
            f"export the model with a batch of one"
        )
    return output.astype(np.float64).reshape(batch.count, -1)


def _decibels(want: NDArray[np.float64], have: NDArray[np.float64]) -> NDArray[np.float64]:
    """The SQNR of each row.

    Values that are not finite in the float model do not count; where it has no other, or they are not finite in the
    other model, it is -infinity dB.
    """
    if want.shape != have.shape:
        return np.full(len(want), -np.inf)
    known = np.isfinite(want)
    error = np.where(known, have - np.where(known, want, 0), 0)
    signal, noise = (np.square(x).sum(axis=1) for x in (np.where(known, want, 0), error))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 10 * np.log10(signal / noise)
    return np.where(known.any(axis=1) & np.isfinite(error).all(axis=1), np.where(noise == 0, np.inf, found), -np.inf)


def _is_float(output: Any) -> bool:
    return isinstance(output, np.ndarray) and output.dtype.kind == "f" and output.size > 0
