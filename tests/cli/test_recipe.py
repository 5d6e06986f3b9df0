"""A recipe is a command line in a file."""

from __future__ import annotations

import tomllib

import pytest

from qgraph.cli import main
from qgraph.cli.recipe_file import PRESETS
from qgraph.plan.plan import QuantPlan


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = main([str(a) for a in arguments])
        return status, capsys.readouterr().err

    return call


def test_a_saved_recipe_makes_the_same_file(run, digits, digits_calibration, tmp_path):
    options = ("--limit", 32, "--per-tensor", "--mean", "0.1", "--edge-bits", 6, "--fail-below", "5dB", "--quiet")
    options += ("--set", "*:weights=4", "--set", "stem*:weights=5")
    first = ("quantize", digits, "-o", "a.onnx", "--data", digits_calibration, *options, "--save-recipe", "r.toml")
    assert run(*first) == (0, "")
    recipe = tomllib.loads((tmp_path / "r.toml").read_text())
    assert recipe["set"] == ["*:weights=4", "stem*:weights=5"]
    assert (recipe["limit"], recipe["per-channel"], recipe["mean"], recipe["fail-below"]) == (32, False, "0.1", "5.0dB")
    assert "measure" not in recipe, "a default"
    assert run("quantize", "--recipe", "r.toml", "-o", "b.onnx") == (0, "")
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()


def test_names_in_a_list_are_saved_apart(run, digits_calibration, tmp_path):
    given = ("search", "no.onnx", "--data", digits_calibration, "-o", "p.json")
    assert run(*given, "--ingredients", "clip,round", "--save-recipe", "r.toml")[0] == 1
    assert tomllib.loads((tmp_path / "r.toml").read_text())["ingredients"] == "clip,round"
    status, said = run(*given, "--recipe", "r.toml")
    assert (status, "no such model file" in said) == (1, True)


def test_the_command_line_takes_precedence(run, digits, digits_calibration, tmp_path):
    (tmp_path / "r.toml").write_text(
        'weights = 4\nper-tensor = true\nmean = [0.1]\n"no-measure" = true\nquiet = true\n'
    )
    made = ("quantize", digits, "-o", "a.onnx", "--data", digits_calibration, "--limit", 16, "--recipe", "r.toml")
    assert run(*made, "--weights", 5, "--plan", "plan.json") == (0, "")
    layer = QuantPlan.load("plan.json").layers[2]
    assert (layer.weight.bits, len(layer.weight.scale)) == (5, 1)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(run, digits, digits_calibration, preset):
    made = ("quantize", digits, "-o", "a.onnx", "--data", digits_calibration, "--recipe", preset, "--quiet")
    assert run(*made, "--no-measure") == (0, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weighs = 4", "has 'weighs', which quantize does not take; did you mean weights"),
        ("weights = ", "is not TOML"),
        ("weights = 9", "must be a number from 2 to 8"),
        ("weights = {a = 1}", "'weights' must be a text, a number or a list of them"),
        ("weights = true", "'weights' must be a text, a number or a list of them"),
        ("keep = [[1]]", "'keep' must be a text, a number or a list of them"),
    ],
)
def test_recipes_that_say_nothing(run, tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    status, err = run("quantize", "m.onnx", "-o", "a.onnx", "--recipe", "r.toml")
    assert (status, list(tmp_path.glob("*.onnx"))) == (2, [])
    assert message in err
    status, err = run("quantize", "m.onnx", "-o", "a.onnx", "--recipe", "none.toml")
    assert status == 2
    assert "cannot read the recipe" in err


def test_one_name_is_a_list_of_one(run, digits, digits_calibration, tmp_path):
    (tmp_path / "r.toml").write_text('keep = "residual*"\n')
    made = ("quantize", digits, "-o", "a.onnx", "--data", digits_calibration, "--limit", 16, "--recipe", "r.toml")
    assert run(*made, "--quiet", "--no-measure", "--plan", "plan.json") == (0, "")
    kept = {kept.name for kept in QuantPlan.load("plan.json").kept_float}
    assert kept == {"residual/first/conv", "residual/second/conv"}, "not every letter, among which * is all layers"
