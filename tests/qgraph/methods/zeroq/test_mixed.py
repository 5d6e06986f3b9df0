"""Mixed precision from model to file, in the library and on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest

import qgraph
from qgraph.cli import main
from qgraph.errors import ModelError, UsageError
from qgraph.graph.sites import GraphView
from qgraph.methods.zeroq.mixed_precision import Menus, Mixer
from qgraph.observe.compared import Compared
from qgraph.observe.statistics import observe
from qgraph.onnxfile.opset import prepare
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.running.job import Job
from qgraph.samples.dataset import open_data

PER_MB = 2**20
GROUPS = "group search"


@pytest.fixture(scope="module")
def labelled(digits_test):
    with np.load(digits_test) as archive:
        return {name: archive[name][:200] for name in archive.files}


def run_mixed(digits, data, **options):
    return qgraph.quantize(digits, data, weights="mixed", limit=32, **options)


@pytest.mark.parametrize("average", [3, 4.5, 6])
def test_weights_fit_the_budget_and_nearly_fill_it(digits, digits_calibration, average):
    result = run_mixed(digits, digits_calibration, average_bits=average)
    count = sum(row.weights for row in result.allocation.sensitivity.layers)
    taken = sum(layer.weight_bytes for layer in result.layers)
    assert 0.93 * average / 8 * count <= taken <= average / 8 * count
    assert {layer.name: layer.weight_bits for layer in result.layers} == result.allocation.bits
    again = run_mixed(digits, digits_calibration, size_mb=average / 8 * count / PER_MB)
    assert again.plan == result.plan


def test_mixed_is_better_than_one_width_for_all(digits, digits_calibration, digits_test):
    uniform = qgraph.quantize(digits, digits_calibration, weights=3, edge_bits=3, limit=32)
    mixed = run_mixed(digits, digits_calibration, average_bits=3)
    kl = [qgraph.evaluate(result.model, digits_test, against=digits, limit=200).kl for result in (uniform, mixed)]
    assert kl[1] < 0.7 * kl[0]


def test_groups_find_no_worse_than_sums(digits, digits_calibration):
    sums = run_mixed(digits, digits_calibration, average_bits=3.3)
    groups = run_mixed(digits, digits_calibration, average_bits=3.3, search="groups")
    budget = 3.3 / 8 * sum(row.weights for row in sums.allocation.sensitivity.layers)
    assert groups.allocation.chosen.size <= budget
    # the measured cost of the sums' own choice is among those compared
    at_most = groups.allocation.frontier.within(sums.allocation.chosen.size).cost
    assert groups.allocation.chosen.cost <= at_most


def test_edge_bits_and_reduced_range_bound_the_choices(digits, digits_calibration):
    result = run_mixed(digits, digits_calibration, bits=(3, 8), edge_bits=6, reduce_range=True)
    rows = result.allocation.sensitivity.layers
    assert rows[0].bits == rows[-1].bits == (6,)
    assert all(row.bits == (3, 7) for row in rows[1:-1])


def test_the_smallest_that_keeps_its_accuracy(digits, labelled):
    better: list[qgraph.Result] = []
    result = qgraph.quantize(digits, labelled, weights="mixed", max_drop=1.0, on_better=better.append)
    floats = qgraph.evaluate(digits, labelled).top1
    assert floats - qgraph.evaluate(result.model, labelled).top1 <= 1.0
    assert better[-1].plan == result.plan
    sizes = [sum(layer.weight_bytes for layer in some.layers) for some in better]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]


def test_no_drop_that_cannot_be_kept(digits, labelled):
    wrong = {**labelled, "labels": labelled["labels"]}
    with pytest.raises(ModelError, match="even the most bits"):
        qgraph.quantize(digits, wrong, weights="mixed", bits=(2,), activations=2, edge_bits=2, max_drop=0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": 4, "size_mb": 0.1}, "weights='mixed'"),
        ({"weights": "mixed", "size_mb": 0.1, "average_bits": 3}, "one of size_mb and average_bits"),
        ({"weights": "mixed", "size_mb": -1.0}, "positive"),
        ({"weights": "mixed", "size_mb": float("nan")}, "positive"),
        ({"weights": "mixed", "bits": (1, 4)}, "from 2 to 8"),
        ({"weights": "mixed", "allocate_bits": "weights"}, "choose one of them"),
        ({"weights": "mixed", "search": "random"}, "frontier, groups"),
        ({"weights": "mixed", "direction": "both"}, "forward, reverse"),
        ({"method": "aciq", "weights": "mixed", "activations": None}, "pass data"),
    ],
)
def test_wrong_requests_are_explained(options, said):
    with pytest.raises(UsageError, match=said):
        choose_recipe(options.pop("method", None), False, **options)


def test_a_budget_implies_mixing_and_no_budget_means_four_bits():
    assert choose_recipe("zeroq", False, size_mb=0.1).weights == "mixed"
    assert choose_recipe("zeroq", False, weights="mixed").average_bits == 4


def test_accuracy_needs_labels(digits, digits_calibration, labelled):
    with pytest.raises(UsageError, match="labels"):
        qgraph.quantize(digits, {"images": labelled["images"]}, weights="mixed", max_drop=1)


@pytest.mark.parametrize("budget", ["0.0001", "0"])
def test_the_command_line_names_the_smallest_size(digits, digits_calibration, tmp_path, capsys, budget):
    out = tmp_path / "out.onnx"
    arguments = ["quantize", str(digits), "-o", str(out), "--data", str(digits_calibration), "--size-mb", budget]
    assert main(arguments) == 2
    assert ("0.0116" if budget != "0" else "positive") in capsys.readouterr().err
    assert not out.exists()


def test_sensitivity_on_the_command_line(digits, digits_calibration, tmp_path, capsys):
    out = tmp_path / "sensitivity.json"
    arguments = ["sensitivity", str(digits), "--data", str(digits_calibration), "--limit", "32"]
    assert main([*arguments, "-o", str(out)]) == 0
    assert "2 bits" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert [row["bits"] for row in printed["layers"]] == [[2, 4, 8]] * 7
    assert main([*arguments, "--bits", "2,9"]) == 2


def test_killed_and_resumed_it_ends_with_the_same_bytes(digits, digits_calibration, tmp_path, pieces_in):
    def command(out: str, *more: str) -> list[str]:
        options = ["--data", str(digits_calibration), "--limit", "8", "--bits", "2,4", "--average-bits", "3"]
        options += ["--search", "groups", "--no-measure"]
        return [sys.executable, "-m", "qgraph", "quantize", str(digits), "-o", out, "--quiet", *options, *more]

    resume = ["--resume", str(tmp_path / "work")]
    with subprocess.Popen(command("killed.onnx", *resume), cwd=tmp_path) as process:
        while pieces_in(tmp_path / "work", GROUPS) < 4 and process.poll() is None:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.onnx").exists()
    done = pieces_in(tmp_path / "work", GROUPS)
    assert main(command(str(tmp_path / "killed.onnx"), *resume)[3:]) == 0
    assert pieces_in(tmp_path / "work", GROUPS) > done
    assert main(command(str(tmp_path / "whole.onnx"))[3:]) == 0
    assert (tmp_path / "killed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.parametrize("drop", [0.0, 1.0, 2.5])
def test_the_drop_that_is_allowed_is_the_drop_that_is_taken(digits, digits_calibration, drop):
    """An accuracy that falls by a quarter of a point with every bit: the first point beyond the bound is not taken."""
    net = prepare(digits)
    recipe = choose_recipe("minmax", True, weights="mixed", bits=(2, 3, 4, 6, 8), max_drop=drop)

    def accuracy(model):
        missing = 0 if model is net.ir_model else sum(8 - layer.weight.bits for layer in model.layers)
        return 90.0 - missing / 4

    accepted = []
    view = GraphView(net)
    mixer = Mixer(
        net=net,
        recipe=recipe,
        data=open_data(digits_calibration, net, limit=8),
        refine=lambda plan, recipe: plan,
        lower=lambda plan: plan,
        judge=lambda model: Compared(name="accuracy", before=90.0, after=accuracy(model), samples=8),
        on_better=accepted.append,
    )
    chosen, _ = mixer.mix(initial_plan(view, recipe, observe(net, mixer.data)))
    assert 0 <= 90.0 - accuracy(chosen) <= drop
    assert all(90.0 - accuracy(plan) <= drop for plan in accepted)
    assert accuracy(chosen) == min(map(accuracy, accepted))


@pytest.mark.parametrize(("layers", "groups"), [(1, 1), (10, 1), (11, 2), (20, 2)])
def test_a_group_search_tells_how_many_combinations_there_are(digits, digits_calibration, monkeypatch, layers, groups):
    """Ten intervals of size for every ten layers, with twelve selections measured in each (Appendix A)."""
    net, told = prepare(digits), []

    class Counted:
        def stage(self, title, total=None, *, pieces=1):
            told.append((title, total))
            return nullcontext(lambda units, note="": None)

    monkeypatch.setattr("qgraph.methods.zeroq.mixed_precision.search_groups", lambda *_, **__: "front")
    recipe = choose_recipe("minmax", True, max_drop=1.0, search="groups")
    data = open_data(digits_calibration, net, limit=2)
    unused = {"refine": None, "lower": None, "judge": None}
    mixer = Mixer(net=net, recipe=recipe, data=data, job=Job(progress=Counted()), **unused)
    assert mixer.frontier(None, Menus(layers={f"layer {i}": [] for i in range(layers)})) == "front"
    assert told == [("group search", groups * 10 * 12)]
