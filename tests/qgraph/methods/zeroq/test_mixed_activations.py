"""Mixed bits of activations: what is measured, what is chosen, and the file that comes of it."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
import qmath
from qgraph.cli import main
from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate_activations
from qgraph.methods.zeroq.allocate import average_bits
from qgraph.methods.zeroq.mixed_precision import Mixer
from qgraph.methods.zeroq.sensitivity import sensitivity
from qgraph.observe.compared import Compared
from qgraph.observe.statistics import observe
from qgraph.onnxfile.opset import prepare
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan
from qgraph.plan.request import choose_recipe
from qgraph.report import render, report_of
from qgraph.running.executor import open_executor
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

BITS = (2, 4, 8)
READ = ["input", "stem/relu:0", *(f"{at}relu:0" for at in ("residual/first/", "residual/", "separable/first/"))]
READ += ["separable/relu:0", "pool:0"]


def mixer_of(model, samples, *, limit: int = 16, **options) -> Mixer:
    """Chooses among ranges from the smallest to the largest value; the judge counts bits, 90 if there are no grids."""
    net = prepare(model)
    data = open_data(samples, net, limit=limit)
    recipe = choose_recipe("minmax", True, **{"activations": "mixed", "bits": BITS} | options)

    def judged(model):
        missing = 0 if isinstance(model, ir.Model) else sum(8 - bits for bits in widths(model).values())
        return Compared(name="accuracy", before=90.0, after=90.0 - missing / 4, samples=limit)

    return Mixer(
        net=net,
        recipe=recipe,
        data=data,
        refine=lambda plan, recipe: plan,
        lower=lambda plan: plan,
        judge=judged,
        observed=observe(net, data),
    )


def widths(plan: QuantPlan) -> dict[str, int]:
    """The bits of all that is mixed in the plans of this file: weights, and tensors as layers read them."""
    weights = {quant.name: quant.weight.bits for quant in plan.layers}
    return weights | {name: grid.bits for name, grid in plan.operand_grids.items()}


@pytest.fixture(scope="module")
def mixer(digits, digits_calibration) -> Mixer:
    return mixer_of(digits, digits_calibration)


@pytest.fixture(scope="module")
def measured(mixer):
    return mixer.sensitivity(mixer.menus())


def test_every_tensor_that_layers_read_has_every_width(mixer):
    tensors = mixer.menus().tensors
    assert list(tensors) == READ
    assert all(tuple(grids[-1].bits for grids in choices) == BITS for choices in tensors.values())
    shared = tensors["stem/relu:0"]
    assert [[(a.role, a.bits) for a in grids] for grids in shared] == [
        [("tensor", 8), ("operand", 2)],
        [("tensor", 8), ("operand", 4)],
        [("tensor", 8)],
    ]


def test_without_grids_layers_keep_their_float_weights(mixer):
    layers = mixer.menus().readers
    assert layers
    assert all(quant.weight.bits == 8 for quant in layers)
    plain = simulate_activations(mixer.net, QuantPlan(model=mixer.net.digest, recipe="", layers=layers))
    feeds = next(mixer.data.batches(8)).feeds
    want, have = (Session(model, threads=1).run_list(feeds)[0] for model in (mixer.net.ir_model, plain))
    np.testing.assert_array_equal(have, want)


def test_what_is_measured_is_one_tensor_on_its_grid(mixer, measured):
    menus, batches = mixer.menus(), list(mixer.data.batches(32))
    plain = Session(mixer.net.ir_model, threads=1)
    for row in measured.tensors:
        for omega, grids in zip(row.measured, menus.tensors[row.name], strict=True):
            plan = QuantPlan(model=mixer.net.digest, recipe="", layers=menus.readers, activations=grids)
            rounded = Session(simulate_activations(mixer.net, plan), threads=1)
            pair = [np.concatenate([s.run_list(b.feeds)[0] for b in batches]) for s in (plain, rounded)]
            assert omega == pytest.approx(float(qmath.kl_divergence(*pair, mean=True)), rel=1e-4, abs=1e-9)
        assert row.measured[0] > row.measured[1] > row.measured[2]


def test_bytes_are_those_of_the_values_in_one_sample(mixer, measured):
    values = {"stem/relu:0": 32 * 8 * 8, "pool:0": 96}
    found = {row.name: row for row in measured.tensors}
    for name, count in values.items():
        assert found[name].values == count
        assert found[name].nbytes == tuple(bits * count // 8 for bits in BITS)


def test_clusters_and_interruptions_change_nothing(mixer, measured, cluster, tmp_path, monkeypatch):
    menus = mixer.menus()

    def again(**how):
        found = sensitivity(mixer.net, mixer.data, {}, tensors=menus.tensors, readers=menus.readers, **how)
        assert found == measured

    with open_executor(cluster) as executor:
        again(executor=executor)
    again(resume=tmp_path)
    monkeypatch.setattr("qgraph.methods.zeroq.sensitivity._omega_of_tensor", lambda *_: pytest.fail("measured again"))
    again(resume=tmp_path)


@pytest.mark.parametrize("average", [3, 4.5, 6])
def test_activations_fit_the_budget_and_nearly_fill_it(digits, digits_calibration, average):
    result = qgraph.quantize(
        digits, digits_calibration, average_activation_bits=average, limit=32, measure=False, guard="off"
    )
    assert 0.93 * average <= average_bits(result.allocation.taken) <= average
    grids = result.plan.operand_grids
    assert result.allocation.activation_bits.items() <= {name: grid.bits for name, grid in grids.items()}.items()
    assert len(set(result.allocation.activation_bits.values())) > 1
    assert not result.allocation.bits
    assert {layer.weight_bits for layer in result.layers} == {8}


def test_mixed_is_better_than_one_width_for_all(digits, digits_calibration, digits_test):
    same = {"limit": 32, "measure": False, "guard": "off", "allocate_bits": "none"}
    uniform = qgraph.quantize(digits, digits_calibration, activations=4, edge_bits=4, weights=8, **same)
    mixed = qgraph.quantize(digits, digits_calibration, average_activation_bits=4, **same)
    kl = [qgraph.evaluate(result.model, digits_test, against=digits, limit=200).kl for result in (uniform, mixed)]
    assert kl[1] < 0.7 * kl[0]


def test_one_width_to_choose_from_is_that_width(digits, digits_calibration):
    """Weights too: they have the room that operands of fewer bits leave them."""
    same = {"method": "minmax", "edge_bits": 8, "limit": 32, "measure": False, "guard": "off"}
    uniform = qgraph.quantize(digits, digits_calibration, activations=4, **same).plan
    mixed = qgraph.quantize(digits, digits_calibration, activations="mixed", bits=(4,), **same).plan
    assert mixed == uniform
    assert mixed.layers != qgraph.quantize(digits, digits_calibration, **same).plan.layers


def test_weights_and_activations_have_budgets_of_their_own(digits, digits_calibration):
    same = {"limit": 32, "measure": False, "guard": "off"}
    both = qgraph.quantize(digits, digits_calibration, average_bits=3, average_activation_bits=4, **same)
    weights, activations = both.allocation.parts
    assert 0.9 * 3 < average_bits(weights.taken) <= 3
    assert 0.9 * 4 < average_bits(activations.taken) <= 4
    alone = qgraph.quantize(digits, digits_calibration, average_bits=3, **same)
    assert both.allocation.bits == alone.allocation.bits
    assert {layer.name: layer.weight_bits for layer in both.layers} == both.allocation.bits
    page = render(report_of(both, name="both"))
    assert "Least sum of sensitivities at every size of the weights" in page
    assert "Least sum of sensitivities at every size of the activations of a sample" in page
    assert "each tensor that layers read alone" in page


@pytest.mark.parametrize(("weights", "drop"), [(8, 0.0), (8, 2.5), ("mixed", 2.5)])
def test_the_drop_that_is_allowed_is_the_drop_that_is_taken(digits, digits_calibration, weights, drop):
    """An accuracy that falls by a quarter of a point with every bit, of weights and activations alike."""
    mixer = mixer_of(digits, digits_calibration, weights=weights, max_drop=drop)
    start = initial_plan(GraphView(mixer.net), mixer.recipe, mixer.observed)
    chosen, allocation = mixer.mix(start)
    missing = sum(8 - bits for bits in widths(chosen).values())
    assert missing / 4 <= drop
    assert missing == sum(8 - bits for _, bits in allocation.taken)
    assert (missing > 0) == (drop > 0)
    assert bool(allocation.bits) == (weights == "mixed")


def test_both_share_what_may_be_lost(digits, digits_calibration):
    """Together by bytes: what is mixed takes as much as the cheapest selection of the same loss."""
    mixer = mixer_of(digits, digits_calibration, weights="mixed", max_drop=2.5)
    _, allocation = mixer.mix(initial_plan(GraphView(mixer.net), mixer.recipe, mixer.observed))
    table = allocation.sensitivity
    assert table.layers
    assert table.tensors
    assert allocation.activations is None
    sizes = [dict(zip(row.bits, row.nbytes, strict=True))[bits] for row, bits in allocation.taken]
    assert allocation.chosen.size == sum(sizes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activations": 4, "average_activation_bits": 5}, "bits per tensor: give it with activations='mixed'"),
        ({"average_activation_bits": 5, "max_drop": 1}, "one of average_activation_bits and max_drop"),
        ({"average_activation_bits": -1.0}, "positive"),
        ({"activations": "mixed", "search": "groups"}, "measures weights alone"),
        ({"activations": "mixed", "allocate_bits": "both"}, "choose one of them"),
        ({"weights": 8, "max_drop": 1}, "weights='mixed'"),
    ],
)
def test_wrong_requests_are_explained(options, said):
    with pytest.raises(UsageError, match=said):
        choose_recipe("aciq", True, **options)


def test_which_bits_a_budget_is_of():
    def mixed(**options):
        recipe = choose_recipe("aciq", True, **options)
        return recipe.weights, recipe.activations, recipe.average_bits, recipe.average_activation_bits

    assert mixed(activations="mixed") == (8, "mixed", None, 5)
    assert mixed(average_activation_bits=4.5) == (8, "mixed", None, 4.5)
    assert mixed(weights="mixed", activations="mixed") == ("mixed", "mixed", 4, 5)
    assert mixed(activations="mixed", max_drop=1) == (8, "mixed", None, None)
    assert mixed(weights="mixed", activations="mixed", max_drop=1) == ("mixed", "mixed", None, None)
    assert mixed(max_drop=1) == ("mixed", 8, None, None)


def test_on_the_command_line(digits, digits_calibration, tmp_path, capsys):
    out, given = tmp_path / "out.onnx", ["--data", str(digits_calibration), "--limit", "16", "--bits", "3,8"]
    arguments = ["quantize", str(digits), "-o", str(out), *given, "--no-measure", "--guard", "off"]
    assert main([*arguments, "--activations", "mixed", "--average-activation-bits", "4"]) == 0
    assert "mixed activations that layers read: 3." in capsys.readouterr().out
    assert main([*arguments, "--average-activation-bits", "2.5"]) == 2
    assert "--average-activation-bits 3.00 or more" in capsys.readouterr().err
    assert main(["sensitivity", str(digits), *given, "--tensors", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {tuple(row["bits"]) for row in printed["tensors"]} == {(3, 8)}
    assert main(["sensitivity", str(digits), *given, "--tensors"]) == 0
    assert "stem/relu:0" in capsys.readouterr().out
