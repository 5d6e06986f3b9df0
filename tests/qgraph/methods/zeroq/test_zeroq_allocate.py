"""Allocation: exact under the budget, and said when a budget cannot be met."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

import qmath
from qgraph.errors import UsageError
from qgraph.methods.zeroq.allocate import (
    Allocation,
    frontier,
    mix,
    search_groups,
    smallest_accepted,
    within,
)
from qgraph.methods.zeroq.config import MixConfig
from qgraph.methods.zeroq.sensitivity import LayerSensitivity, Sensitivity
from qgraph.plan.plan import LayerQuant, QuantPlan, WeightQuant

BITS = (2, 4, 8)
WEIGHTS = (800, 1600, 3200, 808)


@pytest.fixture
def table() -> Sensitivity:
    rng = np.random.default_rng(3)
    rows = tuple(
        LayerSensitivity(
            name=f"layer{i}",
            op="Conv",
            weights=count,
            bits=BITS,
            nbytes=tuple(k * count // 8 for k in BITS),
            measured=tuple(sorted(rng.exponential(size=3), reverse=True)),
        )
        for i, count in enumerate(WEIGHTS)
    )
    return Sensitivity(model="m", data="d", samples=1, outputs=(("y", "kl"),), layers=rows)


def listed(table: Sensitivity) -> list[tuple[int, float]]:
    """Size and cost of every selection there is."""
    pairs = [list(zip(row.nbytes, row.measured, strict=True)) for row in table.layers]
    return [(sum(s for s, _ in some), sum(c for _, c in some)) for some in itertools.product(*pairs)]


@pytest.mark.parametrize("average", [2, 2.5, 4, 5.3, 8])
def test_the_best_selection_within_the_budget_is_found(table, average):
    budget = sum(WEIGHTS) * average / 8
    chosen = within(frontier(table), table, budget)
    best = min(cost for size, cost in listed(table) if size <= budget)
    assert chosen.size <= budget
    assert chosen.cost == pytest.approx(best, rel=1e-12)


def test_a_budget_that_is_too_small_names_the_smallest(table):
    smallest = min(size for size, _ in listed(table))
    with pytest.raises(UsageError, match=r"0\.0015 MB") as refusal:
        within(frontier(table), table, smallest - 1)
    named = float(str(refusal.value).split("size_mb=")[1].split()[0])
    assert within(frontier(table), table, named * 2**20).size == smallest


def test_a_budget_above_float_takes_all_bits_and_says_so(table):
    with pytest.warns(UserWarning, match="8 bits are used"):
        chosen = within(frontier(table), table, 4 * sum(WEIGHTS) + 1)
    assert chosen.choices.tolist() == [2, 2, 2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        within(frontier(table), table, sum(WEIGHTS))


def test_bisection_finds_the_smallest_accepted(table):
    front = frontier(table)
    for wanted in range(len(front)):
        tried: list[float] = []

        def accept(point: qmath.Selection, wanted=wanted, tried=tried) -> bool:
            tried.append(point.size)
            return point.size >= front.sizes[wanted]

        found = smallest_accepted(front, accept)
        assert found is not None
        assert found.size == front.sizes[wanted]
        assert len(tried) <= 2 + np.log2(len(front))
    assert smallest_accepted(front, lambda point: False) is None


def test_group_search_sees_what_sums_miss(table):
    """Where two layers at 2 bits together are a disaster that neither shows alone, measuring avoids the pair."""
    costs = [row.measured for row in table.layers]

    def measure(choices: tuple[int, ...]) -> float:
        together = 100.0 if choices[:2] == (0, 0) else 0.0
        return sum(costs[i][c] for i, c in enumerate(choices)) + together

    config = MixConfig(a=2, b=4, t1=9, t2=9)
    front = search_groups(table, measure, config=config)
    for choices, cost in zip(front.choices.tolist(), front.costs, strict=True):
        assert cost == pytest.approx(measure(tuple(choices)))
    budget = sum(WEIGHTS) * 3 / 8
    assert front.within(budget).choices.tolist()[:2] != [0, 0]


def test_mix_takes_each_layer_from_the_menu(table):
    def layer(i: int, k: int) -> LayerQuant:
        return LayerQuant(name=f"layer{i}", op="Conv", weight=WeightQuant(bits=k, scale=(0.1,)))

    menu = {f"layer{i}": [layer(i, k) for k in BITS] for i in range(4)}
    plan = QuantPlan(model="m", recipe="zeroq", layers=(*(layer(i, 8) for i in range(4)), layer(9, 8)))
    front = frontier(table)
    chosen = within(front, table, sum(WEIGHTS) * 4 / 8)
    bits = Allocation(sensitivity=table, frontier=front, chosen=chosen).bits
    mixed = mix(plan, menu, bits)
    assert {item.name: item.weight.bits for item in mixed.layers} == {**bits, "layer9": 8}
