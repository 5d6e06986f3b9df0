"""Rounding under a limit on neighbours: no pair breaks it, and no other pair would be closer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import qmath

RNG = np.random.default_rng(9)


def best_by_trying(pair, cost, limit):
    """The least weighted error of any two codes that keep the limit."""
    near = [range(int(v) - 40, int(v) + 41) for v in np.rint(pair)]
    allowed = (
        (a, b)
        for a, b in product(*near)
        if max(a, 0) + max(b, 0) <= limit and max(-a, 0) + max(-b, 0) <= limit and max(abs(a), abs(b)) <= 127
    )
    return min(cost[0] * (a - pair[0]) ** 2 + cost[1] * (b - pair[1]) ** 2 for a, b in allowed)


def test_pairs_are_the_closest_that_keep_the_limit():
    weights = RNG.uniform(-80, 80, (30, 2))
    cost = RNG.uniform(0.1, 4, (30, 2))
    codes = qmath.round_pairs(weights, 100, importance=cost)
    errors = (cost * (codes - weights) ** 2).sum(axis=1)
    tried = [best_by_trying(*row, 100) for row in zip(weights, cost, strict=True)]
    np.testing.assert_allclose(errors, tried, rtol=1e-12)


@pytest.mark.parametrize("columns", [1, 2, 7, 64])
def test_no_pair_breaks_the_limit_and_others_stay(columns):
    weights = RNG.uniform(-127, 127, (50, columns))
    codes = qmath.round_pairs(weights, 128)
    assert np.abs(codes).max() <= 127
    least, greatest = qmath.pair_range(codes, 0, 255)
    assert (least >= -(2**15)).all()
    assert (greatest <= 2**15 - 1).all()
    moved = codes != np.rint(weights)
    even = columns // 2 * 2
    pairs = np.rint(weights)[:, :even].reshape(50, -1, 2)
    breaking = (np.abs(pairs.sum(axis=2)) > 128) & (pairs[..., 0] * pairs[..., 1] > 0)
    assert not moved[:, :even].reshape(50, -1, 2)[~breaking].any()
    assert not moved[:, even:].any()


def test_the_cheaper_weight_gives_way():
    codes = qmath.round_pairs([[100.0, 100.0]], 128, importance=[[1e6, 1.0]])
    assert codes.tolist() == [[100, 28]]


def test_rows_are_expected():
    with pytest.raises(ValueError, match="two dimensions"):
        qmath.round_pairs([1.0, 2.0], 128)
