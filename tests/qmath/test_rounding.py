"""Q-Rater's rounding: known values of Eq. 4 and 6, and the staircase against the literal Eq. 3 and 5."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath

EXPONENTS = ["distance", "printed"]


def literal(x, scale, gamma_n, gamma_s, *, bits, signed=True, exponent="distance"):
    """Codes by Eq. 3 or 5 as they stand, and the sum under the floor."""
    qmax = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    v = np.clip(np.asarray(x, np.float64) / scale, -qmax if signed else 0, qmax)
    shift = qmath.rounding_offset(v, gamma_n, gamma_s, bits=bits, signed=signed, exponent=exponent)
    return np.clip(np.floor(v + 0.5 + shift), -qmax if signed else 0, qmax), v + 0.5 + shift


@pytest.mark.parametrize(
    ("v", "gamma_n", "expected"),
    [
        (0.2, 0.5, 0.5),  # |w_r| = 0: 0.5 * 0.5^0
        (-0.2, 0.5, -0.5),
        (0.0, 0.5, 0.0),
        (1.2, 0.5, 0.25),
        (-1.2, 0.5, -0.25),
        (2.6, -0.5, -0.0625),  # |w_r| = 3
        (-1.5, 0.5, -0.25),  # w_r = floor(-1.5 + 0.5) = -1
        (1.5, 0.5, 0.125),  # w_r = 2
        (1.2, 0.0, 0.0),
        (0.2, 0.0, 0.0),  # 0^0 does not matter
        (3.0, 1.0, 0.5),
    ],
)
def test_first_order_known_values(v, gamma_n, expected) -> None:
    assert float(qmath.rounding_offset(v, gamma_n, bits=4)) == expected


@pytest.mark.parametrize(
    ("v", "gamma_n", "gamma_s", "distance", "printed"),
    [  # bits 3: h = 4, beta = 2
        (0.1, 0.5, 0.5, 0.5, 0.5 * 0.5**4),  # |0 - 2| - 2 = 0; 0 - 2 - 2 = -4
        (1.0, 0.5, 0.5, 0.25, 0.5 * 0.5**3),
        (2.0, 0.5, 0.5, 0.0, 0.0),  # at gamma_s h
        (3.0, 0.5, 0.5, -0.25, -0.25),  # 3 - 2 - 2 = -1
        (-3.0, 0.5, 0.5, 0.25, 0.25),
        (3.0, -0.5, 0.5, 0.25, 0.25),
        (1.0, 0.5, 0.25, 0.0, 0.0),
        (3.0, 0.5, 0.25, -0.5, -0.5),  # 3 - 1 = 2 = beta
        (3.0, 0.5, 0.0, -0.25, -0.25),
        (1.0, 0.5, 1.0, 0.25, 0.5 * 0.5**5),
        (1.0, 0.0, 0.5, 0.0, 0.0),
    ],
)
def test_second_order_known_values(v, gamma_n, gamma_s, distance, printed) -> None:
    values = [float(qmath.rounding_offset(v, gamma_n, gamma_s, bits=3, exponent=name)) for name in EXPONENTS]
    assert values == [distance, printed]


def test_offsets_broadcast() -> None:
    v, gamma_n, gamma_s = np.ones((2, 1, 1)), np.zeros((3, 1)), np.linspace(0, 1, 4)
    assert qmath.rounding_offset(v, gamma_n, gamma_s, bits=4).shape == (2, 3, 4)


def test_known_staircases() -> None:
    nearest = qmath.rounding_table(0.0, bits=3)
    np.testing.assert_array_equal(nearest.edges, [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    np.testing.assert_array_equal(nearest.codes, [-3, -2, -1, 0, 1, 2, 3])
    half = qmath.rounding_table(0.5, bits=3)  # ranges shrink away from zero (Figure 9): nothing but zero is left at 0
    smallest = np.finfo(np.float64).smallest_subnormal
    np.testing.assert_array_equal(half.edges, [-2.375, -1.25, 0.0, smallest, 1.25, 2.375])
    np.testing.assert_array_equal(half.codes, [-3, -2, -1, 0, 1, 2, 3])
    falling = qmath.rounding_table(-0.5, bits=3)
    np.testing.assert_array_equal(falling.edges, [-2.5625, -1.625, -0.75, 0.75, 1.625, 2.5625])


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("gamma_s", [None, 0.0, 0.25, 0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("bits", "signed"), [(2, True), (3, True), (4, True), (6, True), (1, False), (3, False)])
def test_staircase_is_the_literal_scheme(bits, signed, gamma_s, exponent) -> None:
    rng = np.random.default_rng(0)
    wide = 2.0**bits
    x = np.concatenate([rng.uniform(-wide, wide, 2000), np.arange(-wide, wide + 1), np.arange(-wide, wide) + 0.5])
    for gamma_n in np.linspace(-1, 1, 21).round(1):
        options = {"bits": bits, "signed": signed, "exponent": exponent}
        table = qmath.rounding_table(gamma_n, gamma_s, **options)
        expected, before_floor = literal(x, 1.0, gamma_n, gamma_s, **options)
        clear = np.abs(before_floor - np.rint(before_floor)) > 1e-12
        clear |= np.isin(gamma_n, [-1, 0, 1])  # then nothing is rounded, and edges must agree too
        codes = table.quantize(x, 1.0)
        np.testing.assert_array_equal(codes[clear], expected[clear])
        assert table.codes.min() >= table.qmin
        assert table.codes.max() <= table.qmax
        assert table.quantize([0.0], 1.0)[0] == 0


def test_first_order_is_monotone_and_second_order_need_not_be() -> None:
    assert all(qmath.rounding_table(g, bits=4).monotone for g in np.linspace(-1, 1, 41))
    assert not qmath.rounding_table(1.0, 0.3, bits=4).monotone


@given(
    gamma_n=st.floats(-1, 1),
    gamma_s=st.none() | st.floats(0, 1),
    bits=st.integers(2, 8),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_compiled_staircase_is_a_search_among_its_thresholds(gamma_n, gamma_s, bits, scale, seed) -> None:
    table = qmath.rounding_table(gamma_n, gamma_s, bits=bits)
    rng = np.random.default_rng(seed)
    for dtype in (np.float32, np.float64):
        edges = table.thresholds(scale, dtype=dtype)
        near = np.concatenate([edges, np.nextafter(edges, dtype(-np.inf)), np.nextafter(edges, dtype(np.inf))])
        x = np.concatenate([near, rng.normal(0, 2.0**bits * scale, 1500).astype(dtype)])
        expected = table.codes[np.searchsorted(edges, x, side="right")]
        np.testing.assert_array_equal(table.quantize(x, scale), expected)
        np.testing.assert_array_equal(table.fake_quantize(x, scale), expected.astype(dtype) * dtype(scale))


def test_a_shift_of_one_half_at_the_ends_treats_the_signs_apart() -> None:
    """Clipped values lie on an edge then: floor(3 + 0.5 - 0.5) is 3, but floor(-3 + 0.5 + 0.5) is -2."""
    for table in (qmath.rounding_table(1.0, 0.5, bits=3), qmath.rounding_table(0.5, 0.25, bits=3)):
        np.testing.assert_array_equal(table.quantize([9.0, -9.0], 1.0), [3, -2])


@given(gamma_n=st.floats(-0.999, 0.999), bits=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_staircases_are_odd_but_for_their_edges(gamma_n, bits, seed) -> None:
    table = qmath.rounding_table(gamma_n, 0.5, bits=bits)
    x = np.random.default_rng(seed).normal(0, 2.0**bits, 500)
    np.testing.assert_array_equal(table.quantize(-x, 1.0), -table.quantize(x, 1.0))


def test_zero_gamma_is_nearest_rounding_upwards() -> None:
    x = np.random.default_rng(0).normal(0, 3, 4000).astype(np.float32)
    x[:100] = np.rint(x[:100]) + 0.5
    grid = qmath.Grid(4, 1.0, narrow=True)
    expected = qmath.fake_quantize(x, grid, rounding="half_up")
    np.testing.assert_array_equal(qmath.rounding_table(0.0, 0.7, bits=4).fake_quantize(x, 1.0), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_scales_along_an_axis(axis, bits) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    scale = rng.uniform(0.1, 0.5, x.shape[axis])
    table = qmath.rounding_table(0.4, 0.5, bits=bits)
    parts = [table.fake_quantize(part, s) for part, s in zip(np.moveaxis(x, axis, 0), scale, strict=True)]
    np.testing.assert_array_equal(np.moveaxis(table.fake_quantize(x, scale, axis=axis), axis, 0), np.stack(parts))


def test_thresholds_decide_float32_as_the_exact_product_would() -> None:
    table, scale = qmath.rounding_table(0.3, bits=4), 0.1
    for exact, rounded in zip(table.thresholds(scale), table.thresholds(scale, dtype=np.float32), strict=True):
        assert rounded >= exact
        assert np.nextafter(rounded, np.float32(-np.inf)) < exact
    assert table.thresholds(np.ones((2, 3))).shape == (2, 3, table.edges.size)


def test_nan_is_kept_or_refused_and_infinities_saturate() -> None:
    for bits in (3, 8):
        table = qmath.rounding_table(0.4, bits=bits)
        x = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
        np.testing.assert_array_equal(table.fake_quantize(x, 1.0), [np.nan, table.qmax, table.qmin, 0])
        with pytest.raises(ValueError, match="1 NaN among 4"):
            table.quantize(x, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qmath.rounding_table(1.1, bits=4), "gamma_n: expected numbers from -1 to 1"),
        (lambda: qmath.rounding_table(0.5, -0.1, bits=4), "gamma_s: expected numbers from 0 to 1"),
        (lambda: qmath.rounding_table(0.5, bits=1), "bits: expected whole numbers from 2"),
        (lambda: qmath.rounding_table([0.5, 0.1], bits=4), "expected scalars"),
        (lambda: qmath.rounding_table(0.5, 0.5, bits=4, exponent="other"), "'distance', 'printed'"),
        (lambda: qmath.rounding_table(0.5, bits=4).quantize([1.0], 0.0), "scale: expected positive"),
        (lambda: qmath.rounding_table(0.5, bits=4).quantize([1.0], [1.0]), "a scalar without axis"),
        (lambda: qmath.rounding_table(0.5, bits=4).quantize([1.0], [1.0, 2.0], axis=0), "expected 2 slices"),
        (lambda: qmath.RoundingTable(bits=2, signed=True, edges=[0.0], codes=[0]), "one fewer than codes"),
        (lambda: qmath.RoundingTable(bits=2, signed=True, edges=[1.0, 0.0], codes=[0, 1, 1]), "ascending"),
        (lambda: qmath.RoundingTable(bits=2, signed=True, edges=[0.0], codes=[-2, 0]), "expected -1..1"),
    ],
)
def test_errors_say_what_was_expected(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
