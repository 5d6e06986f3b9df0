"""Judge the network during training, on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.lowering.simulate import simulate
from qgraph.methods.lsqplus.batches import Feed
from qgraph.methods.lsqplus.loss import Targets
from qgraph.observe.distance import divergence
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan
from qgraph.running.sessions import Session, in_parallel
from qgraph.samples.dataset import Batch

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The network after an epoch.

    `loss` is the mean over the steps of the epoch. `distance` from the float model's outputs (KL divergence in nats, or
    squared error relative to the signal), its standard `error`, and `top1` accuracy in percent (with labels) are
    measured on held-out samples.
    """

    loss: float | None
    distance: float | None
    top1: float | None
    error: float | None = None

    def __str__(self) -> str:
        if self.top1 is not None:
            return f"held-out accuracy {self.top1:.2f} %"
        return "" if self.distance is None else f"held-out distance {self.distance:.4f}"


def is_kept(epochs: Sequence[Judgement]) -> bool:
    """Whether the last of these judgements is the one to keep so far; the first is the starting point.

    It is, unless it is worse than the start, or worse than the best by more than the standard error of the best. With
    few samples, the best of many epochs is best by chance, and later epochs have smaller steps. Distances decide, since
    they say more than accuracy on few samples. Without held-out samples, the last epoch is kept.
    """
    if epochs[-1].distance is None:
        return True
    distances = np.array([np.inf if e.distance is None else e.distance for e in epochs])
    distances[np.isnan(distances)] = np.inf
    best = int(distances.argmin())
    return bool(distances[-1] < distances[0] and distances[-1] <= distances[best] + (epochs[best].error or 0.0))


def judge(
    net: Model,
    plan: QuantPlan,
    teacher: Session,
    targets: Targets,
    feed: Feed,
    *,
    loss: float | None,
    threads: int,
) -> Judgement:
    """Run the quantized network and the float one on the held-out samples."""
    if not len(feed.held_out):
        return Judgement(loss=loss, distance=None, top1=None)
    session = Session(simulate(net, plan), outputs=targets.watched, threads=1)

    def run(batch: Batch) -> tuple[NDArray[np.float64], int, int]:
        wanted, found = ([batch.real(o) for o in net.run_list(batch.feeds)] for net in (teacher, session))
        right = 0
        if batch.labels is not None and targets.logits is not None:
            right = int((found[0].argmax(axis=1) == batch.labels).sum())
        return _distances(wanted, found, targets, batch.count), right, batch.count

    judged = list(in_parallel(run, feed.held_out_batches(_BATCH), workers=threads))
    distances = np.concatenate([found for found, _, _ in judged])
    right, count = (sum(part) for part in list(zip(*judged, strict=True))[1:])
    return Judgement(
        loss=loss,
        distance=float(distances.mean()),
        error=float(distances.std() / np.sqrt(len(distances))),
        top1=100 * right / count if feed.data.labels is not None else None,
    )


def _distances(
    wanted: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]], targets: Targets, count: int
) -> NDArray[np.float64]:
    """One distance per sample; outputs that are not class scores count the same for all samples of a batch."""
    if targets.logits is not None:
        return np.asarray(divergence(wanted[0], found[0], probabilities=targets.probabilities), np.float64).reshape(-1)
    errors = [
        np.square(f - w, dtype=np.float64).sum() / max(float(np.square(w).sum()), 1e-12)
        for w, f in zip(wanted, found, strict=True)
    ]
    return np.full(count, np.mean(errors))
