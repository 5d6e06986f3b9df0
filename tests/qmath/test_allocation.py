"""Bits per channel: the quota is met, and no other whole-bit allocation within it is better."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath

ranges = st.lists(st.floats(0.01, 100), min_size=1, max_size=5).map(np.array)


def error(alpha: np.ndarray, bits: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    return (weights * alpha**2 / (3 * 4.0**bits)).sum(axis=-1)


def every_allocation(channels: int, low: int, high: int) -> np.ndarray:
    return np.array(list(itertools.product(range(low, high + 1), repeat=channels)))


@given(alpha=ranges, bits=st.integers(2, 5), seed=st.integers(0, 999), weighted=st.booleans())
@settings(max_examples=80, deadline=None)
def test_no_allocation_within_the_quota_is_better(alpha, bits, seed, weighted) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 40, alpha.size).astype(float) if weighted else np.ones(alpha.size)
    options = {"min_bits": 2, "max_bits": 6, "weights": weights if weighted else None}
    table = every_allocation(alpha.size, 2, 6)
    free = float(weights.sum() * rng.uniform(4, 64))
    for measure, request in itertools.product(("bins", "bits"), ({"bits": bits}, {"quota": free})):
        if measure == "bits" and "quota" in request:
            request = {"quota": float(weights.sum() * rng.uniform(2, 6))}
        spent = (weights * (2.0**table if measure == "bins" else table)).sum(axis=1)
        whole = weights.sum() * (2.0**bits if measure == "bins" else bits)
        quota = request.get("quota", whole)
        found = qmath.allocate_bits(alpha, measure=measure, **options, **request)
        assert found.min() >= 2
        assert found.max() <= 6
        assert (weights * (2.0**found if measure == "bins" else found)).sum() <= quota * (1 + 1e-9)
        best = error(alpha, table, weights)[spent <= quota * (1 + 1e-12)].min()
        assert error(alpha, found, weights) <= best * (1 + 1e-9)


@given(seed=st.integers(0, 999), channels=st.integers(1, 300), bits=st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_the_quota_of_bins_is_met_exactly(seed, channels, bits) -> None:
    alpha = np.random.default_rng(seed).lognormal(0, 1.5, channels)
    assert (2 ** qmath.allocate_bits(alpha, bits=bits)).sum() == channels * 2**bits


@given(seed=st.integers(0, 999), channels=st.integers(1, 300), bits=st.integers(3, 6))
@settings(max_examples=60, deadline=None)
def test_never_worse_than_the_rounded_rule_with_the_same_bins(seed, channels, bits) -> None:
    alpha = np.random.default_rng(seed).lognormal(0, 1.0, channels)
    rounded = qmath.allocate_bits_rounded(alpha, bits=bits)
    exact = qmath.allocate_bits(alpha, quota=float((2.0**rounded).sum()))
    assert error(alpha, exact) <= error(alpha, rounded) * (1 + 1e-12)


def test_rounding_the_rule_breaks_its_quota_both_ways() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        alpha = rng.lognormal(0, 1.0, 8)
        ratios.append((2.0 ** qmath.allocate_bits_rounded(alpha, bits=4)).sum() / (8 * 2**4))
    assert min(ratios) < 0.95
    assert max(ratios) > 1.05


@given(alpha=ranges, scale=st.floats(1e-3, 1e3), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_the_two_thirds_rule(alpha, scale, seed) -> None:
    bins = qmath.optimal_bins(alpha, quota=512.0)
    assert bins.sum() == pytest.approx(512.0, rel=1e-12)
    np.testing.assert_allclose(bins / bins[0], (alpha / alpha[0]) ** (2 / 3), rtol=1e-10)
    np.testing.assert_allclose(qmath.optimal_bins(scale * alpha, quota=512.0), bins, rtol=1e-10)
    other = bins * np.random.default_rng(seed).uniform(0.8, 1.25, bins.size)
    other *= 512.0 / other.sum()
    assert (alpha**2 / bins**2).sum() <= (alpha**2 / other**2).sum() * (1 + 1e-12)


def test_equal_channels_get_equal_bits() -> None:
    np.testing.assert_array_equal(qmath.allocate_bits(np.full(17, 0.3), bits=4), 4)
    np.testing.assert_array_equal(qmath.allocate_bits_rounded(np.full(17, 0.3), bits=4), 4)


def test_more_range_never_gets_fewer_bits() -> None:
    alpha = np.sort(np.random.default_rng(1).lognormal(0, 1, 200))
    assert np.all(np.diff(qmath.allocate_bits(alpha, bits=4)) >= 0)


def test_a_silent_channel_gets_the_least() -> None:
    assert qmath.allocate_bits([0.0, 1.0, 1.0], bits=4, measure="bits").tolist()[0] == 2
    assert qmath.allocate_bits_rounded([0.0, 1.0], bits=4).tolist() == [2, 5]


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="exactly one of"):
        qmath.allocate_bits([1.0])
    with pytest.raises(ValueError, match="does not hold"):
        qmath.allocate_bits([1.0, 1.0], quota=7.0)
    with pytest.raises(ValueError, match="not all zero"):
        qmath.allocate_bits([0.0, 0.0], bits=4)
    with pytest.raises(ValueError, match="min_bits"):
        qmath.allocate_bits([1.0], bits=4, min_bits=9)
    with pytest.raises(ValueError, match="weights"):
        qmath.allocate_bits([1.0, 2.0], bits=4, weights=[1.0])
