"""Intervals of integer sums hold what sums can reach, and nothing less."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import qmath

RNG = np.random.default_rng(3)


def brute(rows, low, high):
    """Least and greatest sum of each row by trying every corner; a product may also be padded away."""
    corners = np.array(list(product((low, 0, high), repeat=rows.shape[1])))
    sums = rows @ corners.T
    return sums.min(axis=1), sums.max(axis=1)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127), (-3, 12), (5, 9), (-9, -5)])
def test_both_ends_are_reached_and_not_passed(low, high):
    rows = RNG.integers(-128, 128, (6, 5))
    least, greatest = qmath.sum_range(rows, low, high)
    below, above = brute(rows, low, high)
    np.testing.assert_array_equal(least, below)
    np.testing.assert_array_equal(greatest, above)


def test_the_bias_is_added():
    least, greatest = qmath.sum_range(np.array([[1], [2]]), 0, 10, bias=[100, -100])
    assert least.tolist() == [100, -100]
    assert greatest.tolist() == [110, -80]


def test_pairs_are_neighbours():
    rows = np.array([[100, 1, 100, 1], [100, 100, 1, 1], [-100, -100, 1, 1]])
    least, greatest = qmath.pair_range(rows, 0, 255)
    assert greatest.tolist() == [101 * 255, 200 * 255, 2 * 255]
    assert least.tolist() == [0, 0, -200 * 255]


def test_an_odd_last_product_stands_alone():
    assert qmath.pair_range(np.array([[1, 1, 127]]), 0, 255)[1].tolist() == [127 * 255]


def test_sums_do_not_wrap():
    rows = np.full((1, 200_000), 127, np.int8)
    assert qmath.sum_range(rows, 0, 255)[1].tolist() == [127 * 255 * 200_000]


@pytest.mark.parametrize("weights", [np.full((2, 2), 0.5), np.ones(3, int)])
def test_weights_are_whole_numbers_in_rows(weights):
    with pytest.raises(ValueError, match="weights: expected whole numbers of shape"):
        qmath.sum_range(weights, 0, 1)


def test_a_range_is_not_empty():
    with pytest.raises(ValueError, match="low must not exceed high"):
        qmath.pair_range(np.ones((1, 2), int), 3, 2)
