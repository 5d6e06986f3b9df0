"""Methods register themselves: those of the package, and a toy that comes from outside in one file."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import qgraph
from qgraph.cli import main
from qgraph.errors import UsageError
from qgraph.observe.material import check_needs
from qgraph.onnxfile.load import load
from qgraph.plan import registry
from qgraph.plan.request import choose_recipe

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
TOY = '''
"""A method from outside."""

import dataclasses

import qgraph


@qgraph.method("toy", defaults={"weights": 5}, after="minmax")
def toy(plan, given):
    """Scales of activations, a tenth wider."""
    wider = (dataclasses.replace(a, scale=a.scale * 1.1) for a in plan.activations)
    return dataclasses.replace(plan, activations=tuple(wider))
'''
ENTRY = "[qgraph.methods]\ntoy = toy_method\n"


@pytest.fixture
def own_methods(monkeypatch):
    """A registry whose newcomers are gone after the test."""
    registry.method_names()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    yield
    sys.modules.pop("toy_method", None)


@pytest.fixture
def toy(tmp_path, monkeypatch, own_methods):
    """The folder of the toy's one file, from which modules are imported."""
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def installed(toy):
    """The same as an installer leaves it."""
    notes = toy / "toy-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (notes / "entry_points.txt").write_text(ENTRY)
    importlib.invalidate_caches()
    return toy


def test_a_method_from_outside_makes_the_plan(toy, digits, digits_calibration):
    importlib.import_module("toy_method")
    plan = qgraph.quantize(digits, digits_calibration, method="toy", limit=32).plan
    like = {"weights": 5, "activations": 8, "limit": 32}
    base = qgraph.quantize(digits, digits_calibration, method="minmax", **like).plan
    assert plan.recipe == "toy"
    assert {quant.weight.bits for quant in plan.layers} == {5, 8}, "its default, and 8 at the edges"
    assert plan.layers == base.layers
    assert [a.scale for a in plan.activations] == [a.scale * 1.1 for a in base.activations]


def test_the_command_line_finds_an_installed_method(installed, digits, digits_calibration, tmp_path, capsys):
    found = {"PYTHONPATH": os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = ["quantize", str(digits), "-o", str(tmp_path / "out.onnx"), "--data", str(digits_calibration)]
    command += ["--method", "toy", "--limit", "32", "--quiet", "--plan", str(tmp_path / "plan.json")]
    there = [sys.executable, "-m", "qgraph", *command]
    assert subprocess.run(there, env={**os.environ, **found}).returncode == 0
    assert json.loads((tmp_path / "plan.json").read_text())["recipe"] == "toy"
    assert main(["quantize", "--help"]) == 0
    assert "toy" in capsys.readouterr().out
    assert "toy_method" not in sys.modules, "its name is known without it"
    assert "toy" in registry.method_names()
    assert registry.find("toy").summary == "Scales of activations, a tenth wider."


def test_what_is_listed_and_broken_says_so(installed):
    (installed / "toy_method.py").write_text("raise ImportError('no module named cupy')")
    with pytest.raises(UsageError, match="cannot be imported from 'toy': no module named cupy"):
        registry.find("toy")
    (installed / "toy_method.py").write_text("")
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match="toy_method registers none of that name"):
        registry.find("toy")


def test_a_name_is_taken_once(own_methods):
    qgraph.method("mine")(lambda plan, given: plan)
    for name in ("mine", "aciq"):
        with pytest.raises(ValueError, match=f"method '{name}' is already registered, by"):
            qgraph.method(name)(lambda plan, given: plan)


def test_our_names_are_ours_whoever_comes_first():
    code = "import qgraph\ntry: qgraph.method('zeroq')(print)\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "already registered, by qgraph.methods.zeroq.zeroq" in done.stdout


def test_needs_are_of_known_kinds():
    with pytest.raises(ValueError, match="needs 'luck', which is none of data, labels, batch norm"):
        qgraph.method("mine", needs=["luck"])


