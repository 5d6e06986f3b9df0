"""Other bits for single layers: what is fitted anew, and that nothing else changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qgraph.errors import PlanError, UsageError
from qgraph.graph.sites import GraphView
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes
from qgraph.plan.changes import Change
from qgraph.plan.edit import edited
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.samples.dataset import open_data

NET = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,4,6,6] x, float[8,4,3,3] w, float[8,8,1,1] u, float[8,8,1,1] v) => (float[N,8,4,4] y) {
  [first] a = Conv(x, w)  r = Relu(a)  [second] b = Conv(r, u)  s = Add(b, r)  [third] y = Conv(s, v)
}"""


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 4, 3, 3), "u": (8, 8, 1, 1), "v": (8, 8, 1, 1)}
    weights = {name: rng.laplace(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    return weights, rng.laplace(size=(64, 4, 6, 6)).astype(np.float32)


@pytest.fixture
def start(model_from_text, drawn):
    """A plan of eight bits, and what is known of its network; `r` is read by a layer and by a sum."""
    weights, x = drawn
    net = normalise(load(model_from_text(NET, **weights)))
    view, observed = GraphView(net), observe(net, open_data(x, net))
    return initial_plan(view, choose_recipe("minmax", True), observed), view, observed


def changed(start, *texts, statistics=False):
    plan, view, observed = start
    return edited(plan, view, [Change.parse(text) for text in texts], observed if statistics else None)


def test_no_change_is_the_same_plan(start):
    assert changed(start, "*:weights=8", "*:activations=8", statistics=True) is start[0]


@pytest.mark.parametrize("bits", [3, 7])
def test_weights_of_one_layer_are_fitted_to_their_bits(start, bits):
    plan, view, _ = start
    made = changed(start, f"second:weights={bits}")
    assert dataclasses.replace(made, layers=()) == dataclasses.replace(plan, layers=())
    for before, after in zip(plan.layers, made.layers, strict=True):
        assert (after == before) == (before.name != "second")
    grid, weight = made.layer("second").weight, view.by_name["second"].weight_array()
    assert (grid.bits, grid.symmetric) == (bits, False), "files of narrow weights need no zero point"
    ends = weight.reshape(8, -1).min(1), weight.reshape(8, -1).max(1)
    full = (np.maximum(ends[1], 0) - np.minimum(ends[0], 0)) / (2**bits - 1)
    plain = dataclasses.replace(
        grid,
        scale=tuple(full.astype(np.float32).tolist()),
        zero_point=tuple(np.rint(-(2 ** (bits - 1)) - np.minimum(ends[0], 0) / full).astype(int).tolist()),
    )
    errors = [np.square(codes.quantized(weight, one) - weight).sum() for one in (grid, plain)]
    assert errors[0] <= errors[1]


def test_eight_bits_are_symmetric_again_on_integers_alone(start):
    plan, view, observed = start
    narrow = changed(start, "*:weights=4")
    wide = changed((narrow, view, observed), "*:weights=8")
    assert {quant.weight.symmetric for quant in wide.layers} == {True}
    floats = narrow.map_layers(lambda quant: dataclasses.replace(quant, runs="floats"))
    wide = changed((floats, view, observed), "*:weights=8")
    assert {quant.weight.symmetric for quant in wide.layers} == {False}
    odd = narrow.map_layers(
        lambda q: dataclasses.replace(q, weight=dataclasses.replace(q.weight, symmetric=True, zero_point=(0,)))
    )
    assert {quant.weight.symmetric for quant in changed((odd, view, observed), "*:weights=3").layers} == {True}
    assert plan.layers[0].bias_shift == ()


def test_what_belongs_to_the_old_grid_of_a_weight_goes(start):
    plan, view, observed = start
    moved = plan.map_layers(
        lambda q: dataclasses.replace(q, bias_shift=(0.5,) * 8, weight=dataclasses.replace(q.weight, gain=(1.1,) * 8))
    )
    made = changed((moved, view, observed), "third:weights=5")
    assert (made.layer("third").weight.gain, made.layer("third").bias_shift) == ((1.0,), ())
    assert made.layer("second") == moved.layer("second")


def test_fewer_bits_where_a_sum_reads_the_tensor_too(start):
    plan, view, observed = start
    made = changed(start, "second:activations=3")
    before, after = ({(g.tensor, g.role): g for g in p.activations} for p in (plan, made))
    assert after.keys() - before.keys() == {("r", "operand")}
    assert {key: after[key] for key in before} == before
    grid, stored = after["r", "operand"], after["r", "tensor"]
    assert (grid.bits, grid.zero_point) == (3, 0)
    assert grid.high == pytest.approx(stored.high, rel=1e-6), "nothing is known but the range"
    again = changed((made, view, observed), "second:activations=5")
    assert {(g.tensor, g.role, g.bits) for g in again.activations} == {
        (g.tensor, g.role, 5 if g.role == "operand" else g.bits) for g in made.activations
    }


def test_fewer_bits_where_layers_alone_read_the_tensor(start):
    plan, _, _ = start
    made = changed(start, "first:activations=4", "third:activations=6")
    bits = {grid.tensor: (grid.role, grid.bits) for grid in made.activations}
    expected = {grid.tensor: (grid.role, grid.bits) for grid in plan.activations} | {"x": ("tensor", 4)}
    assert bits == expected | {"s": ("tensor", 6)}


def test_a_histogram_gives_the_range_of_least_squares(start):
    """Less than the whole range, of both sides; from zero where nothing is negative."""
    _, _, observed = start
    blind, seeing = (changed(start, "*:activations=3", statistics=known) for known in (False, True))
    for tensor in ("x", "s"):
        whole, best = ([g for g in plan.activations if g.tensor == tensor][-1] for plan in (blind, seeing))
        assert best.scale < 0.9 * whole.scale
    (operand,) = (g for g in seeing.activations if g.role == "operand")
    assert (operand.tensor, operand.zero_point) == ("r", 0)
    assert operand.high < observed["r"].max


def test_a_pattern_changes_the_layers_that_have_a_grid(start):
    """Others that it matches read none: as in a network whose first layer runs in floats."""
    plan, view, observed = start
    some = dataclasses.replace(plan, activations=tuple(grid for grid in plan.activations if grid.tensor != "x"))
    found = changed((some, view, observed), "*:activations=4")
    assert {grid.bits for grid in found.activations if grid.tensor in ("r", "s")} >= {4}
    assert found.activations != some.activations


def test_layers_without_a_grid_of_their_own_operand(start):
    plan, view, observed = start
    alone = dataclasses.replace(plan, activations=())
    with pytest.raises(PlanError, match="'first' reads no static grid"):
        changed((alone, view, observed), "first:activations=4")
    with pytest.raises(PlanError, match="'first' reads no static grid, nor does any other that '\\*' matches"):
        changed((alone, view, observed), "*:activations=4")
    steps = plan.map_activations(
        lambda g: dataclasses.replace(g, channel_scale=(0.5, 1.0) * 4, zero_point=0) if g.tensor == "r" else g
    )
    with pytest.raises(PlanError, match="'second' reads 'r' with a step per channel"):
        changed((steps, view, observed), "second:activations=4")
    with pytest.raises(UsageError, match="'fourth' matches no layer"):
        changed(start, "fourth:activations=4")
