"""Rounding that keeps sums: its form falls, and is the least that any codes reach where all can be tried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath

RNG = np.random.default_rng(6)


def form(weight, codes, grid, correlation, mean, spread=1.0):
    """Eq. 1 for every output of a weight whose outputs are first."""
    error = (qmath.dequantize(codes, grid) - weight).reshape(*weight.shape[:2], -1).astype(np.float64)
    share = correlation if error.shape[2] > 1 else 0.0
    kernels = (1 - share) * np.square(error).sum(axis=2) + share * np.square(error.sum(axis=2))
    return (np.square(spread) * kernels).sum(axis=1) + np.square((mean * error.sum(axis=2)).sum(axis=1))


@given(st.integers(2, 8), st.floats(0, 1), st.integers(0, 99))
def test_never_above_the_nearest_codes(bits, correlation, seed):
    rng = np.random.default_rng(seed)
    weight, mean, spread = rng.normal(size=(5, 3, 3, 3)), rng.normal(size=3), rng.uniform(0, 2, size=(5, 3))
    grid = qmath.Grid.symmetric(np.abs(weight).max(axis=(1, 2, 3)), bits=bits, axis=0)
    codes = qmath.round_evenly(weight, grid, correlation=correlation, mean=mean, spread=spread)
    ends = [form(weight, c, grid, correlation, mean, spread) for c in (codes, qmath.quantize(weight, grid))]
    assert (ends[0] <= ends[1] * (1 + 1e-6) + 1e-12).all()
    low, high = grid.limits
    assert codes.min() >= np.min(low)
    assert codes.max() <= np.max(high)


def test_close_to_the_best_of_all_codes():
    weight = RNG.normal(size=(6, 1, 2, 3))
    grid = qmath.Grid(4, 0.5)
    found = form(weight, qmath.round_evenly(weight, grid), grid, 0.9, 0.3)
    nearest = qmath.quantize(weight, grid).astype(int)
    choices = list(itertools.product((-1, 0, 1), repeat=6))
    tried = [
        form(weight, np.clip(nearest + np.reshape(c, (1, 1, 2, 3)), -8, 7).astype(np.int8), grid, 0.9, 0.3)
        for c in choices
    ]
    best, plain = np.min(tried, axis=0), form(weight, nearest.astype(np.int8), grid, 0.9, 0.3)
    assert np.mean(found) < np.mean(best) + 0.25 * np.mean(plain - best)


def test_errors_of_a_depthwise_kernel_cancel():
    """Nine errors of up to half a step add up to less than a whole step; to nearest, to several."""
    weight = RNG.normal(size=(200, 1, 3, 3))
    grid = qmath.Grid.symmetric(np.abs(weight).max(axis=(1, 2, 3)), bits=8, axis=0)

    def sums(codes):
        return (qmath.dequantize(codes, grid) - weight).sum(axis=(1, 2, 3)) / grid.scale

    assert np.abs(sums(qmath.round_evenly(weight, grid))).max() < 1
    assert np.abs(sums(qmath.quantize(weight, grid))).max() > 1.5


@pytest.mark.parametrize("axis", [0, 1])
def test_outputs_along_any_axis_and_grids_of_any_granularity(axis):
    weight = RNG.normal(size=(64, 48)).astype(np.float32)
    low, high = weight.min(axis=1 - axis), weight.max(axis=1 - axis)
    whole = qmath.round_evenly(weight, qmath.Grid.affine(low, high, bits=4, signed=True, axis=axis), axis=axis)
    turned = qmath.round_evenly(
        weight.T, qmath.Grid.affine(low, high, bits=4, signed=True, axis=1 - axis), axis=1 - axis
    )
    np.testing.assert_array_equal(whole, turned.T)
    grouped = qmath.Grid(4, np.full(64 * 3, 0.4), axis=1, group=16)
    plain = qmath.Grid(4, 0.4)
    np.testing.assert_array_equal(qmath.round_evenly(weight, grouped), qmath.round_evenly(weight, plain))


def test_what_makes_no_sense_is_refused():
    grid = qmath.Grid(4, 1.0)
    for bad, options, message in (
        (np.ones(3), {}, "outputs and inputs"),
        (np.full((2, 2), np.nan), {}, "NaN"),
        (np.ones((2, 2)), {"correlation": 1.5}, "0..1"),
        (np.ones((2, 2)), {"spread": -1.0}, "spread"),
        (np.ones((2, 2)), {"mean": np.ones(3)}, "mean: expected numbers for 2 inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            qmath.round_evenly(bad, grid, **options)


def test_the_means_of_inputs_weigh_what_cancels():
    """Errors add up as each input's mean says: opposite means let them cancel where equal ones would not."""
    weight = np.full((1, 2, 1, 1), 0.4)
    for mean, total in (((10.0, 10.0), 1), ((10.0, -10.0), 0), ((0.0, 0.0), 0)):
        codes = qmath.round_evenly(weight, qmath.Grid(4, 1.0), mean=np.array(mean))
        assert abs(int(codes.sum())) == total
