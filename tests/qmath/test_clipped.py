"""Clipped distributions in closed form, against drawn samples and special cases."""

from __future__ import annotations

import numpy as np
import pytest

import qmath

FAMILIES = [qmath.Laplace, qmath.Gaussian]
LOC, SCALE = np.array([-2.0, -0.3, 0.0, 1.5, 5.0]), np.array([1.0, 0.4, 2.0, 0.7, 3.0])
BOUNDS = [(-np.inf, np.inf), (0.0, np.inf), (0.0, 6.0), (-1.0, 1.0)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_moments_are_those_of_samples(family: type[qmath.Prior], low: float, high: float) -> None:
    drawn = np.clip(family(LOC, SCALE).sample((400_000, 5), seed=1), low, high)
    found = qmath.clipped_statistics(family(LOC, SCALE), low=low, high=high, reach=12.0, count=400_000)
    seen = qmath.Statistics.of(drawn, channel_axis=1)
    for statistics, reference, values in ((found.channels, seen.channels, drawn), (found, seen, drawn.reshape(-1, 1))):
        for name, points in (
            ("mean", values),
            ("mean_abs", np.abs(values)),
            ("variance", (values - values.mean(0)) ** 2),
        ):
            error = 5 * points.std(axis=0) / np.sqrt(len(points))
            have, want = np.atleast_1d(getattr(statistics, name)), np.atleast_1d(getattr(reference, name))
            assert (np.abs(have - want) <= error + 1e-9).all(), name
    assert found.count == seen.count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_the_histogram_is_that_of_samples(family: type[qmath.Prior], low: float, high: float) -> None:
    drawn = np.clip(family(LOC, SCALE).sample((400_000, 5), seed=2), low, high)
    found = qmath.clipped_statistics(family(LOC, SCALE), low=low, high=high, reach=12.0, count=400_000).histogram
    assert found is not None
    assert found.total == drawn.size
    seen = qmath.Histogram.of(drawn).widened(found.exponent)
    share = np.cumsum(seen.counts) / drawn.size
    np.testing.assert_allclose(np.cumsum(found.counts) / drawn.size, share, rtol=0, atol=3e-3)


def test_values_at_a_bound_are_counted_where_a_histogram_counts_them() -> None:
    for low, high in ((-1.0, 1.0), (0.0, 2.0), (-2.0, 0.0)):
        found = qmath.clipped_statistics(qmath.Gaussian([0.0], [0.7]), low=low, high=high, bins=64, count=10**6)
        ends = qmath.Histogram.of([low, high], bins=64)
        assert found.histogram is not None
        assert found.histogram.exponent == ends.exponent
        atoms = np.flatnonzero(ends.counts)
        assert (found.histogram.counts[atoms] > 1000).all()
        outside = np.ones(64, bool)
        outside[atoms.min() : atoms.max() + 1] = False
        assert not found.histogram.counts[outside].any()


def test_ranges_end_at_reach_or_at_a_bound() -> None:
    prior = qmath.Gaussian([0.0, 1.0], [1.0, 2.0])
    found = qmath.clipped_statistics(prior, low=0.0, high=10.0, reach=4.0)
    assert found.channels.min.tolist() == [0.0, 0.0]
    assert found.channels.max.tolist() == [4.0, 9.0]
    assert (found.min, found.max) == (0.0, 9.0)
    assert qmath.clipped_statistics(prior, reach=[4.0, 6.0]).channels.min.tolist() == [-4.0, -11.0]


def test_a_channel_that_a_bound_holds_is_constant() -> None:
    found = qmath.clipped_statistics(qmath.Laplace([-50.0, 20.0], [1.0, 1.0]), low=0.0, high=6.0)
    assert found.channels.mean.tolist() == [0.0, 6.0]
    np.testing.assert_allclose(found.channels.variance, 0.0, atol=1e-12)
    assert found.variance == pytest.approx(9.0)


def test_without_bins_there_is_no_histogram() -> None:
    assert qmath.clipped_statistics(qmath.Gaussian(), bins=0).histogram is None


@pytest.mark.parametrize("wrong", [{"low": 1.0, "high": 0.0}, {"reach": 0.0}, {"count": 0}, {"bins": 7}])
def test_wrong_operands_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        qmath.clipped_statistics(qmath.Gaussian(), **wrong)  # type: ignore[arg-type]
