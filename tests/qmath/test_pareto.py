"""The frontier and the knapsack against brute force and an integer programming solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize

import qmath


def random_tables(seed: int, *, whole: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, rng.integers(1, 6))
    costs = [np.round(rng.uniform(0, 5, n), rng.integers(0, 4)) for n in counts]
    sizes = [rng.integers(1, 30, n).astype(float) if whole else rng.uniform(1, 30, n) for n in counts]
    return costs, sizes


def totals(costs, sizes) -> tuple[np.ndarray, np.ndarray]:
    """Size and cost of every selection."""
    picks = itertools.product(*[range(len(row)) for row in costs])
    pairs = [
        (sum(s[c] for s, c in zip(sizes, pick, strict=True)), sum(v[c] for v, c in zip(costs, pick, strict=True)))
        for pick in picks
    ]
    return np.array(pairs).T


def network(seed: int, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivities that fall about fourfold a bit, sizes in bytes: 1 to 8 bits per layer."""
    rng = np.random.default_rng(seed)
    bits = np.arange(1, 9)
    sizes = rng.lognormal(10, 1, layers).astype(int)[:, None] * bits / 8
    return rng.lognormal(0, 1.5, (layers, 1)) * 4.0**-bits * rng.uniform(0.7, 1.3, (layers, 8)), sizes


def check_is_made_of_its_choices(point: qmath.Selection, costs, sizes) -> None:
    assert point.cost == pytest.approx(sum(row[c] for row, c in zip(costs, point.choices, strict=True)), rel=1e-12)
    assert point.size == pytest.approx(sum(row[c] for row, c in zip(sizes, point.choices, strict=True)), rel=1e-12)


@given(seed=st.integers(0, 10_000), whole=st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_frontier_is_that_of_brute_force(seed, whole) -> None:
    costs, sizes = random_tables(seed, whole=whole)
    size, cost = totals(costs, sizes)
    frontier = qmath.pareto_frontier(costs, sizes)
    assert np.all(frontier.gaps == 0)
    assert np.all(np.diff(frontier.sizes) > 0)
    assert np.all(np.diff(frontier.costs) < 0)
    for i in range(len(frontier)):
        check_is_made_of_its_choices(frontier[i], costs, sizes)
    for budget in size:
        best = cost[size <= budget + 1e-9].min()
        assert frontier.within(budget + 1e-9).cost == pytest.approx(best, abs=1e-9)


@given(seed=st.integers(0, 10_000), whole=st.booleans(), share=st.floats(0, 1))
@example(seed=972, whole=False, share=0.9999999999999999)  # a budget within rounding of the largest size
@settings(max_examples=80, deadline=None)
def test_the_knapsack_is_that_of_brute_force(seed, whole, share) -> None:
    costs, sizes = random_tables(seed, whole=whole)
    size, cost = totals(costs, sizes)
    budget = size.min() + share * (size.max() - size.min())
    found = qmath.knapsack(costs, sizes, budget)
    check_is_made_of_its_choices(found, costs, sizes)
    assert found.size <= budget * (1 + 1e-9)
    assert found.gap == 0
    assert found.cost == pytest.approx(cost[size <= budget * (1 + 1e-12)].min(), abs=1e-9)


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_on_few_steps_every_gap_holds(seed, steps) -> None:
    costs, sizes = random_tables(seed, whole=False)
    size, cost = totals(costs, sizes)
    frontier = qmath.pareto_frontier(costs, sizes, steps=steps)
    for i in range(len(frontier)):
        point = frontier[i]
        check_is_made_of_its_choices(point, costs, sizes)
        best = cost[size <= point.size + 1e-9].min()
        assert point.cost - point.gap <= best + 1e-9


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("layers", [20, 152])
def test_the_knapsack_agrees_with_integer_programming(layers, share) -> None:
    costs, sizes = network(layers, layers)
    budget = float(sizes[:, 0].sum() + share * np.ptp(sizes, axis=1).sum())
    one_each = np.kron(np.eye(layers), np.ones(8))
    solved = optimize.milp(
        costs.ravel(),
        integrality=np.ones(costs.size),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(sizes.ravel()[None], -np.inf, budget),
        ],
        options={"mip_rel_gap": 0},
    )
    assert solved.success
    found = qmath.knapsack(costs, sizes, budget)
    assert found.size <= budget * (1 + 1e-12)
    assert found.cost == pytest.approx(solved.fun, rel=1e-9)


