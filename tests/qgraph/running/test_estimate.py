"""Estimates of how long a job takes."""

from __future__ import annotations

import pytest

from qgraph.running.estimate import Enough, Estimate, Stage


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(estimate, clock, title, total, **options):
    """A stage whose units take a second each."""
    with estimate.stage(title, total, **options) as advance:
        for _ in range(total):
            clock.now += 1
            advance(1)


def test_a_long_stage_is_ended_when_enough_is_known():
    clock = Clock()
    estimate = Estimate(threads=2, seconds=10, clock=clock)
    with pytest.raises(Enough):
        run(estimate, clock, "layers", 100, pieces=100)
    (stage,) = estimate.stages
    assert estimate.ended
    assert (stage.done, stage.whole) == (10, 100)
    assert [stage.on(workers) for workers in (1, 2, 50, 1000)] == [200, 100, 4, 2]


def test_short_stages_and_those_that_are_nearly_done_run_on():
    clock = Clock()
    estimate = Estimate(threads=1, seconds=10, clock=clock)
    for title, total in (("short", 5), ("nearly done", 18)):
        run(estimate, clock, title, total)
    assert not estimate.ended
    assert [(s.title, s.seconds) for s in estimate.stages] == [("short", 5), ("nearly done", 18)]


def test_a_stage_of_unknown_length_takes_what_it_took():
    clock = Clock()
    estimate = Estimate(threads=4, clock=clock)
    with estimate.stage("guard") as advance:
        clock.now += 3
        advance(1)
    assert estimate.stages[0].on(1) == estimate.stages[0].on(100) == 3


def test_pieces_that_are_fewer_than_threads_keep_only_as_many_busy():
    assert Stage("few", total=2, pieces=2, threads=8, done=1, seconds=5.0).on(1) == 20.0
