"""Ranges from data: minimal where a minimum is promised, equal to their definitions elsewhere."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath
from qmath.empirical_clipping import GridShape
from qmath.kernels import clip as clip_kernels

SHAPES = [{"symmetric": True}, {"one_sided": True}, {}]


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.normal(size=20_000)
    return {
        "laplace": rng.laplace(size=20_000),
        "relu": np.maximum(z, 0),
        "swish": 2 * z / (1 + np.exp(-2 * z)),
        "skewed": rng.gamma(2, size=20_000) - 1,
        "positive": rng.uniform(0.4, 1, 20_000),
    }


def squared_error(x: np.ndarray, step: float, above: int, below: int) -> float:
    return float(np.mean((x - step * np.clip(np.rint(x / step), -below, above)) ** 2))


def grid_of(found: qmath.ClipRange, bits: int, **shape: bool) -> tuple[float, int, int]:
    return GridShape(bits=bits, **shape).split(found.low, found.high)


@pytest.mark.parametrize("name", tensors())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_has_the_least_error_of_all_grids(name, shape, bits) -> None:
    x = tensors()[name]
    found = qmath.clip_range(x, method="mse", bits=bits, **shape)
    step, above, below = grid_of(found, bits, **shape)
    assert found.error == pytest.approx(squared_error(x, step, above, below), rel=1e-8)
    rng = np.random.default_rng(bits)
    for _ in range(1000 if bits < 8 else 100):
        other, n = step * rng.uniform(0.6, 1.6), below
        if not shape:
            n = int(np.clip(below + rng.integers(-2, 3), 0, above + below))
        assert squared_error(x, other, above + below - n, n) >= found.error * (1 - 1e-8)


@pytest.mark.parametrize("name", tensors())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_quick_least_error_is_within_some_per_cent_of_the_exact_one(name, shape, bits) -> None:
    data = qmath.Histogram.of(tensors()[name])
    exact = qmath.clip_range(data, method="mse", bits=bits, **shape).error
    assert exact * (1 - 1e-8) <= qmath.least_error(data, bits=bits, **shape) <= exact * 1.05


@pytest.mark.parametrize("shape", SHAPES)
@given(
    values=st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=8).filter(lambda v: max(v) > 0),
    bits=st.integers(2, 3),
)
@settings(max_examples=40, deadline=None)
def test_mse_on_a_few_values_beats_a_fine_grid_of_steps(shape, values, bits) -> None:
    x = np.array(values)
    found = qmath.clip_range(x, method="mse", bits=bits, **shape)
    steps = GridShape(bits=bits, **shape).steps
    splits = [steps // 2] if "symmetric" in shape else [0] if "one_sided" in shape else range(steps + 1)
    for step, below in itertools.product(np.linspace(0.01, 41, 1500), splits):
        codes = np.clip(np.rint(x / step), -below, steps - below)
        assert np.mean((x - step * codes) ** 2) >= found.error - 1e-7


@pytest.mark.parametrize("name", tensors())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", qmath.clip_methods())
def test_a_histogram_gives_nearly_the_range_of_its_data(name, shape, method) -> None:
    x = tensors()[name]
    exact = qmath.clip_range(x, method=method, bits=4, **shape)
    binned = qmath.clip_range(qmath.Histogram.of(x), method=method, bits=4, **shape)
    grid = grid_of(binned, 4, **shape)
    true_error = squared_error(x, *grid)
    assert binned.error == pytest.approx(true_error, rel=0.02, abs=1e-6)
    if method != "kl":  # its bins differ: 2048 over the data's own range here, a power of two there
        assert true_error == pytest.approx(exact.error, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", qmath.clip_methods())
@pytest.mark.parametrize("scale", [1e-5, 3.0, 1e4])
def test_ranges_follow_the_units(shape, method, scale) -> None:
    x = tensors()["swish"]
    one = qmath.clip_range(x, method=method, bits=4, **shape)
    scaled = qmath.clip_range(scale * x, method=method, bits=4, **shape)
    assert scaled.low == pytest.approx(scale * one.low, rel=1e-5)
    assert scaled.high == pytest.approx(scale * one.high, rel=1e-5)
    assert scaled.error == pytest.approx(scale**2 * one.error, rel=1e-6)


@pytest.mark.parametrize("method", qmath.clip_methods())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", tensors())
def test_zero_is_inside_and_the_shape_is_kept(name, shape, method) -> None:
    for bits in (2, 4, 8):
        found = qmath.clip_range(tensors()[name], method=method, bits=bits, **shape)
        assert found.low <= 0 <= found.high
        assert found.low < found.high
        assert found.error > 0
        if "symmetric" in shape:
            assert found.low == -found.high
        if "one_sided" in shape:
            assert found.low == 0


def test_max_and_percentile_are_their_definitions() -> None:
    x = tensors()["laplace"]
    found = qmath.clip_range(x, method="max", bits=8)
    assert (found.low, found.high) == (x.min(), x.max())
    found = qmath.clip_range(x, method="percentile", bits=8, percentile=99.0)
    np.testing.assert_allclose((found.low, found.high), np.quantile(x, (0.01, 0.99)), rtol=1e-12)
    found = qmath.clip_range(x, method="percentile", bits=8, percentile=99.0, symmetric=True)
    assert found.high == pytest.approx(np.quantile(np.abs(x), 0.99), rel=1e-12)


@pytest.mark.parametrize("family", ["laplace", "gaussian"])
def test_aciq_is_the_analytic_clip_of_the_fitted_prior(family) -> None:
    x = tensors()["laplace"]
    loc = float(x.mean())
    scale = np.abs(x - loc).mean() if family == "laplace" else x.std()
    prior = (qmath.Laplace if family == "laplace" else qmath.Gaussian)(loc, scale)
    clip = float(qmath.prior_clip(prior, 4))
    found = qmath.clip_range(x, method="aciq", bits=4, family=family)
    assert found.high == pytest.approx(loc + clip, rel=1e-9)
    assert found.low == pytest.approx(loc - clip, rel=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("relu", [False, True])
def test_many_histograms_at_once(bits, relu) -> None:
    """The same ranges and errors as one by one, and least errors that no range of a fine scan undercuts."""
    rng = np.random.default_rng(bits)
    data = [rng.normal(0.5, 2.0, 5000), rng.laplace(-1.0, 0.3, 5000), rng.exponential(1.0, 5000) - 0.3, rng.random(99)]
    histograms = [qmath.Histogram.of(np.maximum(x, 0) if relu else x) for x in data]
    found = qmath.prior_ranges(histograms, bits=bits, one_sided=relu)
    for i, histogram in enumerate(histograms):
        alone = qmath.clip_range(histogram, method="aciq", bits=bits, one_sided=relu)
        assert (found.low[i], found.high[i]) == pytest.approx((alone.low, alone.high), rel=1e-9)
        assert found.error[i] == pytest.approx(alone.error, rel=1e-6, abs=1e-12)
        assert found.least[i] == pytest.approx(qmath.least_error(histogram, bits=bits, one_sided=relu), rel=1e-6)
    with pytest.raises(ValueError, match="no positive value, or no spread"):
        qmath.prior_ranges([qmath.Histogram.of(np.zeros(9))], bits=bits, one_sided=relu)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("law", [qmath.Laplace, qmath.Gaussian])
@pytest.mark.parametrize("loc", [-1.0, 0.0, 1.5])
def test_the_prior_of_rectified_data_comes_near_the_least_error(bits, law, loc) -> None:
    histogram = qmath.Histogram.of(law(loc, 1.0, True).sample(100_000, seed=3))
    found = qmath.prior_ranges([histogram], bits=bits, one_sided=True)
    assert found.error[0] <= 10**0.05 * found.least[0]


@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
def test_the_prior_above_the_smallest_value_describes_silu(spread) -> None:
    x = np.random.default_rng(0).laplace(0.0, spread, 100_000)
    histogram = qmath.Histogram.of(x / (1 + np.exp(-x)))
    found = qmath.prior_ranges([histogram], bits=4, one_sided=False)
    assert found.low[0] == pytest.approx(-0.278, abs=histogram.width)
    assert found.error[0] <= 10**0.1 * found.least[0]


@pytest.mark.parametrize("relu", [False, True])
def test_analytic_and_empirical_optimum_agree_on_data_from_the_prior(relu) -> None:
    x = qmath.Laplace(0.0, 1.0, relu).sample(200_000, seed=3)
    shape = {"one_sided": True} if relu else {"symmetric": True}
    exact = float(qmath.laplace_clip(1.0, 4, relu=relu, exact=True, grid="midtread"))
    assert qmath.clip_range(x, method="mse", bits=4, **shape).high == pytest.approx(exact, rel=0.03)


def reference_divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """KL of a window [0, kept) written out bin by bin."""
    p = counts[:kept].astype(float)
    q = np.zeros(kept)
    for g in range(levels):
        left, right = g * kept // levels, (g + 1) * kept // levels
        filled = p[left:right] > 0
        if filled.any():
            q[left:right][filled] = p[left:right].sum() / filled.sum()
    outside = counts[kept:].sum()
    if outside > 0 and p[-1] == 0:
        return np.inf
    p[-1] += outside
    p, q = p / p.sum(), q / q.sum()
    at = p > 0
    return float(np.sum(p[at] * np.log(p[at] / q[at])))


def test_kl_windows_are_scored_as_written_out() -> None:
    from qmath.kernels import clip as clip_kernels

    counts = np.histogram(np.abs(tensors()["laplace"]), 300)[0].astype(float)
    scores = {kept: reference_divergence(counts, kept, 16) for kept in range(16, 301)}
    best = min(scores, key=scores.__getitem__)
    assert clip_kernels.best_window(counts, 16, 0, False) == (0, best)


def test_a_spike_at_zero_does_not_rule_the_divergence() -> None:
    x = np.random.default_rng(0).exponential(size=50_000)
    spiked = np.concatenate((x, np.zeros(500_000)))
    plain = qmath.clip_range(x, method="kl", bits=4, one_sided=True)
    found = qmath.clip_range(spiked, method="kl", bits=4, one_sided=True)
    assert found.high == pytest.approx(plain.high, rel=0.2)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weight_clip_is_the_least_squared_error_of_each_channel(bits, dtype) -> None:
    w = np.random.default_rng(bits).standard_t(4, (6, 16, 3, 3)).astype(dtype)
    top = 2 ** (bits - 1) - 1
    clip = qmath.weight_clip(w, bits=bits)
    rows = w.reshape(6, -1).astype(np.float64)

    def error(c: np.ndarray) -> np.ndarray:
        step = (c / top)[:, None]
        return np.sum((rows - step * np.clip(np.rint(rows / step), -top, top)) ** 2, axis=1)

    least = error(clip)
    for factor in np.random.default_rng(0).uniform(0.4, 2.5, 1000):
        assert np.all(error(clip * factor) >= least * (1 - 1e-12))
    for row, c, e in zip(rows, clip, least, strict=True):
        other = qmath.clip_range(row, method="mse", bits=bits, symmetric=True)
        assert e / row.size == pytest.approx(other.error, rel=1e-8)
        assert c == pytest.approx(other.high, rel=1e-3)


@given(values=st.lists(st.integers(-9, 9), min_size=1, max_size=6).filter(any), bits=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_weight_clip_on_a_few_values_beats_a_fine_grid_of_steps(values, bits) -> None:
    w = np.array([values], dtype=np.float64)
    top = 2 ** (bits - 1) - 1
    steps = np.append(np.linspace(0.01, 20, 4000), float(qmath.weight_clip(w, bits=bits)[0]) / top)[:, None]
    errors = np.sum((w - steps * np.clip(np.rint(w / steps), -top, top)) ** 2, axis=1)
    assert errors[-1] <= errors.min() + 1e-12


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("columns", [1, 9, 100])
def test_weight_range_is_the_least_squared_error_of_each_channel(bits, columns) -> None:
    w = np.random.default_rng(bits).normal(0.3, 1.0, (12, columns)).astype(np.float32)
    w[3], w[4], w[5, :] = 0.0, np.abs(w[4]), np.round(w[5])
    low, high = qmath.weight_range(w, bits=bits)
    assert low.shape == high.shape == (12,)
    assert (low[3], high[3]) == (0.0, 0.0)
    for row, ends in zip(w, zip(low, high, strict=True), strict=True):
        if row.any():
            best = qmath.clip_range(row, method="mse", bits=bits)
            step = (ends[1] - ends[0]) / (2**bits - 1)
            codes = np.clip(np.rint(row / step), np.rint(ends[0] / step), np.rint(ends[1] / step))
            error = float(np.mean((row.astype(np.float64) - codes * step) ** 2))
            assert error <= best.error * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("method", ["mse", "max", "percentile", "kl"])
def test_weight_range_along_any_axis(method) -> None:
    w = np.random.default_rng(2).normal(0.2, 1.0, (3, 40, 5))
    for axis in range(3):
        low, high = qmath.weight_range(w, bits=4, method=method, axis=axis)
        row = np.moveaxis(w, axis, 0)[1]
        alone = qmath.weight_range(row, bits=4, method=method, axis=None)
        assert (low[1], high[1]) == pytest.approx(tuple(map(float, alone)), rel=1e-9)
    if method == "max":
        np.testing.assert_array_equal(low, w.min((0, 1)))
        np.testing.assert_array_equal(high, w.max((0, 1)))


@pytest.mark.parametrize("method", qmath.clip_methods())
def test_weight_clip_along_any_axis(method) -> None:
    w = np.random.default_rng(0).normal(size=(4, 5, 6))
    for axis in range(3):
        clips = qmath.weight_clip(w, bits=4, method=method, axis=axis)
        assert clips.shape == (w.shape[axis],)
        channel = np.take(w, 1, axis=axis)
        alone = float(qmath.weight_clip(channel, bits=4, method=method, axis=None))
        assert clips[1] == pytest.approx(alone, rel=1e-12)
        order = np.random.default_rng(1).permutation(w.shape[axis])
        shuffled = qmath.weight_clip(np.take(w, order, axis=axis), bits=4, method=method, axis=axis)
        np.testing.assert_array_equal(shuffled, clips[order])
    assert qmath.weight_clip(w, bits=4, axis=None).shape == ()


def test_a_channel_of_zeros_gets_any_grid() -> None:
    w = np.array([[0.0, 0.0], [1.0, -2.0]])
    for method in qmath.clip_methods():
        clips = qmath.weight_clip(w, bits=8, method=method)
        assert clips[0] == 1.0
        assert clips[1] > 0


def test_methods_register_once() -> None:
    with pytest.raises(ValueError, match="already registered"):
        qmath.clip_method("mse")(lambda sample, shape: (0.0, 1.0))


def test_what_has_no_range() -> None:
    for data, message in (([], "at least one"), ([0.0, 0.0], "zero"), ([1.0, np.nan], "finite"), ([np.inf], "finite")):
        with pytest.raises(ValueError, match=message):
            qmath.clip_range(data, method="mse", bits=4)
    for method in qmath.clip_methods():
        with pytest.raises(ValueError, match="zero"):
            qmath.clip_range(qmath.Histogram.of([0.0, 0.0]), method=method, bits=4)
    with pytest.raises(ValueError, match="no positive"):
        qmath.clip_range([-1.0, -2.0], method="max", bits=4, one_sided=True)
    with pytest.raises(ValueError, match="max"):
        qmath.clip_range([1.0], method="median", bits=4)
    with pytest.raises(ValueError, match="sharpness"):
        qmath.clip_range([1.0], method="max", bits=4, sharpness=2)
    with pytest.raises(ValueError, match="not both"):
        qmath.clip_range([1.0], method="max", bits=4, one_sided=True, symmetric=True)
    with pytest.raises(ValueError, match="axis"):
        qmath.weight_clip(np.ones((2, 2)), bits=4, axis=2)


def test_values_far_below_the_step_change_nothing() -> None:
    """Where 1 / x is beyond every integer too: nothing is written outside of the buckets."""
    tiny = np.array([[1.0, 0.5, 0.3, 1e-25, 1e-30, 3e-20, 1e-300]])
    found = [clip_kernels.least_squares_clips(np.ascontiguousarray(rows), 7) for rows in (tiny, tiny[:, :3])]
    np.testing.assert_allclose(*found, rtol=1e-12)


@pytest.mark.parametrize("method", ["mse", "max", "percentile", "kl", "aciq"])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("shape", [{}, {"symmetric": True}, {"one_sided": True}])
def test_a_range_hands_on_the_grid_that_its_error_is_about(method, bits, shape):
    x = np.random.default_rng(1).normal(0.3, 1.0, size=4000)
    x = np.maximum(x, 0) if "one_sided" in shape else x
    best = qmath.clip_range(x, method=method, bits=bits, **shape)
    assert best.grid == qmath.Grid.affine(best.low, best.high, bits=bits) or shape
    assert np.mean((x - qmath.fake_quantize(x, best)) ** 2) == pytest.approx(best.error, rel=1e-9)
    assert best.sqnr_db == pytest.approx(float(qmath.sqnr_db(x, qmath.fake_quantize(x, best))), abs=1e-6)
    assert repr(best).startswith(f"ClipRange({best.low:.4g}..{best.high:.4g}, {bits} bits")


def test_the_default_is_the_least_error():
    x = np.random.default_rng(1).laplace(size=4000)
    best = qmath.clip_range(x, bits=3)
    others = [qmath.clip_range(x, bits=3, method=method).error for method in qmath.clip_methods() if method != "mse"]
    assert best.method == "mse"
    assert best.error < min(others)


def test_a_range_is_drawn():
    pytest.importorskip("matplotlib").use("agg")
    x = np.random.default_rng(1).laplace(size=4000)
    for best in (qmath.clip_range(x, bits=3), qmath.clip_range(qmath.Histogram.of(x), bits=8, symmetric=True)):
        ax = best.plot()
        counts = ax.patches[0].get_data().values
        assert counts.sum() == pytest.approx(4000)
        assert best.plot(ax) is ax
        drawn = {line.get_xdata()[0] for line in ax.lines}
        assert drawn == {best.low, best.high}


def test_without_matplotlib_a_picture_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'plot\(\) needs matplotlib: pip install "qgraph-onnx\[analysis\]"'):
        qmath.clip_range([1.0, 2.0], bits=3).plot()
