"""The measure behind the detection benchmark, against cases worked out by hand and against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.boxes import Detections, average_precision, intersection_over_union, suppress

A, B, C = [0, 0, 2, 2], [1, 0, 3, 2], [10, 10, 12, 12]


def found(boxes, scores):
    return Detections(boxes=np.array(boxes, float).reshape(-1, 4), scores=np.array(scores, float))


def test_overlap_by_hand():
    iou = intersection_over_union(np.array([A, C]), np.array([A, B, [0, 0, 0, 0]]))
    assert iou == pytest.approx(np.array([[1, 1 / 3, 0], [0, 0, 0]]))


corners = st.tuples(*[st.integers(0, 20)] * 4).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 1, max(c[1], c[3]) + 1]
)


@given(st.lists(corners, min_size=1, max_size=8), st.lists(corners, min_size=1, max_size=8))
def test_overlap_counts_cells(a, b):
    """Boxes with whole corners, painted on a grid."""
    iou = intersection_over_union(np.array(a), np.array(b))
    for i, box in enumerate(a):
        for j, other in enumerate(b):
            grids = np.zeros((2, 22, 22), bool)
            for grid, (x1, y1, x2, y2) in zip(grids, (box, other), strict=True):
                grid[y1:y2, x1:x2] = True
            assert iou[i, j] == pytest.approx((grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum())


@given(st.lists(corners, max_size=12), st.floats(0, 0.9))
def test_what_is_kept_is_apart_and_what_is_dropped_is_covered(boxes, overlap):
    array = np.array(boxes, float).reshape(-1, 4)
    kept = suppress(array, overlap)
    iou = intersection_over_union(array, array)
    assert all(iou[i, j] <= overlap for i in kept for j in kept if i != j)
    for dropped in set(range(len(boxes))) - set(kept):
        assert any(iou[dropped, better] > overlap for better in kept if better < dropped)


def test_candidates_are_ranked_thresholded_and_suppressed():
    boxes, scores = np.array([B, A, C], np.float32), np.array([0.6, 0.9, 0.2], np.float32)
    best = Detections.best(boxes, scores, least=0.5, overlap=0.3)
    assert best.boxes.tolist() == [A]
    both = Detections.best(boxes, scores, least=0.1, overlap=0.4)
    assert both.boxes.tolist() == [A, B, C]
    assert both.above(0.5).boxes.tolist() == [A, B]


@pytest.mark.parametrize(
    ("detections", "expected"),
    {
        "all": (found([A, C], [0.9, 0.8]), 1.0),
        "none": (found([], []), 0.0),
        "half": (found([A], [0.9]), 0.5),
        "a false one behind costs nothing": (found([A, C, [5, 5, 6, 6]], [0.9, 0.8, 0.1]), 1.0),
        "a false one between": (found([A, [5, 5, 6, 6], C], [0.9, 0.8, 0.7]), 0.5 + 0.5 * 2 / 3),
        "a false one in front": (found([[5, 5, 6, 6], A, C], [0.9, 0.8, 0.7]), 2 / 3),
        "twice the same": (found([A, A, C], [0.9, 0.8, 0.7]), 0.5 + 0.5 * 2 / 3),
        "too little overlap": (found([B, C], [0.9, 0.8]), 0.25),
    }.values(),
)
def test_average_precision_by_hand(detections, expected):
    assert average_precision([detections], [np.array([A, C], float)]) == pytest.approx(expected)


def test_pictures_are_ranked_together():
    """A confident false box in one picture comes before the true one of another."""
    pictures = [found([A], [0.5]), found([C], [0.9])]
    truth = [np.array([A], float), np.zeros((0, 4))]
    assert average_precision(pictures, truth) == pytest.approx(0.5)
    assert np.isnan(average_precision([found([A], [0.5])], [np.zeros((0, 4))]))
