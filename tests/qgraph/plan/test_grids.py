"""Grids that span a range: their scales, zero points and what integer kernels make of them."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qgraph.errors import PlanError
from qgraph.plan import codes
from qgraph.plan.grids import activation_grid, weight_grid

TINY = float(np.finfo(np.float32).tiny)
SMALLEST, SMALLEST_OF_WEIGHTS = TINY * 2**23, TINY * 2


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_denormal_ranges_keep_scales_that_can_be_divided_by(symmetric, bits):
    """Kernels flush denormal numbers to zero, and a bias is a multiple of the product of two scales."""
    low, high = np.array([-1e-44, -1.0, 0.0]), np.array([1e-40, 1.0, 0.0])
    grid = weight_grid(low, high, bits=bits, granularity=qmath.Granularity(axis=0), symmetric=symmetric)
    assert grid.scale[0] == np.float32(SMALLEST_OF_WEIGHTS)
    assert grid.scale[1] > 1 / 2**bits
    assert grid.scale[2] == 1.0
    assert activation_grid("x", -1e-41, 1e-44, bits=bits).scale == np.float32(SMALLEST)
    assert activation_grid("x", 0.0, 0.0, bits=bits).scale == 1.0


def test_zero_points_are_the_nearest_codes():
    """-low / scale = 2.6 and 2.4: code 3 and code 2."""
    for low, zero_point in ((-2.6, 3), (-2.4, 2)):
        assert activation_grid("x", low, low + 15.0, bits=4).zero_point == zero_point
        grid = weight_grid(np.array([low]), np.array([low + 15.0]), bits=4, symmetric=False)
        assert grid.zero_point == (zero_point - 8,)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_narrow_weights_are_unpacked_to_seven_bits_and_no_more(bits, symmetric):
    """A pair of products of 255 with more would leave the 16 bits in which some CPUs add it; 64 * 2 * 255 fits."""
    weight = np.linspace(-1.0, 0.7, 101, dtype=np.float32)[:, None]
    grid = weight_grid(weight.min(0), weight.max(0), bits=bits, symmetric=symmetric)
    stored = codes.stored(codes.codes(weight, grid), grid)
    assert 32 <= np.abs(stored).max() <= 64
    operand = activation_grid("x", 0.0, 1.0, bits=8)
    unit = codes.accumulator_scale(grid, operand) / np.float32(operand.scale)
    np.testing.assert_allclose(stored * unit, codes.quantized(weight, grid), rtol=1e-6, atol=1e-7)


def test_weights_at_the_end_of_float32_have_no_grid():
    weight = np.array([[3e38, -3e38]], np.float32)
    grid = weight_grid(weight.min(axis=1), weight.max(axis=1), bits=2, symmetric=False)
    with pytest.raises(PlanError, match="no grid spans the weights"):
        codes.codes(weight, grid)