def test_a_large_frontier_is_close_to_the_optimum_and_knows_how_close() -> None:
    costs, sizes = network(1, 152)
    sizes = sizes * np.random.default_rng(0).uniform(0.9, 1.1, sizes.shape)  # no common unit, no short list
    frontier = qmath.pareto_frontier(costs, np.sort(sizes, axis=1), steps=20_000)
    assert frontier.gaps.max() > 0
    for point in range(0, len(frontier), max(len(frontier) // 12, 1)):
        best = qmath.knapsack(costs, np.sort(sizes, axis=1), float(frontier.sizes[point]))
        assert frontier.costs[point] - frontier.gaps[point] <= best.cost * (1 + 1e-12)
        assert frontier.costs[point] <= best.cost * 1.05


def test_permuting_layers_permutes_the_choices() -> None:
    costs, sizes = network(5, 12)
    order = np.random.default_rng(0).permutation(12)
    budget = float(sizes[:, 3].sum())
    plain, shuffled = qmath.knapsack(costs, sizes, budget), qmath.knapsack(costs[order], sizes[order], budget)
    np.testing.assert_array_equal(shuffled.choices, plain.choices[order])
    np.testing.assert_allclose(
        qmath.pareto_frontier(costs[order], sizes[order], steps=5000).costs,
        qmath.pareto_frontier(costs, sizes, steps=5000).costs,
        rtol=1e-9,
    )


def test_correlated_choices_stay_tractable() -> None:
    """Cost falling exactly with size: every selection of a size ties."""
    sizes = np.random.default_rng(0).integers(1, 1000, (40, 1)) * np.arange(1, 5)
    budget = float(sizes[:, 0].sum() * 2.5)
    found = qmath.knapsack(5000.0 - sizes, sizes, budget)
    assert found.cost == 40 * 5000 - found.size
    assert found.size > budget - 2


def test_group_search_finds_the_frontier_when_layers_are_independent() -> None:
    costs, sizes = network(3, 6)
    costs, sizes = costs[:, 1:8:2], sizes[:, 1:8:2]

    def evaluate(choices: tuple[int, ...]) -> float:
        return float(sum(costs[i, c] for i, c in enumerate(choices)))

    exact = qmath.pareto_frontier(costs, sizes)
    found = qmath.group_search(costs, sizes, evaluate, group=6, intervals=1, candidates=4**6)
    np.testing.assert_allclose(found.costs, exact.costs, rtol=1e-12)
    assert np.all(np.isnan(found.gaps))


def test_group_search_sees_what_independence_does_not() -> None:
    """Two layers that must not both be coarse: their joint cost is known only to the evaluator."""
    costs = np.array([[1.0, 0.9], [1.0, 0.8], [0.5, 0.4]])
    sizes = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    calls = []

    def evaluate(choices: tuple[int, ...]) -> float:
        calls.append(choices)
        together = 10.0 if choices[:2] == (0, 0) else 0.0
        return float(sum(costs[i, c] for i, c in enumerate(choices))) + together

    found = qmath.group_search(costs, sizes, evaluate, group=2, intervals=1, candidates=4, keep=2)
    assert found.within(4).choices.tolist()[:2] in ([0, 1], [1, 0])
    assert {len(c) for c in calls} == {2, 3}


def test_group_search_keeps_to_its_number_of_evaluations() -> None:
    costs, sizes = (table[:, 1:7:2] for table in network(4, 25))
    count = 0

    def evaluate(choices: tuple[int, ...]) -> float:
        nonlocal count
        count += 1
        return float(sum(costs[i, c] for i, c in enumerate(choices)))

    found = qmath.group_search(costs, sizes, evaluate, group=10, intervals=5, candidates=20, keep=3)
    assert 0 < count <= 3 * 5 * 20
    for i in range(len(found)):
        check_is_made_of_its_choices(found[i], costs, sizes)


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="fits"):
        qmath.knapsack([[1.0]], [[2.0]], 1.0)
    with pytest.raises(ValueError, match="fits"):
        qmath.pareto_frontier([[1.0]], [[2.0]]).within(1.0)
    with pytest.raises(ValueError, match="same layers"):
        qmath.pareto_frontier([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="finite"):
        qmath.pareto_frontier([[np.nan]], [[1.0]])
    with pytest.raises(ValueError, match="steps"):
        qmath.pareto_frontier([[1.0]], [[1.0]], steps=0)
    with pytest.raises(ValueError, match="keep"):
        qmath.group_search([[1.0]], [[1.0]], lambda c: 0.0, keep=0)
    with pytest.raises(ValueError, match="finite sensitivity"):
        qmath.group_search([[1.0]], [[1.0]], lambda c: float("nan"))


def test_group_search_thins_out_what_it_cannot_list(monkeypatch) -> None:
    from qmath import grouping

    costs, sizes = network(6, 8)

    def evaluate(choices: tuple[int, ...]) -> float:
        return float(sum(costs[i, c] for i, c in enumerate(choices)))

    monkeypatch.setattr(grouping, "_ENUMERATED", 20_000)
    found = qmath.group_search(costs, sizes, evaluate, group=8, intervals=5, candidates=100)
    exact = qmath.pareto_frontier(costs, sizes)
    for i in range(len(found)):
        check_is_made_of_its_choices(found[i], costs, sizes)
        assert found.costs[i] >= exact.within(float(found.sizes[i]) + 1e-9).cost * (1 - 1e-12)
    assert found.costs.min() == pytest.approx(exact.costs.min(), rel=1e-12)
