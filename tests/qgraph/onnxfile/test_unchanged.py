"""A rewrite that does not apply says why, as far as `qgraph inspect` and the list of what stays float."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import onnx
import pytest

import qgraph
from qgraph.cli import main
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
NORM = {"g": np.full(2, 2, np.float32), "b": np.zeros(2, np.float32), "m": np.zeros(2, np.float32)}
NORM["v"] = np.ones(2, np.float32)
PARAMETERS = "float[2] g, float[2] b, float[2] m, float[2] v"
W = np.random.default_rng(3).normal(size=(2, 2)).astype(np.float32)
KERNEL = W.reshape(2, 2, 1, 1)


def left(proto):
    return {node.name: (node.rewrite, node.why) for node in normalise(load(proto)).unchanged}


@pytest.mark.parametrize(
    ("body", "outputs", "why"),
    [
        ("y = BN(x)", "y", "there is no layer before it: it reads 'x' directly"),
        ("[act] r = Relu(x) y = BN(r)", "y", "it follows Relu 'act', which is not a convolution or matrix product"),
        (
            "[mm] h = MatMul(x, w) y = BN(h)",
            "y",
            "it normalises axis 1, but the channels of MatMul 'mm' are its last axis",
        ),
        ("[ge] h = Gemm(x, w) s = Relu(h) y = BN(h)", "y s", "the result of 'ge' before it is read 2 times"),
        ("[ge] h = Gemm(x, w) y = BN(h)", "y h", "the result of 'ge' before it is an output of the model"),
        ("[ge] h = Gemm(x, k) y = BN(h)", "y", "the weight of 'ge' is not a constant"),
        ("[ge] h = Gemm(x, w, k) y = BN(h)", "y", "the bias of 'ge' is not a constant"),
        ("[ge] h = Gemm(x, w, w) y = BN(h)", "y", "'ge' adds [2, 2] numbers, not one per channel"),
        ("[ge] h = Gemm<alpha = 0.5>(x, w) y = BN(h)", "y", "alpha or beta of 'ge' is not 1"),
        ("h = Gemm(x, w) [bn] y = BatchNormalization(h, g, b, m, open)", "y", "its variance is not a constant"),
    ],
)
def test_a_normalization_says_why_it_is_not_folded(model_from_text, body, outputs, why):
    lines = re.sub(r"y = BN\((\w+)\)", r"[bn] y = BatchNormalization(\1, g, b, m, v)", body)
    ends = ", ".join(f"float[2,2] {name}" for name in outputs.split())
    inputs = "float[2,2] x, float[2,2] k, float[2] open"
    text = f"{HEAD} net ({inputs}, float[2,2] w, {PARAMETERS}) => ({ends}) {{ {lines} }}"
    assert left(model_from_text(text, w=W, **NORM))["bn"] == ("fold into the layer before it", why)


def test_what_is_folded_is_not_listed(digits):
    assert normalise(load(digits)).unchanged == ()


def test_a_normalization_in_a_branch_without_a_layer_before_it_is_listed(model_from_text):
    text = f"""{HEAD} net (float[2,2] x, bool c, {PARAMETERS}) => (float[2,2] y) {{
      y = If(c) <then_branch = t () => (float[2,2] e) {{ [bn] e = BatchNormalization(x, g, b, m, v) }},
                else_branch = f () => (float[2,2] h) {{ h = Neg(x) }}>
    }}"""
    assert left(model_from_text(text, **NORM))["bn"][1] == "there is no layer before it: it reads 'x' directly"


def test_identities_say_why_they_stay():
    text = f"""{HEAD} net (float[2,2] x, bool t, float r) => (float[2,2] y, float[2,2] z, bool[2,2] mask) {{
      [out] y = Identity(x)
      [trains] d = Dropout(x, r, t)
      [masks] e, mask = Dropout(x)
      z = Add(d, e)
    }}"""
    found = left(onnx.parser.parse_model(text))
    assert found == {
        "out": ("bypass", "it makes the output 'y', which keeps its name"),
        "trains": ("bypass", "'t' decides whether it trains"),
        "masks": ("bypass", "its mask is read"),
    }


def test_constants_say_why_they_are_computed_at_run_time(model_from_text):
    text = f"""{HEAD} net (float[1000,2] x, int64[2] size, float one) => (float[1000,2] y, float o) {{
      [grows] e = Expand(one, size)
      [made] o = Neg(one)
      y = Sum(x, e, o)
    }}"""
    found = left(model_from_text(text, size=np.array([1000, 2]), one=np.float32(1)))
    assert found == {
        "grows": ("compute in advance", "stored, it would take 8,000 bytes; what it is computed from takes 20"),
        "made": ("compute in advance", "it makes the output 'o'"),
    }


@pytest.mark.parametrize(
    ("shapes", "added", "why"),
    [
        ({}, "k", "what is added has shape [2, 2], not one number for each of 2 columns"),
        ({"x": "2,2,2"}, "c", "'mm' reads a tensor of 3 dimensions, and Gemm takes two"),
        ({"w": "2,2,2"}, "c", "the weight of 'mm' is not a constant of two dimensions"),
        ({"s": "h"}, "c", "the result of 'mm' is read elsewhere too"),
    ],
)
def test_a_bias_says_why_it_is_not_joined(model_from_text, shapes, added, why):
    x, w = shapes.get("x", "2,2"), shapes.get("w", "2,2")
    more, end = ("s = Relu(h)", ", float[2,2] s") if "s" in shapes else ("", "")
    rank = "2,2,2" if "2,2,2" in (x, w) else "2,2"
    text = f"""{HEAD} net (float[{x}] x, float[{w}] w, float[2,2] k, float[2] c) => (float[{rank}] y{end}) {{
      [mm] h = MatMul(x, w) [sum] y = Add(h, {added}) {more} }}"""
    weight = np.resize(W, [int(d) for d in w.split(",")])
    found = left(model_from_text(text, w=weight, k=W, c=W[0]))
    assert found["sum"] == ("merge into the matrix product before it", why)


@pytest.fixture
def dense(model_from_text, tmp_path):
    """A normalization before its convolution, as in dense networks, and one behind all layers."""
    text = f"""{HEAD} net (float[N,2,4,4] x, float[2,2,1,1] w, {PARAMETERS}) => (float[N,2,4,4] y) {{
      [first] a = Conv(x, w)
      [act] r = Relu(a)
      [norm] n = BatchNormalization(r, g, b, m, v)
      [second] c = Conv(n, w)
      [later] s = Sin(c)
      [end] y = BatchNormalization(s, g, b, m, v)
    }}"""
    path = tmp_path / "dense.onnx"
    onnx.save(model_from_text(text, w=KERNEL, **NORM), path)
    return path


def test_what_stays_float_names_the_normalization(dense):
    plan = qgraph.quantize(dense, np.random.default_rng(0).normal(size=(8, 2, 4, 4)).astype(np.float32)).plan
    kept = {entry.name: entry.why for entry in plan.kept_float}
    assert kept["norm"] == "not folded: it follows Relu 'act', which is not a convolution or matrix product"
    assert kept["end"].startswith("post-processing")
    assert GraphView(pickle.loads(pickle.dumps(normalise(load(dense))))).unfolded.keys() == {"norm", "end"}


def test_inspect_says_why(dense, capsys):
    assert main(["inspect", str(dense), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    why = "it follows Relu 'act', which is not a convolution or matrix product"
    op = "BatchNormalization"
    assert content["unchanged"][0] == {"name": "norm", "op": op, "rewrite": "fold into the layer before it", "why": why}
    assert ("norm", why) in [(entry["name"], entry["why"]) for entry in content["kept_float"]]
    assert main(["inspect", str(dense)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "left as they are" in shown
    assert "it follows Relu 'act'" in shown
