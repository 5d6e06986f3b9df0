"""Second-order rounding against brute force, and the moments that it needs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import qmath

RNG = np.random.default_rng(18)


def correlated(rows: int, columns: int) -> np.ndarray:
    own, shared = RNG.normal(size=(rows, columns)), RNG.normal(size=(rows, columns))
    return own + shared @ RNG.normal(size=(columns, columns)) + RNG.normal(size=columns)


def moments(x: np.ndarray, y: np.ndarray) -> qmath.Moments:
    seen = qmath.MomentsAccumulator()
    seen.update(x[None], y)
    return seen.result()


def output_error(x: np.ndarray, y: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean square of the error of the outputs that no bias takes away."""
    return (y - x @ values.T).var(axis=0)


def laid(grid: qmath.Grid, found: qmath.SecondOrderRounding) -> np.ndarray:
    values = qmath.dequantize(found.codes, grid).astype(np.float64)
    rows = values.reshape(len(values), -1)
    return rows * (found.factor * found.gain)[:, None]


@pytest.mark.parametrize("bits", [2, 3])
def test_close_to_the_best_of_all_codes(bits):
    ratios = []
    for _ in range(12):
        x, weight = correlated(300, 4), RNG.normal(size=(5, 4))
        form = np.cov(x.T, bias=True)
        grid = qmath.Grid(bits, np.full(5, 3.0 / 2**bits), axis=0)
        found = qmath.round_second_order(weight, form, grid, damping=0.0)
        levels = np.arange(grid.qmin, grid.qmax + 1) * grid.scale[0]
        every = np.array(list(itertools.product(levels, repeat=4)))
        for row, error in zip(weight, found.error, strict=True):
            away = every - row
            ratios.append(error / np.einsum("ik,kl,il->i", away, form, away).min())
    assert min(ratios) > 1 - 1e-9
    assert np.median(ratios) < 1 + 1e-6
    assert np.quantile(ratios, 0.9) < 1.5


