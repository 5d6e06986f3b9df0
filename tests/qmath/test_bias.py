"""Bias correction and expected output shift: what they restore."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath


def rounded(w: np.ndarray, step: float) -> np.ndarray:
    return np.floor(w / step) * step  # biased on purpose


@given(seed=st.integers(0, 999), axis=st.sampled_from([0, 1, -1, None]))
@settings(max_examples=40, deadline=None)
def test_mean_and_spread_come_back(seed, axis) -> None:
    w = np.random.default_rng(seed).normal(size=(4, 5, 6))
    wq = rounded(w, 0.4)
    found = qmath.bias_correction(w, wq, axis=axis)
    over = tuple(i for i in range(3) if axis is None or i != axis % 3)
    shifted = wq + (found.shift if axis is None else np.expand_dims(found.shift, over))
    np.testing.assert_allclose(shifted.mean(axis=over), w.mean(axis=over), atol=1e-12)
    corrected = found.apply(wq)
    np.testing.assert_allclose(corrected.std(axis=over), w.std(axis=over), rtol=1e-12)
    np.testing.assert_allclose(corrected.mean(axis=over), found.gain * w.mean(axis=over), atol=1e-12)


def test_unrounded_weights_need_no_correction() -> None:
    w = np.random.default_rng(0).normal(size=(3, 7))
    found = qmath.bias_correction(w, w)
    np.testing.assert_array_equal(found.shift, 0)
    np.testing.assert_array_equal(found.gain, 1)
    np.testing.assert_array_equal(found.apply(w), w)


def test_a_channel_rounded_to_one_value_keeps_its_gain() -> None:
    found = qmath.bias_correction([[0.1, 0.2], [1.0, 3.0]], [[0.0, 0.0], [1.0, 2.0]])
    assert found.gain.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(found.shift, [0.15, 0.5])


def test_channels_permute() -> None:
    w = np.random.default_rng(0).normal(size=(6, 10))
    order = np.random.default_rng(1).permutation(6)
    plain, moved = qmath.bias_correction(w, rounded(w, 0.3)), qmath.bias_correction(w[order], rounded(w[order], 0.3))
    np.testing.assert_array_equal(moved.shift, plain.shift[order])
    np.testing.assert_array_equal(moved.gain, plain.gain[order])


def test_output_shift_is_the_difference_of_mean_outputs() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(5, 8)), rng.normal(1.0, 2.0, size=(8, 1000))
    wq, xq = rounded(w, 0.3), rounded(x, 0.5)
    shift = qmath.output_shift(w, wq, x.mean(axis=1), xq_mean=xq.mean(axis=1))
    np.testing.assert_allclose(shift, (w @ x - wq @ xq).mean(axis=1), atol=1e-12)
    same_input = qmath.output_shift(w, wq, x.mean(axis=1))
    np.testing.assert_allclose(same_input, ((w - wq) @ x).mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(qmath.output_shift(w.T, wq.T, x.mean(axis=1), axis=1), same_input, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_output_shift_of_a_grouped_convolution(groups) -> None:
    rng = np.random.default_rng(groups)
    w = rng.normal(size=(8, 4 // groups, 3, 3))
    wq = rounded(w, 0.3)
    mean = rng.normal(size=4)
    expected = np.zeros(8)
    for out in range(8):
        first = out // (8 // groups) * (4 // groups)
        for i in range(4 // groups):
            expected[out] += (w - wq)[out, i].sum() * mean[first + i]
    np.testing.assert_allclose(qmath.output_shift(w, wq, mean, groups=groups), expected, atol=1e-12)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="equal"):
        qmath.bias_correction(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="axis"):
        qmath.bias_correction(np.ones((2, 3)), np.ones((2, 3)), axis=2)
    with pytest.raises(ValueError, match="channels"):
        qmath.bias_correction(np.ones((2, 3)), np.ones((2, 3))).apply(np.ones((3, 3)))
    with pytest.raises(ValueError, match="x_mean"):
        qmath.output_shift(np.ones((2, 3)), np.ones((2, 3)), np.ones(2))
    with pytest.raises(ValueError, match="outputs x inputs"):
        qmath.output_shift(np.ones(3), np.ones(3), np.ones(3))