def test_a_method_cannot_stand_on_itself(own_methods):
    qgraph.method("one", after="two")(lambda plan, given: plan)
    qgraph.method("two", after="one")(lambda plan, given: plan)
    with pytest.raises(ValueError, match="stands on itself, by way of"):
        registry.chain("one")


def test_a_method_gives_back_a_plan(own_methods, digits, digits_calibration):
    qgraph.method("forgot")(lambda plan, given: None)
    with pytest.raises(UsageError, match=r"method 'forgot' must return a QuantPlan, .* returned NoneType"):
        qgraph.quantize(digits, digits_calibration, method="forgot", limit=8)


def test_what_a_method_needs_is_asked_for_first(own_methods, digits, digits_calibration, model_from_text):
    qgraph.method("greedy", needs=["data", "labels", "batch norm"])(lambda plan, given: plan)
    qgraph.method("heir", after="greedy")(lambda plan, given: plan)
    with pytest.raises(UsageError, match="method 'greedy' needs data"):
        qgraph.quantize(digits, method="greedy")
    with pytest.raises(UsageError, match="method 'heir' learns from labels"):
        qgraph.quantize(digits, np.zeros((1, 1, 8, 8), np.float32), method="heir")
    qgraph.method("norms", needs=["batch norm"])(lambda plan, given: plan)
    check_needs("norms", load(digits), None)
    text = f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y = Relu(x) }}"
    with pytest.raises(UsageError, match=r"method 'norms' reads BatchNormalization, but .* has none"):
        check_needs("norms", load(model_from_text(text)), None)


def test_a_default_that_is_no_option_is_refused(own_methods):
    qgraph.method("odd", defaults={"wieghts": 4})(lambda plan, given: plan)
    with pytest.raises(UsageError, match="unknown option 'wieghts'; did you mean weights"):
        choose_recipe("odd", True)


def test_a_method_that_runs_once_sees_the_bits_that_were_mixed(own_methods, model_from_text):
    seen = []

    @qgraph.method("last", after="aciq", once=True, defaults={"weights": "mixed", "bits": (2, 8)})
    def last(plan, given):
        seen.append({quant.weight.bits for quant in plan.layers})
        return plan

    body = "{ h = MatMul(x, a) y = MatMul(h, b) }"
    text = f"{HEAD} g (float[N, 8] x, float[8, 8] a, float[8, 8] b) => (float[N, 8] y) {body}"
    weights = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    model = model_from_text(text, a=weights[0], b=weights[1])
    qgraph.quantize(model, np.eye(8, dtype=np.float32), method="last", average_bits=5.0, activations=None)
    assert seen == [{2, 8}]


def test_only_methods_that_train_are_fine_tuned(digits):
    with pytest.raises(UsageError, match=r"method 'aciq' does not train: pass it to qgraph[.]quantize"):
        qgraph.finetune(digits, method="aciq")


def test_defaults_are_those_of_the_contract():
    plain = {"symmetric": True, "clip": "max", "weight_clip": "max", "bias_correction": False}
    expected = {
        "minmax": plain | {"allocate_bits": "none", "rounding": "nearest"},
        "aciq": {},
        "zeroq": {},
        "qrater": {"symmetric": True, "clip": "qrater", "rounding": "qrater"},
        "lsqplus": plain | {"weights": 4, "activations": 4},
        "reconstruct": {"rounding": "second-order"},
        "second-order": {"rounding": "second-order"},
    }
    assert {name: registry.defaults(name) for name in registry.method_names()} == expected
    assert all(registry.find(name).summary.endswith(".") for name in expected)
    assert choose_recipe(None, True).method == "aciq"
    assert choose_recipe(None, False).method == "zeroq"


def test_names_and_defaults_are_known_without_engines():
    code = "import sys; from qgraph.plan.registry import find, method_names; [find(n).defaults for n in method_names()]"
    code += "\nassert not {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'scipy', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
