"""The uniform grid: its range, its three maps, and what onnxruntime's quantizer answers to the same questions."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath

ROUNDINGS = ["half_even", "half_up"]


@st.composite
def grids(draw) -> qmath.Grid:
    bits = draw(st.integers(1, 16))
    scale = draw(st.floats(1e-6, 1e6))
    signed = draw(st.booleans())
    if draw(st.booleans()):
        low = -draw(st.floats(0, 1e3)) * scale
        return qmath.Grid.affine(low, low + 2e3 * scale, bits=bits, signed=signed)
    return qmath.Grid(bits, scale, signed=signed, narrow=signed and bits > 1 and draw(st.booleans()))


def data(seed: int, grid: qmath.Grid, size: int = 500) -> np.ndarray:
    """Values within and beyond the grid, ties among them."""
    rng = np.random.default_rng(seed)
    codes = rng.uniform(grid.qmin - 3, grid.qmax + 3, size)
    codes[: size // 4] = np.rint(codes[: size // 4]) + 0.5
    return (codes - float(grid.zero_point)) * float(grid.scale) + float(grid.offset)


@pytest.mark.parametrize(
    ("grid", "codes", "ends"),
    [
        (qmath.Grid(4, 0.5), (-8, 7), (-4.0, 3.5)),
        (qmath.Grid(4, 0.5, narrow=True), (-7, 7), (-3.5, 3.5)),
        (qmath.Grid(4, 0.5, signed=False), (0, 15), (0.0, 7.5)),
        (qmath.Grid(8, 0.5, zero_point=128, signed=False), (0, 255), (-64.0, 63.5)),
        (qmath.Grid(2, 1.0, offset=0.25, signed=False), (0, 3), (0.25, 3.25)),
        (qmath.Grid(1, 1.0), (-1, 0), (-1.0, 0.0)),
        (qmath.Grid.symmetric(2.1, bits=3), (-3, 3), (-2.1, 2.1)),
        (qmath.Grid.symmetric(2.1, bits=3, narrow=False), (-4, 3), (-2.8, 2.1)),
        (qmath.Grid.symmetric(3.0, bits=4, signed=False), (0, 15), (0.0, 3.0)),
        (qmath.Grid.affine(-1.0, 2.0, bits=2), (0, 3), (-1.0, 2.0)),
        (qmath.Grid.affine(1.0, 3.0, bits=2), (0, 3), (0.0, 3.0)),
        (qmath.Grid.affine(-6.0, -1.0, bits=2, signed=True), (-2, 1), (-6.0, 0.0)),
        (qmath.Grid.with_offset(0.5, 2.0, bits=2), (0, 3), (0.5, 2.0)),
        (qmath.Grid.with_offset(-0.3, 2.7, bits=2, signed=True), (-2, 1), (-0.3, 2.7)),
    ],
)
def test_range(grid, codes, ends) -> None:
    assert (grid.qmin, grid.qmax) == codes
    assert grid.levels == codes[1] - codes[0] + 1
    np.testing.assert_allclose((grid.low, grid.high), ends, rtol=1e-15)


def test_constructors_take_a_width_for_each_slice() -> None:
    low, high, bits = np.array([-1.0, -2.0, 0.5]), np.array([1.0, 3.0, 4.0]), [2, 5, 8]
    for several, make in (
        (qmath.Grid.symmetric(high, bits=bits, axis=0), lambda i: qmath.Grid.symmetric(high[i], bits=bits[i])),
        (qmath.Grid.affine(low, high, bits=bits, axis=0), lambda i: qmath.Grid.affine(low[i], high[i], bits=bits[i])),
        (
            qmath.Grid.with_offset(low, high, bits=bits, axis=0),
            lambda i: qmath.Grid.with_offset(low[i], high[i], bits=bits[i]),
        ),
    ):
        for i in range(3):
            one = make(i)
            assert (several.scale[i], several.zero_point[i], several.offset[i]) == (
                one.scale,
                one.zero_point,
                one.offset,
            )
            assert (several.limits[0][i], several.limits[1][i]) == one.limits


def test_the_zero_point_follows_from_the_rounded_scale() -> None:
    """The float16 nearest to a step of 1.0002 is 1: -2560.75 is 2560.2 steps of one, and 2560.75 of the other."""
    low, high = -2560.75, 4095 * 1.0002 - 2560.75
    exact = qmath.Grid.affine(low, high, bits=12)
    rounded = qmath.Grid.affine(low, high, bits=12, dtype=np.float16)
    assert int(exact.zero_point) == 2560
    assert (float(rounded.scale), int(rounded.zero_point)) == (1.0, 2561)


def test_affine_nudges_zero_onto_a_code() -> None:
    grid = qmath.Grid.affine([-0.26, -0.2, 0.0], [1.0, 2.0, 0.0], bits=4, axis=0)
    np.testing.assert_array_equal(grid.zero_point, [3, 1, 0])
    np.testing.assert_allclose(grid.scale, [1.26 / 15, 2.2 / 15, 1.0], rtol=1e-15)
    zeros = qmath.quantize(np.zeros((3, 1)), grid)
    np.testing.assert_array_equal(zeros[:, 0], grid.zero_point)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [("half_even", [-2, -2, 0, 0, 0, 2, 2]), ("half_up", [-2, -1, 0, 0, 1, 2, 3])],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties(rounding, expected, dtype) -> None:
    below_half = np.nextafter(dtype(0.5), dtype(0))  # floor(v + 0.5) in floating point would lift it
    x = np.array([-2.5, -1.5, -0.5, below_half, 0.5, 1.5, 2.5], dtype)
    np.testing.assert_array_equal(qmath.quantize(x, qmath.Grid(4, 1.0), rounding=rounding), expected)


@given(grid=grids(), seed=st.integers(0, 99), rounding=st.sampled_from(ROUNDINGS), double=st.booleans())
@settings(max_examples=60, deadline=None)
def test_maps_agree_and_are_idempotent_monotone_bounded(grid, seed, rounding, double) -> None:
    x = np.sort(data(seed, grid)).astype(np.float64 if double else np.float32)
    q = qmath.quantize(x, grid, rounding=rounding)
    y = qmath.fake_quantize(x, grid, rounding=rounding)
    assert y.dtype == x.dtype
    assert q.dtype == grid.code_dtype
    np.testing.assert_array_equal(y.astype(np.float32), qmath.dequantize(q, grid)) if not double else None
    assert np.all(np.diff(q.astype(int)) >= 0)
    assert q.min() >= grid.qmin
    assert q.max() <= grid.qmax
    np.testing.assert_array_equal(qmath.quantize(y, grid, rounding=rounding), q)
    np.testing.assert_array_equal(qmath.fake_quantize(y, grid, rounding=rounding), y)
    inside = (x >= grid.low) & (x <= grid.high)
    room = float(grid.scale) / 2 + 4 * np.finfo(x.dtype).eps * np.abs(x[inside])
    assert np.all(np.abs(y[inside].astype(np.float64) - x[inside]) <= room)


@given(seed=st.integers(0, 99), power=st.integers(-20, 20), rounding=st.sampled_from(ROUNDINGS))
@settings(max_examples=30, deadline=None)
def test_scaling_data_and_grid_scales_the_result(seed, power, rounding) -> None:
    factor = 2.0**power
    x = np.random.default_rng(seed).normal(size=300).astype(np.float32)
    small = qmath.Grid.with_offset(-1.0, 2.0, bits=4)
    large = qmath.Grid.with_offset(-factor, 2 * factor, bits=4)
    scaled = qmath.fake_quantize(x * np.float32(factor), large, rounding=rounding)
    np.testing.assert_array_equal(scaled, qmath.fake_quantize(x, small, rounding=rounding) * np.float32(factor))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_each_slice_along_the_axis_has_its_own_parameters(axis, rounding) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    channels = x.shape[axis]
    low, high = -rng.uniform(0.1, 2, channels), rng.uniform(0.1, 2, channels)
    whole = qmath.Grid.affine(low, high, bits=4, axis=axis)
    moved = np.moveaxis(x, axis, 0)
    for convert in (qmath.quantize, qmath.fake_quantize):
        slices = [
            convert(part, qmath.Grid.affine(a, b, bits=4), rounding=rounding)
            for part, a, b in zip(moved, low, high, strict=True)
        ]
        np.testing.assert_array_equal(np.moveaxis(convert(x, whole, rounding=rounding), axis, 0), np.stack(slices))
    order = rng.permutation(channels)
    permuted = qmath.Grid.affine(low[order], high[order], bits=4, axis=axis)
    np.testing.assert_array_equal(
        qmath.fake_quantize(np.take(x, order, axis), permuted), np.take(qmath.fake_quantize(x, whole), order, axis)
    )


def test_onnxruntime_gives_the_same_codes_and_values() -> None:
    onnx_ir, runtime = pytest.importorskip("onnx_ir"), pytest.importorskip("onnxruntime")
    model = onnx_ir.to_proto(
        onnx_ir.from_onnx_text(
            """<ir_version: 10, opset_import: ["" : 21]>
            g (float[N] x, float s, uint8 z) => (uint8[N] q, float[N] y)
            { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
        )
    )
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for scale in rng.uniform(0.01, 3.0, 20).astype(np.float32):
        zero_point = int(rng.integers(0, 256))
        x = ((rng.integers(-600, 600, 4096) / 2) * np.float64(scale)).astype(np.float32)  # ties, to within rounding
        q, y = session.run(None, {"x": x, "s": np.array(scale), "z": np.array(zero_point, np.uint8)})
        grid = qmath.Grid(8, scale, zero_point=zero_point, signed=False)
        np.testing.assert_array_equal(qmath.quantize(x, grid), q)
        np.testing.assert_array_equal(qmath.fake_quantize(x, grid), y)


