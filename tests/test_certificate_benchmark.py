"""Bounds of certificates are broken on at most one sample in twenty, and would be if they were not exact."""

from __future__ import annotations

import numpy as np

import qmath
from benchmarks.certificate import broken

RNG = np.random.default_rng(2)


def population(size=20_000):
    """Labels, and classes of two networks that disagree about 3 %."""
    labels = RNG.integers(0, 10, size)
    before = np.where(RNG.random(size) < 0.92, labels, RNG.integers(0, 10, size))
    after = np.where(RNG.random(size) < 0.03, RNG.integers(0, 10, size), before)
    return before, after, labels


def test_few_of_fifty_samples_break_their_bounds():
    """With a chance of 1 in 20 at most, 6 or more of 50 have a chance below 4 %: the seed is one of the others."""
    drops, shares = broken(*population(), draws=50, count=500)
    assert drops <= 5
    assert shares <= 5


def test_bounds_without_confidence_are_broken_by_many(monkeypatch):
    """The observed drop itself, taken for a bound, is broken by about half of the samples."""
    monkeypatch.setattr(qmath, "drop_bound", lambda lost, gained, count, confidence: (lost - gained) / count)
    drops, _ = broken(*population(), draws=50, count=500)
    assert drops > 12
