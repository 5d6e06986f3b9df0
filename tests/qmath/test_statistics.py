"""Streaming statistics: right, and the same to the last bit however the samples come."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import qmath
from qmath.exact_sum import UNIT_EXPONENT, ExactSum


def wild(seed: int, shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """Samples whose magnitudes differ by up to 24 decades, so that any rounding between them shows."""
    rng = np.random.default_rng(seed)
    decades = 10.0 ** rng.integers(-12, 12, (shape[0],) + (1,) * (len(shape) - 1))
    return (rng.standard_normal(shape) * decades).astype(dtype)


def accumulated(batches, **options) -> qmath.StatisticsAccumulator:
    accumulator = qmath.StatisticsAccumulator(**options)
    for batch in batches:
        accumulator.update(batch)
    return accumulator


@given(
    shape=st.sampled_from([(1, 3, 5), (8, 3, 1), (30, 2, 3), (12, 4, 9), (5, 1, 4200), (20, 6)]),
    axis=st.sampled_from([None, 1, -1]),
    double=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_order_and_batches_do_not_show(shape, axis, double, seed) -> None:
    x = wild(seed, shape, np.float64 if double else np.float32)
    rng = np.random.default_rng(seed)
    whole = qmath.Statistics.of(x, channel_axis=axis)
    parts = np.split(x[rng.permutation(len(x))], np.sort(rng.integers(0, len(x) + 1, 3)))
    assert accumulated(parts, channel_axis=axis).result() == whole
    first, second = accumulated(parts[:2], channel_axis=axis), accumulated(parts[2:], channel_axis=axis)
    second.merge(first)
    assert second.result() == whole


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -2])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_are_numpys(axis, dtype) -> None:
    x = np.random.default_rng(0).normal(0.5, 2, (6, 3, 5, 10)).astype(dtype)
    wide = x.astype(np.float64)
    result = qmath.Statistics.of(x, channel_axis=axis)
    views = [(result, None)]
    if axis is not None:
        views.append((result.channels, tuple(i for i in range(4) if i != axis % 4)))
    for statistics, over in views:
        assert statistics.count == wide.size // (1 if over is None else x.shape[axis])
        np.testing.assert_array_equal(statistics.min, wide.min(axis=over))
        np.testing.assert_array_equal(statistics.max, wide.max(axis=over))
        np.testing.assert_allclose(statistics.mean, wide.mean(axis=over), rtol=1e-12)
        np.testing.assert_allclose(statistics.variance, wide.var(axis=over), rtol=1e-12)
        np.testing.assert_allclose(statistics.std, wide.std(axis=over), rtol=1e-12)
        np.testing.assert_allclose(statistics.mean_abs, np.abs(wide).mean(axis=over), rtol=1e-12)
    assert result.histogram.total == x.size


def counted(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """numpy's counts on either side of zero, each bin closed towards zero."""
    above = np.histogram(x[x >= 0], edges)[0]
    return above + np.histogram(-x[x < 0], edges)[0][::-1]


@pytest.mark.parametrize("bins", [4, 64, 4096])
@pytest.mark.parametrize("shape", [(3, 5000), (40, 7, 1), (1, 2, 9)])
def test_histogram_is_numpys(bins, shape) -> None:
    for seed in range(5):
        x = wild(seed, shape)
        x.flat[::7] = np.ldexp(1.0, np.random.default_rng(seed).integers(-9, 9, x.flat[::7].size))  # edges
        histogram = qmath.Histogram.of(x, bins=bins)
        np.testing.assert_array_equal(histogram.counts, counted(x.astype(np.float64), histogram.edges))
        assert 2.0 ** (histogram.exponent - 1) <= np.abs(x).max() < 2.0**histogram.exponent