def test_infinities_saturate_and_nan_is_kept_or_refused() -> None:
    grid = qmath.Grid.symmetric(1.0, bits=3)
    x = np.array([-np.inf, np.inf, np.nan, 0.0], np.float32)
    np.testing.assert_array_equal(qmath.fake_quantize(x, grid), [-1, 1, np.nan, 0])
    np.testing.assert_array_equal(qmath.quantize(x[[0, 1, 3]], grid), [-3, 3, 0])
    with pytest.raises(ValueError, match="1 NaN among 4"):
        qmath.quantize(x, grid)


def test_out_may_be_the_input() -> None:
    grid = qmath.Grid.symmetric(1.0, bits=3)
    x = np.linspace(-2, 2, 101, dtype=np.float32)
    expected = qmath.fake_quantize(x, grid)
    assert qmath.fake_quantize(x, grid, out=x) is x
    np.testing.assert_array_equal(x, expected)
    for wrong in (np.empty(100, np.float32), np.empty(101), np.empty(202, np.float32)[::2]):
        with pytest.raises(ValueError, match="out: expected a writeable"):
            qmath.fake_quantize(x, grid, out=wrong)


def test_grids_are_values() -> None:
    scale = np.array([1.0, 2.0])
    grid = qmath.Grid(4, scale, axis=0)
    scale[0] = 9
    assert grid.scale[0] == 1.0
    assert grid == qmath.Grid(4, [1, 2], zero_point=0, axis=0)
    assert grid != qmath.Grid(4, [1, 3], axis=0)
    assert grid != qmath.Grid(5, [1, 2], axis=0)
    assert len({grid, qmath.Grid(4, [1, 2], axis=0), copy.deepcopy(grid), pickle.loads(pickle.dumps(grid))}) == 1
    qmath.fake_quantize(np.ones((2, 2)), grid)
    assert grid == qmath.Grid(4, [1, 2], axis=0)
    with pytest.raises(ValueError, match="read-only"):
        grid.scale[0] = 3.0
    with pytest.raises(AttributeError):
        grid.bits = 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qmath.Grid(0, 1.0), "bits: expected whole numbers from 1 to 16, found 0"),
        (lambda: qmath.Grid(17, 1.0), "bits"),
        (lambda: qmath.Grid(2.5, 1.0), "bits"),
        (lambda: qmath.Grid(4, 0.0), "scale: expected positive"),
        (lambda: qmath.Grid(4, -1.0), "scale: expected positive numbers, found -1.0"),
        (lambda: qmath.Grid(4, np.nan), "scale: expected finite"),
        (lambda: qmath.Grid(4, 1.0, zero_point=0.5), "zero_point: expected whole numbers"),
        (lambda: qmath.Grid(4, 1.0, zero_point=16, signed=False), "zero_point"),
        (lambda: qmath.Grid(4, [1.0, 2.0]), "pass axis="),
        (lambda: qmath.Grid(4, 1.0, axis=0), "1-D parameters along axis 0"),
        (lambda: qmath.Grid(4, [1.0, 2.0], zero_point=[1, 2, 3], axis=0), "equal lengths"),
        (lambda: qmath.Grid(4, 1.0, signed=False, narrow=True), "narrow"),
        (lambda: qmath.Grid(1, 1.0, narrow=True), "narrow"),
        (lambda: qmath.Grid.symmetric(1.0, bits=1), "from 2 to 16, found 1"),
        (lambda: qmath.Grid.symmetric(0.0, bits=4), "clip: expected positive"),
        (lambda: qmath.Grid.affine(2.0, 1.0, bits=4), "expected low <= high"),
        (lambda: qmath.fake_quantize(np.ones(3), qmath.Grid(4, [1.0, 2.0], axis=0)), "expected 2 slices along axis 0"),
        (lambda: qmath.fake_quantize(np.ones(3), qmath.Grid(4, [1.0], axis=1)), "axis"),
        (lambda: qmath.fake_quantize(np.ones(3), qmath.Grid(4, 1.0), rounding="up"), "'half_even', 'half_up'"),
        (lambda: qmath.fake_quantize(np.ones(3, np.float32), qmath.Grid(4, 1e-60)), "leaves the range of float32"),
        (lambda: qmath.dequantize([8], qmath.Grid(4, 1.0)), "expected codes in -8..7, found 8..8"),
    ],
)
def test_errors_say_what_was_expected(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_codes_must_be_integers() -> None:
    with pytest.raises(TypeError, match="integer codes, found dtype float64"):
        qmath.dequantize([1.0], qmath.Grid(4, 1.0))


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (qmath.Grid(4, 0.5, zero_point=8, signed=False), "Grid(4 bits, -4..3.5, scale=0.5, zero_point=8, unsigned)"),
        (qmath.Grid([4, 2], [0.5, 0.25], axis=0), "Grid(2..4 bits, -4..3.5, scale=0.25..0.5, 2 channels along axis 0)"),
        (qmath.Grid.with_offset(0.5, 3.5, bits=2), "Grid(2 bits, 0.5..3.5, scale=1, offset=0.5, unsigned)"),
    ],
)
def test_a_grid_shows_itself_in_a_line(grid, said):
    assert repr(grid) == said


@pytest.mark.parametrize("wrong", [None, "grid", 0.5, {"scale": 1}])
def test_what_is_no_grid_gets_a_sentence(wrong):
    for use in (qmath.quantize, qmath.fake_quantize, qmath.dequantize):
        with pytest.raises(TypeError, match=r"grid: expected a qmath\.Grid, or a result that has one .* found \w+$"):
            use(np.array([1]), wrong)
