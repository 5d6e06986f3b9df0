"""Grids of groups whose steps are whole multiples of a unit per channel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import qmath

RNG = np.random.default_rng(3)


def values(w, found, *, bits, group, symmetric):
    """The matrix on its grids (Eq. 1), groups along axis 0."""
    levels = 2**bits - 1 - symmetric
    step, zero = (np.repeat(part, group, axis=0)[: len(w)] for part in (found.multiple * found.unit, found.zero_point))
    return np.clip(np.rint(w / step), -zero, levels - zero) * step


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "most"), [(2, None), (3, 64), (4, 64), (4, 127), (8, None)])
def test_error_is_that_of_the_grids_and_numbers_stay_within_bounds(bits, most, symmetric):
    w = RNG.laplace(size=(70, 300)).astype(np.float32)
    w[:, 5] = 0
    found = qmath.group_grids(w, bits=bits, group=32, symmetric=symmetric, most=most)
    assert found.multiple.shape == found.zero_point.shape == (3, 300)
    error = np.square(w - values(w, found, bits=bits, group=32, symmetric=symmetric)).sum(axis=0)
    np.testing.assert_allclose(found.error, error, rtol=1e-3, atol=1e-6)
    levels = 2**bits - 1 - symmetric
    assert found.multiple.min() >= 1
    assert found.multiple.max() <= 255
    assert 0 <= found.zero_point.min() <= found.zero_point.max() <= levels
    numbers = found.multiple * np.maximum(found.zero_point, levels - found.zero_point)
    assert most is None or numbers.max() <= most


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_worse_than_least_squares_with_a_free_scale_for_every_group(bits):
    rng = np.random.default_rng(3)
    w = (rng.laplace(size=(256, 64)) * rng.uniform(0.3, 3, size=(256, 1))).astype(np.float32)
    found = qmath.group_grids(w, bits=bits, group=32)
    rows = qmath.Granularity(axis=0, group=32).rows(w)
    low, high = qmath.weight_range(rows, bits=bits, axis=0)
    exact = np.square(rows - qmath.fake_quantize(rows, qmath.Grid.affine(low, high, bits=bits, axis=0))).sum()
    assert found.error.sum() < 1.03 * exact


def test_close_to_every_multiple_and_zero_point_tried():
    w = RNG.normal(size=(8, 40)).astype(np.float32)
    found = qmath.group_grids(w, bits=3, group=8, most=20)
    best = np.full(40, np.inf)
    for m, z in itertools.product(range(1, 21), range(8)):
        if m * max(z, 7 - z) <= 20:
            step = found.unit * m
            off = w - np.clip(np.rint(w / step), -z, 7 - z) * step
            best = np.minimum(best, np.square(off).sum(axis=0))
    assert found.error.sum() < 1.02 * best.sum()


def test_important_inputs_have_the_smaller_errors():
    w = RNG.normal(size=(32, 50)).astype(np.float32)
    h = np.where(np.arange(32) < 4, 100.0, 1.0)
    errors = []
    for importance in (None, h):
        found = qmath.group_grids(w, bits=3, group=16, importance=importance)
        errors.append(np.square(w - values(w, found, bits=3, group=16, symmetric=False)).sum(axis=1))
    assert errors[1][:4].sum() < 0.7 * errors[0][:4].sum()


def test_along_the_other_axis_and_on_any_number_of_threads():
    w = RNG.normal(size=(48, 1500)).astype(np.float32)
    one, other = qmath.group_grids(w, bits=4, group=16), qmath.group_grids(w.T, bits=4, group=16, axis=1)
    before = qmath.get_threads()
    qmath.set_threads(2)
    try:
        split = qmath.group_grids(w, bits=4, group=16)
    finally:
        qmath.set_threads(before)
    for name in ("unit", "multiple", "zero_point", "error"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(getattr(one, name), getattr(split, name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 0}, "groups of at least 1"),
        ({"most": 10}, "at least 15"),
        ({"importance": [1.0]}, "expected 4 numbers"),
        ({"axis": 2}, "axis"),
        ({"bits": 9}, "from 1 to 8"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        qmath.group_grids(np.ones((4, 2)), **{"bits": 4, "group": 2} | options)
    with pytest.raises(ValueError, match="a matrix"):
        qmath.group_grids(np.ones(4), bits=4, group=2)
