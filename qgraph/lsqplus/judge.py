"""How good the network is at one moment of training, on the samples held out for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.data import Batch
from qgraph.lsqplus.feed import Feed
from qgraph.lsqplus.loss import Targets
from qgraph.model import Model
from qgraph.plan import QuantPlan
from qgraph.runtime import Session, in_parallel
from qgraph.simulate import simulate

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """`loss` is the mean over the epoch's steps. On held-out samples: `distance` from the float model's outputs (KL
    divergence in nats, or squared error over signal), and top-1 accuracy in percent where there are labels.
    """

    loss: float | None
    distance: float | None
    top1: float | None

    def better_than(self, other: Judgement) -> bool:
        """By distance, which says more on few samples than accuracy."""
        return self.distance is not None and other.distance is not None and self.distance < other.distance

    def __str__(self) -> str:
        if self.top1 is not None:
            return f"held-out accuracy {self.top1:.2f} %"
        return "" if self.distance is None else f"held-out distance {self.distance:.4f}"


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

    def run(batch: Batch) -> tuple[float, int, int]:
        wanted, found = teacher.run_list(batch.feeds), session.run_list(batch.feeds)
        right = 0
        if batch.labels is not None and targets.logits is not None:
            right = int((found[0].argmax(axis=1) == batch.labels).sum())
        return batch.count * _distance(wanted, found, targets), right, batch.count

    sums = np.zeros(3)
    size = 1 if _fixed(net) else _BATCH
    for found in in_parallel(run, feed.held_out_batches(size), workers=threads):
        sums += found
    return Judgement(
        loss=loss,
        distance=float(sums[0] / sums[2]),
        top1=float(100 * sums[1] / sums[2]) if feed.data.labels is not None else None,
    )


def _distance(wanted: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]], targets: Targets) -> float:
    if targets.logits is not None:
        return float(np.mean(qmath.kl_divergence(wanted[0], found[0], axis=-1)))
    errors = [
        np.square(f - w, dtype=np.float64).sum() / max(float(np.square(w).sum()), 1e-12)
        for w, f in zip(wanted, found, strict=True)
    ]
    return float(np.mean(errors))


def _fixed(net: Model) -> bool:
    return any(v.shape is not None and len(v.shape) > 0 and isinstance(v.shape[0], int) for v in net.input_values())
