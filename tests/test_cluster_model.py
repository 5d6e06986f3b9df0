"""The cluster on paper keeps its bounds, and gains nothing where messages or tasks run out."""

from __future__ import annotations

import pytest

from benchmarks.cluster_model import simulated, stops


def test_one_worker_does_everything_in_turn():
    assert simulated([0.1] * 10, 1, message=0.01, copy=0.5) == pytest.approx(0.5 + 10 * 0.11)


@pytest.mark.parametrize("workers", [1, 2, 5, 20, 100])
def test_no_job_is_faster_than_its_bounds(workers):
    tasks = [0.05 * (1 + k % 4) for k in range(64)]
    took = simulated(tasks, workers, message=0.004, copy=0.02)
    assert took >= max(sum(tasks) / workers, len(tasks) * 0.004, max(tasks) + 0.02)
    assert took <= sum(tasks) / workers + max(tasks) + len(tasks) * 0.004 + 8 * 0.02


def test_more_workers_than_tasks_gain_nothing():
    few, many = (simulated([0.3] * 20, w, message=0.0035, copy=0.0) for w in (20, 100))
    assert many == pytest.approx(few)


def test_short_tasks_are_bound_by_messages():
    took = simulated([0.001] * 1000, 100, message=0.004, copy=0.0)
    assert took == pytest.approx(4.0, rel=0.02)
    assert stops([0.001] * 1000, 100, message=0.004, copy=0.0) == "messages"


def test_a_long_task_bounds_the_job():
    assert stops([1.0] + [0.01] * 10, 100, message=0.001, copy=0.01) == "the longest task"
