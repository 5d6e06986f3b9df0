"""Which variant of a method is kept, and what the command line may ask for."""

from __future__ import annotations

import pytest

import qgraph
from qgraph.cli import main
from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView
from qgraph.methods.aciq import refine as aciq
from qgraph.observe.statistics import observe
from qgraph.onnxfile.opset import prepare
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.samples.dataset import open_data


def marks(plan):
    """Whose channels have widths or steps of their own."""
    return (
        any(quant.weight.channel_bits for quant in plan.layers),
        any(a.channel_scale for a in plan.activations),
        any(a.channel_bits for a in plan.activations),
    )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((False, False, False), 0),
        ((False, True, False), 1),
        ((True, False, False), 1),
        ((True, True, True), 1),
        ((True, True, False), 1),
    ],
)
def test_the_variant_with_the_least_loss_is_kept(digits, digits_calibration, wanted, expected):
    net = prepare(digits)
    view = GraphView(net)
    observed = observe(net, open_data(digits_calibration, net, limit=16))
    recipe = choose_recipe("aciq", True, weights=4, activations=4)
    plan = initial_plan(view, recipe, observed)

    def loss(candidate):
        return sum(a != b for a, b in zip(marks(candidate), wanted, strict=True))

    chosen = aciq.choose(plan, view, observed, config=aciq.AciqConfig(), loss=loss)
    assert marks(chosen) == wanted
    assert (chosen != aciq.refine(plan, view, observed)) == bool(expected)


@pytest.mark.parametrize("prior", ["checked", "laplace"])
def test_the_law_of_activations_is_measured(digits, digits_calibration, prior):
    net = prepare(digits)
    view = GraphView(net)
    observed = observe(net, open_data(digits_calibration, net, limit=16))
    plan = initial_plan(view, choose_recipe("aciq", True, activations=4), observed)
    wanted = aciq.refine(plan, view, observed, config=aciq.AciqConfig(prior=prior))

    def loss(candidate):
        grids = zip(candidate.activations, wanted.activations, strict=True)
        return sum(abs(a.scale - b.scale) for a, b in grids) + sum(marks(candidate))

    assert aciq.choose(plan, view, observed, config=aciq.AciqConfig(), loss=loss).activations == wanted.activations
    asked = aciq.choose(plan, view, observed, config=aciq.AciqConfig(prior="gaussian"), loss=loss)
    assert asked.activations != wanted.activations  # a law that was asked for is taken


def test_at_eight_bits_nothing_is_tried(digits, digits_calibration):
    assert marks(qgraph.quantize(digits, digits_calibration, limit=16).plan) == (False, False, False)
    with pytest.raises(UsageError, match="allocate_bits must be one of"):
        qgraph.quantize(digits, digits_calibration, allocate_bits="some")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("none", (False, False, False)), ("weights", (True, False, False)), ("both", (True, True, True))],
)
def test_the_command_line_may_decide(digits, digits_calibration, tmp_path, choice, expected, capsys):
    plan, out = tmp_path / "plan.json", tmp_path / "out.onnx"
    command = ["quantize", str(digits), "-o", str(out), "--data", str(digits_calibration), "--limit", "32", "--json"]
    assert main([*command, "--weights", "4", "--activations", "4", "--allocate-bits", choice, "--plan", str(plan)]) == 0
    assert marks(qgraph.QuantPlan.load(plan)) == expected
    capsys.readouterr()
    again = tmp_path / "again.onnx"
    assert main(["apply", str(digits), str(plan), "-o", str(again), "--quiet"]) == 0
    assert again.read_bytes() == out.read_bytes()
