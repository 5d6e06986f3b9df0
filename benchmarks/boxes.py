"""Boxes of a detector: overlap, non-maximum suppression, average precision. Boxes are (x1, y1, x2, y2) in any unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """The boxes (n, 4) and scores (n,) that a detector found in one picture, best first."""

    boxes: Floats
    scores: Floats

    @classmethod
    def best(
        cls, boxes: NDArray[np.floating], scores: NDArray[np.floating], *, least: float, overlap: float
    ) -> Detections:
        """The candidates that score at least `least` and overlap no better one by more than `overlap`."""
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= least]
        boxes, scores = boxes[order].astype(np.float64), scores[order].astype(np.float64)
        kept = suppress(boxes, overlap)
        return cls(boxes=boxes[kept], scores=scores[kept])

    def above(self, least: float) -> Detections:
        kept = self.scores >= least
        return Detections(boxes=self.boxes[kept], scores=self.scores[kept])


def intersection_over_union(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """Intersection over union of every pair: (n, 4) and (m, 4) give (n, m); 0 where both areas are 0."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    joint = _area(a)[:, None] + _area(b)[None, :] - shared
    return np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)


def suppress(boxes: Floats, overlap: float) -> list[int]:
    """The indices of boxes (given best first) that overlap no better kept box by more than `overlap`."""
    iou = intersection_over_union(boxes, boxes)
    kept: list[int] = []
    for index in range(len(boxes)):
        if not kept or iou[index, kept].max() <= overlap:
            kept.append(index)
    return kept


def average_precision(found: Sequence[Detections], truth: Sequence[Floats], *, overlap: float = 0.5) -> float:
    """The area under the precision-recall curve with non-increasing precision (PASCAL VOC since 2010).

    Detections of all pictures are ranked by score. Each is matched with the true box of its picture that it overlaps
    most; it is a false positive if the overlap is below `overlap` or the box is taken. NaN if there is no true box.
    """
    total = sum(len(boxes) for boxes in truth)
    if total == 0:
        return float("nan")
    hits = np.concatenate([_hits(d, boxes, overlap) for d, boxes in zip(found, truth, strict=True)])
    scores = np.concatenate([d.scores for d in found])
    hits = hits[np.argsort(-scores, kind="stable")]
    recall = np.cumsum(hits) / total
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _hits(found: Detections, truth: Floats, overlap: float) -> NDArray[np.bool_]:
    """Whether each detection, best first, is the first to match a true box."""
    iou = intersection_over_union(found.boxes, truth)
    taken: set[int] = set()
    hits = np.zeros(len(found.boxes), np.bool_)
    for index, row in enumerate(iou):
        best = int(row.argmax()) if row.size else -1
        if best >= 0 and row[best] >= overlap and best not in taken:
            taken.add(best)
            hits[index] = True
    return hits


def _area(boxes: Floats) -> Floats:
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
