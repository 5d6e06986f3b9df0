"""Factors of least noise: against brute force, exact invariances, and rounding itself."""

from __future__ import annotations

import numpy as np
import pytest

import qmath

RNG = np.random.default_rng(12)


def reader(bits=4, weight_bits=8, channels=6, spread=3.0, **changes):
    width = np.exp(RNG.normal(0, spread / 2, channels))
    made = {
        "low": -width,
        "high": width,
        "moment": width**2 / 3,
        "weight": RNG.normal(size=(channels, 5)),
        "bits": bits,
        "weight_bits": weight_bits,
    }
    return qmath.ReadingLayer(**(made | changes))


def noise(layer, factors):
    """Eq. 1, written out with loops."""
    weight, s = np.asarray(layer.weight), factors
    a = (max(np.asarray(layer.high) / s) - min(np.asarray(layer.low) / s)) / (2**layer.bits - 1)
    total = sum(a**2 * s[k] ** 2 * weight[k, c] ** 2 for k in range(len(s)) for c in range(weight.shape[1]))
    for c in range(weight.shape[1]):
        b = max(s * np.abs(weight[:, c])) / (2 ** (layer.weight_bits - 1) - 1)
        total += b**2 * sum(np.asarray(layer.moment) / s**2)
    return total / 12


def test_the_noise_is_that_of_the_formula_and_no_exponents_do_better():
    for bits, weight_bits in ((4, 8), (4, 4), (8, 3)):
        layer = reader(bits, weight_bits)
        found = qmath.equalise_channels([layer])
        np.testing.assert_allclose(found.noise, noise(layer, found.factors), rtol=1e-9)
        np.testing.assert_allclose(found.plain_noise, noise(layer, np.ones(6)), rtol=1e-9)
        reach, heavy = np.asarray(layer.high), np.abs(layer.weight).max(axis=1)
        grid = [noise(layer, reach**e / heavy**f) for e in np.linspace(0, 1, 41) for f in np.linspace(0, 1, 41)]
        assert found.noise <= 1.02 * min(grid)


def test_exact_weights_leave_all_room_to_the_tensor():
    found = qmath.equalise_channels([reader(weight_bits=8, bits=2)])
    assert found.exponents[0] > 0.9
    few = qmath.equalise_channels([reader(weight_bits=2, bits=8)])
    assert few.exponents[0] < found.exponents[0]


def test_the_predicted_noise_is_that_of_rounding():
    channels, samples = 8, 40_000
    width = np.exp(RNG.normal(0, 1, channels))
    x = RNG.uniform(-width, width, (samples, channels))
    weight = RNG.normal(size=(channels, 4))
    layer = qmath.ReadingLayer(
        low=-width, high=width, moment=width**2 / 3, weight=weight, bits=5, weight_bits=8, power=1.0
    )
    found = qmath.equalise_channels([layer])
    for s, predicted in ((np.ones(channels), found.plain_noise), (found.factors, found.noise)):
        scaled, rows = x / s, weight * s[:, None]
        step = (np.max(width / s) * 2) / 31
        columns = np.abs(rows).max(axis=0) / 127
        error = (np.rint(scaled / step) * step) @ (np.rint(rows / columns) * columns) - x @ weight
        np.testing.assert_allclose(np.square(error).sum(axis=1).mean(), predicted, rtol=0.1)


def test_a_depthwise_weight_loses_nothing_and_readers_share_factors():
    alone = qmath.equalise_channels([reader(weight_bits=2, apart=True)])
    assert alone.exponents[0] > 0.9
    first, second = reader(), reader(bits=4, weight_bits=4)
    both = qmath.equalise_channels([first, second])
    np.testing.assert_allclose(both.noise, sum(noise(layer, both.factors) for layer in (first, second)), rtol=1e-9)
    assert both.noise <= both.plain_noise


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one"):
        qmath.equalise_channels([])
    with pytest.raises(ValueError, match="K x C"):
        qmath.equalise_channels([reader(low=np.zeros(3))])
    with pytest.raises(ValueError, match="moment"):
        qmath.equalise_channels([reader(moment=-np.ones(6))])
