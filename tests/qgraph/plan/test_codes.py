"""Codes of large weights are made in blocks; how many there are changes nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import qmath
from qgraph.errors import PlanError
from qgraph.plan import codes
from qgraph.plan.grids import weight_ends, weight_grid
from qgraph.plan.grouped import grouped_grid
from qgraph.plan.plan import ActivationQuant, WeightQuant
from qgraph.plan.staircase import lookup, staircase

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("block", [1, 40, 200])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_groups_in_blocks_of_channels(axis, symmetric, block, monkeypatch):
    weight = RNG.normal(size=(24, 24)).astype(np.float32) * RNG.uniform(0.1, 2, (24, 24)).astype(np.float32)
    granularity = qmath.Granularity(axis=axis, group=7)
    grid = grouped_grid(weight, granularity, bits=4, symmetric=symmetric, most=None)
    whole = codes.codes(weight, grid)
    monkeypatch.setattr(codes, "_BLOCK", block)
    np.testing.assert_array_equal(codes.codes(weight, grid), whole)
    single = dataclasses.replace(grid, zero_point=(0,))
    monkeypatch.setattr(codes, "_BLOCK", 10**6)
    whole = codes.codes(weight, single)
    monkeypatch.setattr(codes, "_BLOCK", block)
    np.testing.assert_array_equal(codes.codes(weight, single), whole)


@pytest.mark.parametrize("granularity", [qmath.Granularity(axis=0), qmath.Granularity(axis=1), qmath.Granularity()])
@pytest.mark.parametrize("method", ["max", "mse"])
def test_ends_in_blocks_of_rows(granularity, method, monkeypatch):
    weight = RNG.normal(size=(12, 5, 3)).astype(np.float32)
    forms = [WeightQuant(bits=bits, scale=(1.0,), granularity=granularity) for bits in (3, 8)]
    forms += [dataclasses.replace(form, symmetric=False) for form in forms]
    whole = [weight_ends(weight, form, method) for form in forms]
    monkeypatch.setattr(codes, "_BLOCK", 31)
    for form, (low, high) in zip(forms, whole, strict=True):
        again = weight_ends(weight, form, method)
        np.testing.assert_array_equal(again[0], low)
        np.testing.assert_array_equal(again[1], high)
        rows = granularity.rows(weight)
        if method == "max" or form.bits == 8:
            reach = np.abs(rows).max(1)
            expected = (-reach, reach) if form.symmetric else (np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0))
            np.testing.assert_allclose((low, high), expected, rtol=1e-6)
        else:
            assert (high - low < np.ptp(rows, axis=1) * (2 if form.symmetric else 1)).any()


def test_channels_of_a_width_are_clipped_at_that_width():
    weight = RNG.laplace(size=(6, 400)).astype(np.float32)
    grid = weight_grid(-np.ones(6), np.ones(6), bits=4, granularity=qmath.Granularity(axis=0), symmetric=True)
    widths = (2, 8, 3, 2, 8, 5)
    mixed = dataclasses.replace(grid, channel_bits=widths)
    _, high = weight_ends(weight, mixed, "mse")
    for channel, bits in enumerate(widths):
        alone = weight_ends(weight[channel : channel + 1], dataclasses.replace(grid, bits=bits, scale=(1.0,)), "mse")
        assert high[channel] == alone[1][0]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_factors_of_inputs_follow_the_groups(groups):
    factors = RNG.uniform(0.5, 2, 8)
    weight = RNG.normal(size=(8, 8 // groups, 3, 3)).astype(np.float32)
    quant = WeightQuant(bits=8, scale=(0.1,), input_scale=tuple(factors))
    for output in range(8):
        mine = factors.reshape(groups, -1)[output // (8 // groups)].reshape(-1, 1, 1)
        np.testing.assert_allclose(codes.scaled(weight, quant)[output], weight[output] * mine, rtol=1e-6)
    with pytest.raises(PlanError, match="do not fit a weight of shape"):
        codes.scaled(weight, dataclasses.replace(quant, input_scale=(*factors, 1.0)))


def test_factors_of_a_matrix_follow_its_inputs():
    """Down the rows of inputs x outputs, along those of outputs x inputs, though both are square."""
    weight, factors = np.ones((4, 4), np.float32), (1.0, 2.0, 3.0, 4.0)
    for axis, expected in ((1, np.reshape(factors, (4, 1))), (0, np.reshape(factors, (1, 4)))):
        quant = WeightQuant(bits=8, scale=(0.1,) * 4, granularity=qmath.Granularity(axis=axis), input_scale=factors)
        np.testing.assert_array_equal(codes.scaled(weight, quant), expected * weight)


def test_a_channel_without_a_factor_is_multiplied_as_it_is():
    weight = RNG.uniform(-0.6, 0.6, (4, 3)).astype(np.float32)
    quant = WeightQuant(
        bits=4, scale=(0.2,) * 3, granularity=qmath.Granularity(axis=1), input_scale=(1.0, 0.0, 2.0, 0.5)
    )
    found = codes.quantized(weight, quant)
    np.testing.assert_array_equal(found[1], weight[1])
    assert (codes.codes(weight, quant)[1] == 0).all()
    others = [0, 2, 3]
    np.testing.assert_allclose(found[others], weight[others], atol=0.101 / 0.5)
    assert np.abs(found[others] - weight[others]).max() > 0.01


def test_a_grid_without_a_rounding_has_no_staircase():
    plain = ActivationQuant(tensor="x", bits=4, scale=1.0)
    for ask in (staircase, lookup):
        with pytest.raises(ValueError, match="the grid of 'x' has no rounding"):
            ask(plain)


def test_a_grid_for_other_weights():
    quant = weight_grid(-np.ones(3), np.ones(3), bits=4, granularity=qmath.Granularity(axis=0), symmetric=True)
    for shape in ((4, 5), (3,), (2, 3)):
        if shape[0] == 3:
            assert codes.codes(np.ones(shape, np.float32), quant).shape == shape
            continue
        with pytest.raises(PlanError, match="a grid with 3 scales per channel along axis 0 does not fit"):
            codes.codes(np.ones(shape, np.float32), quant)
