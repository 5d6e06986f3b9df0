"""Soft rounding: its limits, its fixed points, and its slope."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath

RNG = np.random.default_rng(8)


def test_between_the_identity_and_rounding():
    values = RNG.uniform(-7, 7, 500)
    away = values[np.abs(values - np.floor(values) - 0.5) > 0.05]
    np.testing.assert_allclose(qmath.soft_round(values, 0.0)[0], values)
    np.testing.assert_allclose(qmath.soft_round(values, 0.01)[0], values, atol=1e-5)
    np.testing.assert_allclose(qmath.soft_round(away, 200.0)[0], np.rint(away), atol=1e-6)


@given(st.integers(-50, 50), st.floats(0.01, 60))
def test_integers_and_middles_stay(code, hardness):
    found = qmath.soft_round(np.array([code, code + 0.5]), hardness)[0]
    np.testing.assert_allclose(found, [code, code + 0.5], atol=1e-12)


@pytest.mark.parametrize("hardness", [0.0, 0.5, 4.0, 12.0])
def test_the_slope_is_that_of_central_differences(hardness):
    values, step = RNG.uniform(-3, 3, 400), 1e-6
    values = values[np.abs(values - np.rint(values)) > 1e-3]
    above, below = (qmath.soft_round(values + sign * step, hardness)[0] for sign in (1, -1))
    np.testing.assert_allclose(qmath.soft_round(values, hardness)[1], (above - below) / (2 * step), rtol=1e-5)


def test_single_precision_stays_and_bad_input_is_named():
    assert qmath.soft_round(np.float32([0.2, 0.7]), 5.0)[0].dtype == np.float32
    for values, hardness, name in (([np.nan], 1.0, "values"), ([0.5], -1.0, "hardness"), ([0.5], np.inf, "hardness")):
        with pytest.raises(ValueError, match=name):
            qmath.soft_round(values, hardness)
