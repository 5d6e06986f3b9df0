"""What shares a parameter: shapes, laying along a tensor, rows and back; and grids with widths and groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    group = None if axis is None else draw(st.sampled_from([None, 1, 2, 3, 5, 9]))
    return shape, qmath.Granularity(axis=axis, group=group)


def owners(shape, granularity):
    """The number of the parameter of every element, counted by hand."""
    axis, group = granularity.axis, granularity.group

    def key(index):
        if axis is None:
            return ()
        return (index[axis],) if group is None else tuple(i // group if a == axis else i for a, i in enumerate(index))

    numbers = {one: number for number, one in enumerate(sorted({key(index) for index in np.ndindex(shape)}))}
    return np.array([numbers[key(index)] for index in np.ndindex(shape)]).reshape(shape)


@given(cases())
def test_parameters_are_laid_where_they_belong(case):
    shape, granularity = case
    owner = owners(shape, granularity)
    assert granularity.count(shape) == owner.max() + 1
    np.testing.assert_array_equal(np.broadcast_to(granularity.lay(np.arange(owner.max() + 1), shape), shape), owner)
    assert granularity.lay(3.0, shape).shape == (1,) * len(shape)


@given(cases())
def test_rows_hold_what_shares_a_parameter(case):
    shape, granularity = case
    x = np.random.default_rng(0).normal(size=shape)
    owner, rows = owners(shape, granularity), granularity.rows(x)
    assert len(rows) == granularity.count(shape)
    for number, row in enumerate(rows):
        assert set(row) == set(x[owner == number])
    np.testing.assert_array_equal(granularity.from_rows(rows, shape), x)
    sums = [x[owner == number].sum() for number in range(len(rows))]
    np.testing.assert_allclose(granularity.reduce(np.add, x), sums, atol=1e-12)
    np.testing.assert_array_equal(granularity.reduce(np.maximum, x), rows.max(axis=1))


@settings(deadline=None)
@given(cases(), st.booleans())
def test_grids_of_every_granularity_and_width_follow_the_equation(case, narrow):
    shape, granularity = case
    rng, count = np.random.default_rng(1), granularity.count(shape)
    bits, scale = rng.integers(2, 9, count), rng.uniform(0.1, 0.5, count).astype(np.float32)
    zero_point, offset = rng.integers(-1, 2, count), rng.normal(size=count).astype(np.float32)
    if granularity.axis is None:
        bits, scale, zero_point, offset = (part[0] for part in (bits, scale, zero_point, offset))
    grid = qmath.Grid(
        bits,
        scale,
        zero_point=zero_point,
        offset=offset,
        narrow=narrow,
        axis=granularity.axis,
        group=granularity.group,
    )
    assert grid.granularity == granularity
    x = rng.normal(size=shape, scale=3).astype(np.float32)
    step, zero, shift, width = (granularity.lay(part, shape) for part in (scale, zero_point, offset, bits))
    half = 2 ** (width - 1)
    expected = np.clip(np.rint((x - shift) / step) + zero, narrow - half, half - 1)
    found = qmath.quantize(x, grid)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, expected)
    values = (expected.astype(np.float32) - zero.astype(np.float32)) * step + shift
    np.testing.assert_array_equal(qmath.dequantize(found, grid), values)
    np.testing.assert_array_equal(qmath.fake_quantize(x, grid), values)
    assert (grid.low <= grid.high).all()


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="at least 1 value along an axis, found 4 along None"):
        qmath.Granularity(group=4)
    with pytest.raises(ValueError, match="at least 1 value along an axis"):
        qmath.Grid(4, [0.1], axis=0, group=0)
    with pytest.raises(ValueError, match=r"expected 6 per group of 2 along axis 0 of a tensor of shape \[4, 3\]"):
        qmath.Granularity(axis=0, group=2).lay([1.0, 2.0], (4, 3))
    with pytest.raises(ValueError, match="expected 2 groups of 2 along axis 0, one per parameter"):
        qmath.quantize(np.ones((4, 3)), qmath.Grid(4, [0.1, 0.2], axis=0, group=2))
    with pytest.raises(ValueError, match="expected 2 groups of 2 along axis 0"):
        qmath.dequantize(np.ones((4, 3), np.int8), qmath.Grid(4, [0.1, 0.2], axis=0, group=2))
    with pytest.raises(ValueError, match="equal lengths"):
        qmath.Grid(np.array([2, 3]), [0.1, 0.2, 0.3], axis=0)
    with pytest.raises(ValueError, match="zero_point"):
        qmath.Grid([2, 8], [0.1, 0.2], zero_point=[3, 3], axis=0)