@pytest.mark.parametrize("order", ["activity", "given"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_is_that_of_the_outputs_and_never_above_nearest(bits, order):
    x, weight = correlated(2000, 24), RNG.normal(size=(16, 24))
    noisy = x + RNG.normal(size=x.shape) * 0.5
    seen = moments(noisy, x @ weight.T)
    grid = qmath.Grid.affine(weight.min(axis=1), weight.max(axis=1), bits=bits, signed=True, axis=0)
    aim = np.linalg.solve(seen.hessian[0], seen.target.T).T
    given = {"aim": aim, "damping": 0.0, "order": order}
    found = qmath.round_second_order(weight, seen.hessian, grid, factors=(1.0, 0.8, 0.6), refit=True, **given)
    nearest = qmath.fake_quantize(weight, grid)
    floor = output_error(noisy, x @ weight.T, aim)
    assert (found.error <= found.nearest_error).all()
    np.testing.assert_allclose(output_error(noisy, x @ weight.T, nearest) - floor, found.nearest_error, rtol=1e-6)
    np.testing.assert_allclose(output_error(noisy, x @ weight.T, laid(grid, found)) - floor, found.error, rtol=1e-5)
    assert found.error.sum() < found.nearest_error.sum()


def test_rows_beat_nearest_by_far_where_columns_are_correlated():
    x, weight = correlated(3000, 64), RNG.normal(size=(32, 64))
    grid = qmath.Grid.symmetric(np.abs(weight).max(axis=1), bits=4, axis=0)
    found = qmath.round_second_order(weight, np.cov(x.T), grid)
    assert found.error.sum() < 0.55 * found.nearest_error.sum()


def test_nearest_is_kept_where_nothing_is_better():
    """Without correlations the nearest code of every weight is the best one."""
    weight = RNG.normal(size=(8, 16))
    grid = qmath.Grid(4, 0.3)
    found = qmath.round_second_order(weight, np.eye(16), grid)
    assert (found.codes == qmath.quantize(weight, grid)).all()
    np.testing.assert_array_equal(found.error, found.nearest_error)


def test_groups_are_rounded_each_by_its_own_moments():
    weight = RNG.normal(size=(6, 1, 3, 3))
    forms = np.stack([np.cov(correlated(500, 9).T) for _ in range(6)])
    grid = qmath.Grid(3, np.full(6, 0.5), axis=0)
    together = qmath.round_second_order(weight, forms, grid)
    assert together.codes.shape == weight.shape
    for row in range(6):
        alone = qmath.round_second_order(weight[row : row + 1], forms[row], qmath.Grid(3, [0.5], axis=0))
        assert (alone.codes == together.codes[row]).all()


def test_grids_in_groups_and_with_zero_points():
    x, weight = correlated(800, 12), RNG.normal(size=(4, 12)) + 0.5
    scale, zero = RNG.uniform(0.2, 0.4, 12), RNG.integers(-4, 4, 12)
    grid = qmath.Grid(4, scale, zero_point=zero, axis=1, group=4)
    found = qmath.round_second_order(weight, np.cov(x.T), grid, damping=0.0)
    away = qmath.dequantize(found.codes, grid) - weight
    np.testing.assert_allclose(np.einsum("rk,kl,rl->r", away, np.cov(x.T), away), found.error, rtol=1e-4)
    assert found.codes.min() >= -8
    assert found.codes.max() <= 7


def test_dead_and_equal_columns_do_no_harm():
    x = correlated(200, 6)
    x[:, 2] = 0.0
    x[:, 4] = x[:, 3]
    form = np.cov(x.T)
    found = qmath.round_second_order(RNG.normal(size=(3, 6)), form, qmath.Grid(4, 0.2))
    assert np.isfinite(found.error).all()
    nothing = qmath.round_second_order([[0.3, 0.6]], np.zeros((2, 2)), qmath.Grid(4, 1.0))
    assert nothing.codes.tolist() == [[0, 1]]


def test_same_codes_on_any_number_of_threads():
    x, weight = correlated(600, 32), RNG.normal(size=(64, 32))
    form, grid, before = np.cov(x.T), qmath.Grid(4, 0.4), qmath.get_threads()
    found = []
    for threads in (1, 3):
        qmath.set_threads(threads)
        found.append(qmath.round_second_order(weight, form, grid))
    qmath.set_threads(before)
    assert found[0] == found[1]


def test_known_moments_of_neighbours_keep_the_sum_of_a_kernel():
    weight = RNG.normal(size=(16, 4, 3, 3)) * 0.5
    form = qmath.neighbour_moments(np.ones(4), taps=9, correlation=0.9)
    grid = qmath.Grid(3, 0.5)
    found = qmath.round_second_order(weight, form, grid)
    sums = [
        np.abs((qmath.dequantize(codes, grid) - weight).sum(axis=(2, 3))).mean()
        for codes in (found.codes, qmath.quantize(weight, grid))
    ]
    assert sums[0] < 0.5 * sums[1]


def test_moments_do_not_depend_on_batches_and_survive_a_large_mean():
    x, y = RNG.normal(size=(2, 300, 3)) + 1e4, RNG.normal(size=(300, 4))
    whole, parts = qmath.MomentsAccumulator(), qmath.MomentsAccumulator()
    whole.update(x, y)
    for start in range(0, 300, 70):
        parts.update(x[:, start : start + 70], y[start : start + 70])
    for found in (whole.result(), parts.result()):
        for group in range(2):
            np.testing.assert_allclose(found.hessian[group], np.cov(x[group].T, bias=True), rtol=1e-7, atol=1e-9)
            cross = (y[:, 2 * group : 2 * group + 2] - y.mean(axis=0)[2 * group : 2 * group + 2]).T
            wanted = cross @ (x[group] - x[group].mean(axis=0)) / 300
            np.testing.assert_allclose(found.target[2 * group : 2 * group + 2], wanted, atol=1e-9)
        np.testing.assert_allclose(found.target_variance, y.var(axis=0))
        np.testing.assert_allclose(found.mean, x.mean(axis=1))


def test_operands_that_do_not_vary_have_no_moments():
    x = np.repeat(RNG.normal(size=(2, 1, 40)), 4096, axis=1).astype(np.float32)
    x[0, :, :8] += RNG.normal(size=(4096, 8)).astype(np.float32)
    y, times = RNG.normal(size=(4096, 4)).astype(np.float32), RNG.random(4096)
    halves = []
    for start in (0, 1024):
        seen = qmath.MomentsAccumulator()
        for part in (slice(start, start + 1024), slice(start + 2048, start + 3072)):
            seen.update(x[:, part], y[part], times[part])
        halves.append(seen.result())
    for found in halves:
        still = np.arange(40) >= 8
        for kept in (found.hessian[0, still], found.hessian[1], found.target[:2, still], found.target[2:]):
            assert not kept.any()
        assert np.diag(found.hessian[0])[:8] == pytest.approx(1, abs=0.2)
    weight = RNG.normal(size=(4, 40))
    aim = qmath.aimed_weights(weight, halves)
    np.testing.assert_array_equal(aim[:2, 8:], weight[:2, 8:])
    np.testing.assert_array_equal(aim[2:], weight[2:])


def test_a_pair_counts_as_often_as_its_weight_says():
    x, y = RNG.normal(size=(1, 30, 3)) + 2, RNG.normal(size=(30, 2))
    times = RNG.integers(0, 4, 30)
    weighted, repeated = qmath.MomentsAccumulator(), qmath.MomentsAccumulator()
    weighted.update(x, y, times)
    repeated.update(np.repeat(x, times, axis=1), np.repeat(y, times, axis=0))
    one, other = weighted.result(), repeated.result()
    for name in ("hessian", "target", "mean", "target_mean", "target_variance", "count"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"weights: expected shape \(30,\)"):
        weighted.update(x, y, times[:3])


def test_aim_helps_on_new_samples_and_is_the_weight_where_it_would_not():
    weight, mix = RNG.normal(size=(6, 40)), RNG.normal(size=(40, 40))

    def drawn(rows: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
        x = RNG.normal(size=(rows, 40)) @ mix
        return x + noise * RNG.normal(size=x.shape), x @ weight.T + RNG.normal(size=(rows, 6))

    fresh = {noise: drawn(20000, noise) for noise in (0.0, 2.0)}
    for rows, noise in ((45, 0.0), (45, 2.0), (2000, 2.0)):
        aim = qmath.aimed_weights(weight, [moments(*drawn(rows, noise)) for _ in range(2)])
        before, after = (output_error(*fresh[noise], w).sum() for w in (weight, aim))
        assert after < (1.05 if rows == 45 else 0.8) * before
    with pytest.raises(ValueError, match="expected two Moments"):
        qmath.aimed_weights(weight, [])


def test_moments_of_two_sets_are_those_of_their_union():
    x, y = RNG.normal(size=(2, 90, 3)) * [1.0, 2.0, 3.0] + 5.0, RNG.normal(size=(90, 4)) + 1.0
    parts = []
    for some in (slice(0, 30), slice(30, 90)):
        seen = qmath.MomentsAccumulator()
        seen.update(x[:, some] + (some.start > 0), y[some] + x[0, some, :1])
        parts.append(seen)
    whole = qmath.MomentsAccumulator()
    whole.update(x[:, :30], y[:30] + x[0, :30, :1])
    whole.update(x[:, 30:] + 1, y[30:] + x[0, 30:, :1])
    joined, wanted = parts[0].result().joined(parts[1].result()), whole.result()
    for name in ("hessian", "target", "mean", "target_mean", "target_variance"):
        np.testing.assert_allclose(getattr(joined, name), getattr(wanted, name), atol=1e-10)
    assert joined.count == 90


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hessian": np.eye(3)}, "hessian: expected shape"),
        ({"hessian": -np.eye(2)}, "positive semidefinite"),
        ({"aim": np.ones((1, 3))}, "aim: expected shape"),
        ({"damping": -1.0}, "damping: expected numbers >= 0"),
        ({"order": "random"}, "order: expected one of"),
        ({"factors": (0.0,)}, "factors: expected positive"),
    ],
)
def test_errors_name_what_is_wrong(change, said):
    given = {"weight": np.ones((2, 2)), "hessian": np.eye(2), "grid": qmath.Grid(4, 1.0)} | change
    weight, form, grid = (given.pop(name) for name in ("weight", "hessian", "grid"))
    with pytest.raises(ValueError, match=said):
        qmath.round_second_order(weight, form, grid, **given)
