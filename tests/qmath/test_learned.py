"""LSQ and LSQ+: known values, gradients against central differences, and initial values against searches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import qmath

CONFIGURATIONS = [1, 2, 3, 4]


def swish(seed: int, size: int) -> np.ndarray:
    z = 2 * np.random.default_rng(seed).normal(size=size)
    return z / (1 + np.exp(-z))


def mean_error(x, scale, offset, *, bits, configuration) -> float:
    y = qmath.lsq_quantize(x, scale, offset, bits=bits, configuration=configuration)
    return float(np.mean((y - x) ** 2))


def test_configurations_are_those_of_table_1() -> None:
    rows = [(c.signed, c.offset, c.code_range(4)) for c in map(qmath.lsq_configuration, CONFIGURATIONS)]
    unsigned, signed = (0, 15), (-8, 7)
    assert rows == [
        (False, False, unsigned),
        (True, False, signed),
        (True, True, signed),
        (False, True, unsigned),
    ]


def test_known_values() -> None:
    x = np.array([-1.0, 0.0, 0.3, 0.55, 1.3, 9.0])
    y = qmath.lsq_quantize(x, 0.5, -0.25, bits=2)
    np.testing.assert_allclose(y, [-0.25, -0.25, 0.25, 0.75, 1.25, 1.25])  # v = -1.5, 0.5, 1.1, 1.6, 3.1, 18.5
    gradients = qmath.lsq_gradients(np.ones(6), x, 0.5, -0.25, bits=2)
    np.testing.assert_array_equal(gradients.x, [0, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(gradients.scale, 0 - 0.5 - 0.1 + 0.4 + 3 + 3)
    np.testing.assert_allclose(gradients.offset, 3.0)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_gradients_are_central_differences_of_the_smoothed_forward(configuration, axis) -> None:
    """round(v) becomes v + c with c fixed: the straight-through estimator, as a function one can differentiate."""
    rng = np.random.default_rng(configuration)
    chosen = qmath.lsq_configuration(configuration)
    n, p = chosen.code_range(3)
    x = rng.normal(0, 2, (3, 4, 5))
    shape = () if axis is None else (x.shape[axis],)
    along = [1, 1, 1]
    if axis is not None:
        along[axis] = -1
    scale = rng.uniform(0.2, 0.5, shape)
    offset = rng.uniform(-0.5, 0.5, shape) if chosen.offset else np.zeros(shape)
    upstream = rng.normal(size=x.shape)

    def v_of(x, scale, offset):
        return (x - offset.reshape(along)) / scale.reshape(along)

    v0 = v_of(x, scale, offset)
    residue = np.rint(v0) - v0
    assert np.abs(v0 - n).min() > 1e-3
    assert np.abs(v0 - p).min() > 1e-3

    def loss(x, scale, offset) -> float:
        v = v_of(x, scale, offset)
        smooth = np.where((n < v0) & (v0 < p), v + residue, np.clip(v, n, p))
        return float((upstream * (smooth * scale.reshape(along) + offset.reshape(along))).sum())

    gradients = qmath.lsq_gradients(upstream, x, scale, offset, bits=3, configuration=configuration, axis=axis)
    assert gradients.scale.shape == gradients.offset.shape == shape
    step = 1e-6
    for name, value in (("x", x), ("scale", scale), ("offset", offset)):
        if name == "offset" and not chosen.offset:
            np.testing.assert_array_equal(gradients.offset, np.zeros(shape))
            continue
        direction = rng.normal(size=value.shape)
        ends = []
        for sign in (1, -1):
            arguments = {"x": x, "scale": scale, "offset": offset, name: value + sign * step * direction}
            ends.append(loss(**arguments))
        slope = float((getattr(gradients, name) * direction).sum())
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 99), configuration=st.sampled_from(CONFIGURATIONS), power=st.integers(-10, 10))
@settings(max_examples=40, deadline=None)
def test_scale_equivariance_and_idempotence(seed, configuration, power) -> None:
    factor = 2.0**power
    x = np.random.default_rng(seed).normal(size=200)
    scale, offset = qmath.minmax_parameters(-1.0, 2.0, bits=3, configuration=configuration)
    options = {"bits": 3, "configuration": configuration}
    y = qmath.lsq_quantize(x, scale, offset, **options)
    np.testing.assert_array_equal(
        qmath.lsq_quantize(x * factor, scale * factor, offset * factor, **options), y * factor
    )
    np.testing.assert_allclose(qmath.lsq_quantize(y, scale, offset, **options), y, rtol=0, atol=1e-14)
    upstream = np.random.default_rng(seed + 1).normal(size=200)
    one = qmath.lsq_gradients(upstream, x, scale, offset, **options)
    other = qmath.lsq_gradients(upstream, x * factor, scale * factor, offset * factor, factor=0.5, **options)
    np.testing.assert_array_equal(other.x, one.x)
    np.testing.assert_allclose(other.scale, 0.5 * one.scale, rtol=1e-12)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_last_codes_are_saturated(configuration) -> None:
    """At n and p themselves, x has no gradient, and that of the scale is the code (Eq. 3 and 4)."""
    n, p = qmath.lsq_configuration(configuration).code_range(3)
    for code, inside in ((n, 0.0), (p, 0.0), (n + 1, 1.0), (p - 1, 1.0)):
        found = qmath.lsq_gradients([1.0], [0.5 * code], 0.5, bits=3, configuration=configuration)
        assert (found.x[0], found.scale) == (inside, 0.0 if inside else code)


def test_forward_is_the_grid_with_an_offset() -> None:
    x = swish(0, 1000)
    scale, offset = qmath.minmax_parameters(-0.25, 2.0, bits=4)
    grid = qmath.Grid(4, scale, offset=offset, signed=False)
    np.testing.assert_array_equal(qmath.lsq_quantize(x, scale, offset, bits=4), qmath.fake_quantize(x, grid))


def test_gradient_scale() -> None:
    assert qmath.lsq_gradient_scale(100, bits=3, configuration=2) == 1 / math.sqrt(100 * 3)
    assert qmath.lsq_gradient_scale(64, bits=2, configuration=1) == 1 / math.sqrt(64 * 3)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_spans_the_range(configuration, bits) -> None:
    low, high = np.array([-0.278, -2.0, 0.0]), np.array([4.0, 1.0, 3.0])
    scale, offset = qmath.minmax_parameters(low, high, bits=bits, configuration=configuration)
    n, p = qmath.lsq_configuration(configuration).code_range(bits)
    if configuration > 2:  # Eq. 6
        np.testing.assert_allclose([(low - offset) / scale, (high - offset) / scale], [[n] * 3, [p] * 3], atol=1e-12)
    else:
        np.testing.assert_array_equal(offset, 0)
        reached = np.maximum(high / scale / p, low / scale / n if n else -np.inf)
        np.testing.assert_allclose(reached, 1, rtol=1e-12)


def test_lsq_and_lsqplus_scales_of_known_weights() -> None:
    w = np.array([[1.0, -1.0, 3.0, -3.0], [2.0, 2.0, 2.0, 4.0]])
    np.testing.assert_allclose(qmath.lsq_scale(w, bits=4), 2 * 2.25 / math.sqrt(7))
    np.testing.assert_allclose(qmath.lsq_scale(w, bits=4, axis=0), 2 * np.array([2.0, 2.5]) / math.sqrt(7))
    mean, sigma = np.array([0.0, 2.5]), np.sqrt([5.0, 0.75])
    np.testing.assert_allclose(qmath.lsqplus_weight_scale(w, bits=4, axis=0), (mean + 3 * sigma) / 8)
    np.testing.assert_allclose(qmath.lsqplus_weight_scale(-w, bits=4, axis=0), (mean + 3 * sigma) / 8)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_mse_parameters_beat_every_sampled_pair(bits, configuration) -> None:
    x = swish(0, 2000)
    scale, offset = qmath.mse_parameters(x, bits=bits, configuration=configuration)
    least = mean_error(x, scale, offset, bits=bits, configuration=configuration)
    rng = np.random.default_rng(0)
    for spread in (1.0, 0.05, 0.001):
        for _ in range(300):
            s = scale * np.exp(spread * rng.normal())
            o = offset + spread * scale * rng.normal() if configuration > 2 else 0.0
            assert mean_error(x, s, o, bits=bits, configuration=configuration) >= least * (1 - 2e-3)
    if configuration < 3:
        assert offset == 0.0
        best = minimize_scalar(
            lambda s: mean_error(x, s, 0.0, bits=bits, configuration=configuration),
            bounds=(scale / 1.5, scale * 1.5),
            method="bounded",
        )
        assert least <= best.fun * (1 + 1e-3)


def test_mse_parameters_of_a_histogram_are_those_of_its_data() -> None:
    x = swish(1, 100_000)
    scale, offset = qmath.mse_parameters(x, bits=4)
    of_counts = qmath.mse_parameters(qmath.Histogram.of(x), bits=4)
    np.testing.assert_allclose(of_counts, (scale, offset), rtol=1e-12)
    exact = qmath.mse_parameters(x[:4000], bits=4)
    counted = qmath.mse_parameters(qmath.Histogram.of(x[:4000]), bits=4)
    errors = [mean_error(x[:4000], *pair, bits=4, configuration=4) for pair in (exact, counted)]
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-3)


def test_a_representable_sample_is_met_exactly() -> None:
    x = 0.3 * np.arange(16) - 0.7
    scale, offset = qmath.mse_parameters(x, bits=4)
    assert mean_error(x, scale, offset, bits=4, configuration=4) < 1e-28


@pytest.mark.parametrize("configuration", [3, 4])
@pytest.mark.parametrize("low", [-0.27, -2.0])
def test_the_lowest_level_is_held(configuration, low) -> None:
    x = swish(2, 2000)
    free = mean_error(x, *qmath.mse_parameters(x, bits=3), bits=3, configuration=4)
    scale, offset = qmath.mse_parameters(x, bits=3, configuration=configuration, low=low)
    lowest = qmath.lsq_configuration(configuration).code_range(3)[0]
    assert offset + lowest * scale == pytest.approx(low, rel=1e-12)

    def error(s):
        return mean_error(x, s, low - lowest * s, bits=3, configuration=configuration)

    others = scale * np.exp(np.linspace(-1, 1, 201))
    assert free * (1 - 1e-9) <= error(scale) <= min(map(error, others)) * (1 + 2e-3)


def test_folded_offset_is_the_share_of_the_output() -> None:
    rng = np.random.default_rng(0)
    w, codes, scale, offset = rng.normal(size=(3, 5)), rng.integers(0, 16, 5), 0.2, -0.4
    np.testing.assert_allclose(
        w @ (codes * scale + offset), w @ (codes * scale) + qmath.folded_offset(w, offset), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qmath.lsq_configuration(5), "configuration: expected 1, 2, 3 or 4, found 5"),
        (lambda: qmath.lsq_quantize([1.0], 1.0, 0.5, bits=4, configuration=1), "configuration 1 has none"),
        (lambda: qmath.lsq_quantize([1.0], -1.0, bits=4), "scale: expected positive"),
        (lambda: qmath.lsq_quantize([np.nan], 1.0, bits=4), "x: expected finite"),
        (lambda: qmath.lsq_quantize([1.0], [1.0], bits=4), "scalars without axis"),
        (lambda: qmath.lsq_quantize([1.0], 1.0, bits=1, configuration=2), "from 2 to 16"),
        (lambda: qmath.lsq_gradients([1.0, 2.0], [1.0], 1.0, bits=4), r"expected the shape \(1,\) of x"),
        (lambda: qmath.lsq_gradient_scale(0, bits=4), "count: expected a whole number"),
        (lambda: qmath.lsq_scale(np.zeros(3), bits=4), "a non-zero value"),
        (lambda: qmath.lsqplus_weight_scale([[1.0], [0.0]], bits=4, axis=0), "a non-zero value"),
        (lambda: qmath.mse_parameters(np.zeros(3), bits=4), "a non-zero value"),
        (lambda: qmath.mse_parameters([1.0, 2.0], bits=4, configuration=2, low=0.0), "configuration 2 has no offset"),
        (lambda: qmath.minmax_parameters(1.0, 0.0, bits=4), "low <= high"),
    ],
)
def test_errors_say_what_was_expected(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
