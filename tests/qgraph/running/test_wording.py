"""Messages name keywords to callers in Python and flags to users of the command line, by one mechanism."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import click
import pytest

import qgraph
from qgraph.cli import COMMANDS, cli, main
from qgraph.errors import UsageError
from qgraph.plan.recipe import Recipe
from qgraph.plan.request import choose_recipe
from qgraph.running.wording import Blank, option, speaking_flags
from qgraph.samples.dataset import Reading

ROOT = Path(__file__).resolve().parents[3]
FILES = [
    p
    for p in sorted((ROOT / "qgraph").rglob("*.py"))
    if not {"cli", "demo_assets", "report"} & {*p.relative_to(ROOT).parts}
]
CONFIGS = (qgraph.LsqPlusConfig, qgraph.SearchConfig)
FUNCTIONS = (qgraph.quantize, qgraph.finetune, qgraph.evaluate, qgraph.search)


@pytest.mark.parametrize(
    ("name", "value", "keyword", "flag"),
    [
        ("weights", None, "weights=None", "--weights none"),
        ("weights", 8, "weights=8", "--weights 8"),
        ("size_mb", 0.25, "size_mb=0.25", "--size-mb 0.25"),
        ("keep", ["a b", "c"], "keep=['a b', 'c']", "--keep 'a b' --keep c"),
        ("keep", [Blank("NAME")], "keep=[NAME]", "--keep NAME"),
        ("shapes", {"x": (1, 3)}, "shapes={'x': (1, 3)}", "--shape x=1,3"),
        ("batch_axes", {Blank("NAME"): 1}, "batch_axes={NAME: 1}", "--batch-axis NAME=1"),
        ("per_channel", False, "per_channel=False", "--per-tensor"),
        ("per_channel", True, "per_channel=True", "--per-channel"),
        ("symmetric", False, "symmetric=False", "--asymmetric"),
        ("bias_correction", False, "bias_correction=False", "--no-bias-correction"),
        ("config.rate", 0.1, "config.rate=0.1", "--rate 0.1"),
    ],
)
def test_both_spellings_of_an_option(name, value, keyword, flag):
    assert option(name, value) == keyword
    with speaking_flags():
        assert option(name, value) == flag
        assert option(name, value).startswith(option(name)) or value is False
    assert option(name) == name


REQUEST = {"weights": None, "activations": None}


def test_the_same_error_in_python_and_in_a_terminal(digits, digits_calibration, tmp_path, capsys):
    with pytest.raises(UsageError, match="both weights=None and activations=None leave"):
        qgraph.quantize(digits, digits_calibration, **REQUEST)
    words = ["quantize", str(digits), "-o", str(tmp_path / "o.onnx"), "--weights", "none", "--activations", "none"]
    assert main([*words, "--data", str(digits_calibration)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "both --weights none and --activations none leave" in said
    with pytest.raises(UsageError, match="both weights=None and activations=None leave"):  # it speaks keywords again
        qgraph.quantize(digits, digits_calibration, **REQUEST)


def test_a_plan_does_not_depend_on_who_asked(digits, digits_calibration, tmp_path):
    path, wanted = tmp_path / "p.json", {"keep": ["stem/conv"], "limit": 16, "measure": False}
    words = ["quantize", digits, "-o", tmp_path / "o.onnx", "--data", digits_calibration, "--limit", 16, "--plan", path]
    assert main([*map(str, words), "--keep", "stem/conv", "--no-measure", "--quiet"]) == 0
    plan = qgraph.quantize(digits, digits_calibration, **wanted).plan
    assert plan == qgraph.QuantPlan.load(path)
    assert any(kept.why == "asked for by name: stem/conv" for kept in plan.kept_float)


def test_budgets_go_with_mixed_bits():
    with pytest.raises(UsageError, match="size_mb chooses bits per layer: give it with weights='mixed'"):
        choose_recipe("aciq", True, weights=4, size_mb=1.0)


def named(path):
    """Every option that the file names, with its line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "option" and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_option_that_a_message_names_exists_on_both_sides():
    keywords = {f.name for f in dataclasses.fields(Recipe)} | {*Reading.__annotations__} | {"start"}
    keywords |= {name for function in FUNCTIONS for name in inspect.signature(function).parameters}
    keywords |= {f"config.{f.name}" for config in CONFIGS for f in dataclasses.fields(config)}
    commands = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    flags = {flag for c in commands for p in c.params for flag in (*p.opts, *p.secondary_opts)}
    found = dict(pair for path in FILES for pair in named(path))
    assert len(found) > 25
    assert {name: where for name, where in found.items() if name not in keywords} == {}
    with speaking_flags():
        assert {name: where for name, where in found.items() if option(name) not in flags} == {}


def literals(path):
    """The texts of a file that users may read, without docstrings; an f-string is one text."""
    tree = ast.parse(path.read_text("utf-8"))
    prose = {id(n.body[0].value) for n in ast.walk(tree) if hasattr(n, "body") and isinstance(n.body, list) and n.body
             and isinstance(n.body[0], ast.Expr)}  # fmt: skip
    parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    spoken = {id(c) for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "command"
              for c in ast.walk(n)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose | parts | spoken:
            yield node.value


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_message_of_the_library_spells_a_flag_itself(path):
    if path.name == "wording.py":  # which makes them
        return
    for text in literals(path):
        text = re.sub(r"qgraph \w+ --[a-z-]+", "", text)  # a command in full is one in Python's shell too
        assert not re.search(r"(^|[\s(])--[a-z]", text), text
