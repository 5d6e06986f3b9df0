"""Distances between outputs: definitions, invariances, extremes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

import qmath


@given(seed=st.integers(0, 999), shift=st.floats(-1e4, 1e4), axis=st.sampled_from([0, 1]))
@settings(max_examples=50, deadline=None)
def test_kl_is_its_definition_and_ignores_a_common_shift(seed, shift, axis) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.normal(0, 3, (2, 6, 7))
    sp, sq = special.softmax(p, axis=axis), special.softmax(q, axis=axis)
    found = qmath.kl_divergence(p, q, axis=axis)
    np.testing.assert_allclose(found, special.rel_entr(sp, sq).sum(axis=axis), rtol=1e-9)
    assert np.all(found > 0)
    np.testing.assert_allclose(qmath.kl_divergence(p + shift, q - shift, axis=axis), found, rtol=1e-6)
    assert float(qmath.kl_divergence(p, q, axis=axis, mean=True)) == pytest.approx(found.mean(), rel=1e-12)
    assert np.all(qmath.kl_divergence(p, p + 1.0, axis=axis) <= 1e-14)


def test_kl_survives_logits_that_underflow() -> None:
    p, q = np.array([0.0, 2000.0]), np.array([2000.0, 0.0])
    assert float(qmath.kl_divergence(p, q)) == pytest.approx(2000.0)
    assert float(qmath.kl_divergence(p * 1e300, p * 1e300)) == 0.0


@given(seed=st.integers(0, 999), noise=st.floats(1e-6, 10))
@settings(max_examples=50, deadline=None)
def test_sqnr_in_decibels(seed, noise) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 40))
    y = x + noise * rng.normal(size=x.shape)
    expected = 10 * np.log10((x**2).sum(axis=1) / ((x - y) ** 2).sum(axis=1))
    np.testing.assert_allclose(qmath.sqnr_db(x, y, axis=1), expected, rtol=1e-9, atol=1e-9)
    assert float(qmath.sqnr_db(7 * x, 7 * y)) == pytest.approx(float(qmath.sqnr_db(x, y)), abs=1e-9)


def test_sqnr_at_its_ends() -> None:
    assert qmath.sqnr_db([1.0, 2.0], [1.0, 2.0]) == np.inf
    assert qmath.sqnr_db([0.0], [0.0]) == np.inf
    assert qmath.sqnr_db([0.0], [1.0]) == -np.inf
    assert float(qmath.sqnr_db([1.0], [0.0])) == 0.0


def test_one_more_bit_is_six_decibels() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 100_000)
    ratios = [float(qmath.sqnr_db(x, (np.floor(x * 2**b) + 0.5) / 2**b)) for b in (6, 7)]
    assert ratios[1] - ratios[0] == pytest.approx(6.02, abs=0.05)


@given(seed=st.integers(0, 999), scale=st.floats(1e-150, 1e150))
@settings(max_examples=50, deadline=None)
def test_cosine_is_its_definition_and_ignores_scale(seed, scale) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, 4, 9))
    expected = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(qmath.cosine_similarity(x, y, axis=1), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(qmath.cosine_similarity(scale * x, y, axis=1), expected, rtol=1e-10, atol=1e-12)
    assert float(qmath.cosine_similarity(x, x)) == pytest.approx(1.0)
    assert float(qmath.cosine_similarity(x, -x)) == pytest.approx(-1.0)


def test_cosine_with_zeros() -> None:
    assert float(qmath.cosine_similarity([0.0, 0.0], [0.0, 0.0])) == 1.0
    assert float(qmath.cosine_similarity([0.0, 0.0], [1.0, 0.0])) == 0.0


@pytest.mark.parametrize("function", [qmath.kl_divergence, qmath.sqnr_db, qmath.cosine_similarity])
def test_what_cannot_be_compared(function) -> None:
    with pytest.raises(ValueError, match="equal"):
        function([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        function([1.0, np.nan], [1.0, 2.0])


def test_the_ratio_of_powers_is_that_of_arrays():
    x, y = np.array([[3.0, -4.0], [1.0, 0.0], [0.0, 0.0]]), np.array([[3.5, -4.0], [1.0, 0.0], [1.0, 0.0]])
    found = qmath.power_ratio_db((x * x).sum(axis=1), ((x - y) ** 2).sum(axis=1))
    np.testing.assert_array_equal(found, qmath.sqnr_db(x, y, axis=1))
    np.testing.assert_allclose(found, [20.0, np.inf, -np.inf])
    with pytest.raises(ValueError, match=r"noise: expected numbers >= 0, found -1\.0"):
        qmath.power_ratio_db(1.0, [2.0, -1.0])