@pytest.mark.parametrize("shape", [(2, 3, 9000), (2, 500, 25), (2, 3, 7, 1300), (2, 9000, 1)])
@pytest.mark.parametrize("axis", [1, -1])
def test_pieces_of_large_samples_do_not_show(shape, axis) -> None:
    """Values that grow within a sample widen the bins of those before; each channel keeps its own range and sums."""
    x = np.random.default_rng(1).standard_normal(shape)
    x *= np.logspace(-6, 3, x[0].size).reshape(x[0].shape)
    result = qmath.Statistics.of(x, channel_axis=axis, bins=256)
    np.testing.assert_array_equal(result.histogram.counts, counted(x, result.histogram.edges))
    over = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    np.testing.assert_array_equal(result.channels.min, x.min(axis=over))
    np.testing.assert_array_equal(result.channels.max, x.max(axis=over))
    np.testing.assert_allclose(result.channels.mean_abs, np.abs(x).mean(axis=over), rtol=1e-12)
    error = np.abs(result.channels.variance - x.var(axis=over))
    assert (error <= 4e-15 * (x.var(axis=over) + x.mean(axis=over) ** 2)).all()


@given(
    x=arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    split=st.integers(0, 40),
    bins=st.sampled_from([4, 16, 256]),
)
@settings(max_examples=80, deadline=None)
def test_histograms_merge_exactly(x, split, bins) -> None:
    whole = qmath.Histogram.of(x, bins=bins)
    parts = [qmath.Histogram.of(part, bins=bins) for part in (x[:split], x[split:]) if part.size]
    assert (parts[0] if len(parts) == 1 else parts[0].merge(parts[1])) == whole
    if len(parts) == 2:
        assert parts[1].merge(parts[0]) == whole
    assert whole.widened(whole.exponent - 1) == whole
    assert whole.widened(whole.exponent + 3) == whole.widened(whole.exponent + 1).widened(whole.exponent + 3)


