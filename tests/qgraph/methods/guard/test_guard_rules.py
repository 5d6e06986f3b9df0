"""In which order the guard tries concessions, what it settles for, and what a reserve is worth."""

from __future__ import annotations

import dataclasses

import pytest

from qgraph.methods.guard import guard as rules
from qgraph.methods.guard.concessions import Concession
from qgraph.methods.guard.guard import comforted, guard
from qgraph.methods.guard.search import power
from qgraph.methods.guard.switches import Grid
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, WeightQuant

ACTIVATIONS = tuple(ActivationQuant(tensor=f"t{i}", bits=8, scale=1.0) for i in range(60))
PLAN = QuantPlan(model="abc", recipe="as it is", activations=ACTIVATIONS)


def give(*names):
    return tuple(Concession(grid=Grid("tensor", name), how="weights alone", alone_db=1.0, output="y") for name in names)


@pytest.fixture(autouse=True)
def named_plans(monkeypatch):
    """A plan with concessions is called by them."""

    def applied(plan, view, conceded, ranges):
        return dataclasses.replace(plan, recipe="+".join(c.grid.name for c in conceded))

    monkeypatch.setattr(rules, "apply_concessions", applied)


class Search:
    """Answers from a table, and writes down what it was asked."""

    def __init__(self, answers, plan=PLAN):
        self.plan, self.view, self.ranges = plan, None, {}
        self.answers, self.asked = list(answers), []

    def within(self, allowed, *, tensors=None):
        self.asked.append((allowed, tensors))
        return self.answers.pop(0)

    def cheap(self, allowed, *, budget):
        self.asked.append((allowed, budget))
        return self.answers.pop(0)


def judged(**margins):
    """A judge that knows plans by name, and the plans that it has judged."""
    seen = []

    def judge(plan):
        seen.append(plan.recipe)
        return margins[plan.recipe.replace(" ", "_").replace("+", "_")]

    return judge, seen


def test_what_holds_is_not_searched():
    search = Search([])
    judge, _ = judged(as_it_is=0.0)
    found = guard(search, judge, target_db=20)
    assert (found.plan, found.concessions, found.holds, search.asked) == (PLAN, (), True, [])


def test_a_tenth_of_the_tensors_is_given_for_a_margin_first():
    search = Search([give("a"), give("b")])
    judge, seen = judged(as_it_is=-5.0, a=-1.0, b=0.5)
    found = guard(search, judge, target_db=20)
    assert (found.plan.recipe, found.margin, found.concessions) == ("b", 0.5, give("b"))
    assert search.asked == [(power(30), 6), (power(20), None)]
    assert seen == ["as it is", "a", "b"]
    few = Search([give("a")], plan=dataclasses.replace(PLAN, activations=ACTIVATIONS[:20]))
    guard(few, judged(as_it_is=-5.0, a=1.0)[0], target_db=20)
    assert few.asked == [(power(30), 4)], "four at least"


def test_the_closest_is_kept_where_nothing_holds():
    search = Search([give("a"), give("b"), give("b"), give("c"), give("d")])
    judge, seen = judged(as_it_is=-9.0, a=-3.0, b=-1.0, c=-2.0, d=-4.0)
    found = guard(search, judge, target_db=20)
    assert (found.plan.recipe, found.holds) == ("b", False)
    assert [allowed for allowed, _ in search.asked] == [power(db) for db in (30, 20, 26, 32, 38)]
    assert seen == ["as it is", "a", "b", "c", "d"], "what was judged is not judged again"


def test_shifts_of_biases_go_where_they_hurt():
    layer = LayerQuant(name="l", op="Conv", weight=WeightQuant(bits=8, scale=(1.0,)), bias_shift=(0.5,))
    plan = dataclasses.replace(PLAN, layers=(layer,))
    for with_shift, without, kept in ((-2.0, -1.0, False), (-1.0, -2.0, True), (0.0, 5.0, True), (-1.0, 1.0, False)):
        search = Search([()] * 5, plan=plan)
        found = guard(search, lambda p, a=with_shift, b=without: a if p.layers[0].bias_shift else b, target_db=20)
        assert bool(found.plan.layers[0].bias_shift) == kept
        assert found.margin == (with_shift if kept else without)


@pytest.mark.parametrize(
    ("first", "second", "margins", "expected"),
    [
        ((), (), {"as_it_is": 12.0}, ("as it is", 0)),
        ((), (), {"as_it_is": 11.9}, ("as it is", 1)),
        ((), (), {"as_it_is": 5.9}, ("as it is", 2)),
        (give("a"), (), {"as_it_is": 8.0, "a": 9.0}, ("a", 1)),
        (give("a"), (), {"as_it_is": 8.0, "a": 8.9}, ("as it is", 1)),
        (give("a"), (), {"as_it_is": 11.5, "a": 12.0}, ("a", 1)),
        (give("a"), give("b"), {"as_it_is": 2.0, "a": 3.5, "b": 6.0}, ("b", 2)),
        (give("a"), give("b"), {"as_it_is": 2.0, "a": 2.5, "b": 4.9}, ("as it is", 2)),
        (give("a"), give("b"), {"as_it_is": 2.0, "a": 6.0}, ("a", 1)),
    ],
)
def test_a_reserve_must_gain_or_be_reached(first, second, margins, expected):
    """12 dB are worth a fiftieth if they gain one, 6 dB three twentieths if they gain three; or if they are reached."""
    search = Search([first, second])
    found = comforted(search, judged(**margins)[0], target_db=20)
    assert (found.plan.recipe, len(search.asked)) == expected
    assert search.asked == [(power(32), 0.02), (power(26), 0.15)][: expected[1]]


def test_fields_of_a_concession():
    said = {how: str(dataclasses.replace(give("t")[0], how=how)) for how in ("whole range", "weights alone", "float")}
    assert said["whole range"] == "'t' has its whole range: its error alone leaves 1.0 dB of output 'y'"
    assert said["float"].startswith("'t' stays float")
    weight = dataclasses.replace(give("t")[0], grid=Grid("weight", "l"), how="float")
    assert str(weight).startswith("weight of 'l' stays float")
    operand = dataclasses.replace(weight, grid=Grid("operand", "l"), how="weights alone")
    assert str(operand).startswith("what is read by 'l' stays floating point")
    assert operand.to_dict() == {"name": "l", "kind": "operand", "how": "weights alone", "alone_db": 1.0, "output": "y"}


def test_decibels_of_noise():
    assert [power(db) for db in (0, 10, 20, -10)] == pytest.approx([1.0, 0.1, 0.01, 10.0])
