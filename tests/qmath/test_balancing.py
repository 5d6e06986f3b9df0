"""Factors that share the error of rounding between an operand and a weight."""

from __future__ import annotations

import numpy as np
import pytest

import qmath

RNG = np.random.default_rng(5)


def rounded(x: np.ndarray, step: float | np.ndarray) -> np.ndarray:
    return np.rint(x / step) * step


def measured(x: np.ndarray, weight: np.ndarray, factors: np.ndarray) -> float:
    """Noise of the outputs with both factors rounded, channels with factor 0 apart, constants taken out."""
    kept = factors > 0
    even, scaled = x[:, kept] / factors[kept], weight[kept] * factors[kept, None]
    step = (max(even.max(), 0) - min(even.min(), 0)) / 255
    steps = 2 * np.abs(scaled).max(axis=0) / 255
    error = rounded(even, step) @ rounded(scaled, steps) - even @ scaled
    return float(np.square(error - error.mean(axis=0)).mean(axis=0).sum())


@pytest.fixture
def outliers() -> tuple[np.ndarray, np.ndarray]:
    x, weight = RNG.normal(size=(4000, 48)), RNG.normal(size=(48, 40))
    x[:, 3] *= 40
    x[:, 9] *= 12
    return x, weight


def found_for(x: np.ndarray, weight: np.ndarray, **bits: int) -> qmath.Balance:
    return qmath.balance_channels(x.min(axis=0), x.max(axis=0), x.var(axis=0), weight, **bits)


def test_predicted_noise_is_measured_noise(outliers: tuple[np.ndarray, np.ndarray]) -> None:
    x, weight = outliers
    found = found_for(x, weight)
    assert measured(x, weight, np.ones(48)) == pytest.approx(found.plain_noise, rel=0.1)
    assert measured(x, weight, found.factors) == pytest.approx(found.noise, rel=0.1)
    assert found.noise < found.plain_noise / 4


def test_no_other_exponent_is_better(outliers: tuple[np.ndarray, np.ndarray]) -> None:
    x, weight = outliers
    found = found_for(x, weight)
    kept = found.factors > 0
    reach = np.abs(x).max(axis=0)
    for exponent in np.linspace(0, 1, 21):
        factors = np.where(kept, reach**exponent, 0.0)
        assert measured(x, weight, factors) > 0.9 * found.noise


def test_exponent_follows_the_bits_of_the_weight(outliers: tuple[np.ndarray, np.ndarray]) -> None:
    """The coarser the weight, the less is moved into it."""
    exponents = [found_for(*outliers, weight_bits=bits).exponent for bits in (8, 6, 4)]
    assert exponents[0] > exponents[1] > exponents[2] >= 0


def test_channels_loud_on_both_sides_are_left_out() -> None:
    x, weight = RNG.normal(size=(4000, 64)), RNG.normal(size=(64, 32))
    x[:, 7] *= 30
    weight[7] *= 30
    found = found_for(x, weight)
    assert np.flatnonzero(found.factors == 0).tolist() == [7]
    assert measured(x, weight, found.factors) < found.plain_noise / 30


def test_alike_channels_stay() -> None:
    x, weight = RNG.uniform(-1, 1, size=(4000, 32)), RNG.normal(size=(32, 16))
    found = found_for(x, weight)
    assert (found.factors > 0).all()
    np.testing.assert_allclose(found.factors, 1.0, rtol=0.05)


def test_silent_channels_and_operands() -> None:
    x, weight = RNG.normal(size=(100, 32)), RNG.normal(size=(32, 8))
    x[:, 4] = 0
    assert np.isfinite(found_for(x, weight).factors).all()
    nothing = found_for(np.zeros((4, 32)), weight)
    assert nothing.noise == nothing.plain_noise == 0


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"expected a weight of 3 x C .* found a weight of shape \[2, 5\]"):
        qmath.balance_channels([0, 0, 0], [1, 1, 1], [1, 1, 1], np.ones((2, 5)))