def test_histogram_views() -> None:
    histogram = qmath.Histogram.of([-0.75, 0.0, -0.0, 0.25, 0.5], bins=4)
    assert histogram.exponent == 0
    np.testing.assert_array_equal(histogram.counts, [1, 0, 3, 1])
    np.testing.assert_array_equal(histogram.edges, [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_array_equal(histogram.centers, [-0.75, -0.25, 0.25, 0.75])
    assert histogram.width == 0.5
    assert qmath.Histogram.of(1.0).exponent == 1  # a power of two does not fit below itself
    assert qmath.Histogram.of(np.zeros(5)).exponent == -100
    tiny = qmath.Histogram.of(np.array([1e-44, -1e-44, 0.0], np.float32), bins=4)
    np.testing.assert_array_equal(tiny.counts, [0, 1, 2, 0])
    assert len({histogram, qmath.Histogram(counts=histogram.counts.copy(), exponent=0)}) == 1


@given(terms=arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.floats(-1e300, 1e300)))
@settings(max_examples=100, deadline=None)
def test_exact_sums_are_exact(terms) -> None:
    sums = ExactSum(2)
    sums.add(terms[:3])
    rest = ExactSum(2)
    rest.add(terms[3:])
    sums.merge(rest)
    for column, integer in zip(terms.T, sums.integers(), strict=True):
        assert Fraction(integer) / 2**-UNIT_EXPONENT == sum(map(Fraction, column.tolist()))


def test_exact_sums_of_the_smallest_and_largest() -> None:
    smallest, largest = 5e-324, np.finfo(np.float64).max
    sums = ExactSum(1)
    sums.add(np.array([[largest], [smallest], [-largest], [smallest], [2.0**-1022]]))
    assert sums.integers() == [2 + 2**52]


@pytest.mark.parametrize("value", [0.1, -3.7, 1e-20, 0.0])
def test_equal_values_have_no_variance(value) -> None:
    result = qmath.Statistics.of(np.full((5, 3, 77), value, np.float32), channel_axis=1)
    assert result.variance == 0.0
    np.testing.assert_array_equal(result.channels.variance, 0.0)
    assert math.isclose(result.mean, np.float32(value), rel_tol=1e-15)


def test_variance_beside_a_large_mean() -> None:
    x = 1000 + np.random.default_rng(0).normal(size=(50, 1000))
    np.testing.assert_allclose(qmath.Statistics.of(x).variance, x.var(), rtol=1e-8)


def test_merged_results() -> None:
    x = np.random.default_rng(0).normal(2, 3, (40, 3, 5))
    whole = qmath.Statistics.of(x, channel_axis=1)
    merged = qmath.Statistics.of(x[:7], channel_axis=1).merge(qmath.Statistics.of(x[7:], channel_axis=1))
    for one, other in ((merged, whole), (merged.channels, whole.channels)):
        assert one.count == other.count
        np.testing.assert_array_equal(one.min, other.min)
        np.testing.assert_array_equal(one.max, other.max)
        for name in ("mean", "variance", "mean_abs"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)
    assert merged.histogram == whole.histogram
    nothing = qmath.StatisticsAccumulator().result()
    assert nothing.merge(whole) is whole
    assert whole.merge(nothing) is whole


def test_json_is_exact() -> None:
    for axis in (None, 1):
        result = qmath.Statistics.of(wild(0, (9, 4, 5)), channel_axis=axis)
        assert qmath.Statistics.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_results_stay_as_they_were() -> None:
    accumulator = accumulated([wild(0, (4, 3))], channel_axis=1)
    before = accumulator.result()
    kept = json.dumps(before.to_dict())
    accumulator.update(wild(1, (40, 3)))
    assert json.dumps(before.to_dict()) == kept
    with pytest.raises(ValueError, match="read-only"):
        before.channels.mean[0] = 1.0


@pytest.mark.parametrize("after", [1, 9, 5000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_values_are_counted_and_change_nothing(after, bad) -> None:
    x = np.ones((3, 4, after), np.float32)
    accumulator = accumulated([x], channel_axis=1)
    before = accumulator.result()
    spoilt = x.copy()
    spoilt[1, 2, -1] = bad
    with pytest.raises(ValueError, match=f"1 NaN or infinite among {x.size}"):
        accumulator.update(spoilt)
    assert accumulator.result() == before


def test_empty_batches_change_nothing() -> None:
    accumulator = qmath.StatisticsAccumulator()
    accumulator.update(np.zeros((0, 3)))
    assert accumulator.result().count == 0
    assert accumulator.result().histogram is None


def test_no_bins_no_histogram() -> None:
    assert accumulated([wild(0, (4, 3))], bins=0).result().histogram is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qmath.StatisticsAccumulator(bins=3), "power of two from 4"),
        (lambda: qmath.StatisticsAccumulator(bins=2), "power of two from 4"),
        (lambda: qmath.Histogram.of([1.0], bins=0), "power of two from 4"),
        (lambda: qmath.Histogram.of([]), "at least one value"),
        (lambda: qmath.Histogram(counts=[1, -1, 0, 0], exponent=0), "counts: expected numbers >= 0"),
        (lambda: qmath.Histogram(counts=[0.5, 1, 0, 0], exponent=0), "whole numbers"),
        (lambda: qmath.Histogram.of([1.0], bins=4).merge(qmath.Histogram.of([1.0], bins=8)), "equal numbers of bins"),
        (lambda: qmath.Statistics.of([1e200]), "their squares overflow"),
        (lambda: qmath.Statistics.of([1.0], channel_axis=1), "channel_axis: expected an axis"),
        (
            lambda: accumulated([np.ones((2, 3)), np.ones((2, 4))], channel_axis=1),
            "expected 3 channels as before, found 4",
        ),
        (lambda: accumulated([[1.0]]).merge(accumulated([[1.0]], bins=8)), "same bins"),
    ],
)
def test_errors_say_what_was_expected(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", [0.1, 1 / 3, 12345.678, -7e-5])
def test_equal_values_whose_squares_are_rounded_have_no_variance(value):
    """Their squares are rounded, and a thousand of them are not a thousand times one square."""
    for kind in (np.float32, np.float64):
        data = np.full((7, 3, 41), value, kind)
        data[:, 1] *= np.linspace(1, 2, 41, dtype=kind)
        found = qmath.Statistics.of(data, channel_axis=1)
        assert found.channels.variance[0] == found.channels.variance[2] == 0.0
        assert found.channels.variance[1] > 0
        assert qmath.Statistics.of(np.full(1001, value, kind)).variance == 0.0
