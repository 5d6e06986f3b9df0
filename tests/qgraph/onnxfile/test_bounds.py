"""Graphs that no machine could compute are refused before anything runs; others, however odd, are not."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.errors import ModelError
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise

HEAD = '<ir_version: 10, opset_import: ["": 18]>'
BODY = "body (int64 i, bool go, float[1] a) => (bool on, float[1] b) { on = %s b = Neg(a) }"
LOOP = f"{HEAD} g (float[1] x, int64 n, bool go) => (float[1] y) {{ y = Loop (%s, %s, x) <body = {BODY}> }}"
GROWS = f"{HEAD} g (float[2, 4] x, int64[2] shape) => (float[A, B] y) {{ %s y = Mul(z, z) }}"


def build(model_from_text, text, **weights):
    return normalise(load(model_from_text(text, **{k: np.asarray(v) for k, v in weights.items()})))


@pytest.mark.parametrize(
    ("trips", "condition", "step"),
    [
        ("", "", "Identity(go)"),
        ("", "yes", "Identity(go)"),
        ("many", "yes", "Identity(go)"),
        ("many", "", "Identity(yes)"),
    ],
)
def test_a_loop_without_end(model_from_text, trips, condition, step):
    with pytest.raises(ModelError, match=r"Loop '.*' never ends"):
        build(model_from_text, with_constants(LOOP % (trips, condition, step)))


@pytest.mark.parametrize(
    ("trips", "condition", "step"),
    [
        ("n", "yes", "Identity(go)"),
        ("few", "yes", "Identity(go)"),
        ("", "go", "Identity(go)"),
        ("", "yes", "Not(go)"),
        ("many", "no", "Identity(go)"),
    ],
)
def test_a_loop_that_may_end(model_from_text, trips, condition, step):
    build(model_from_text, with_constants(LOOP % (trips, condition, step)))


def with_constants(text):
    """The text with the constants that it names."""
    known = {"many": "int64 {9000000000}", "few": "int64 {3}", "yes": "bool {1}", "no": "bool {0}"}
    lines = [f"{name} = Constant<value = {value}>()" for name, value in known.items() if name in text]
    head, _, rest = text.partition("{ y")
    return f"{head}{{ {' '.join(lines)} y{rest}"


@pytest.mark.parametrize(
    "node",
    [
        "z = ConstantOfShape(shape)",
        "one = Constant<value = float {1.0}>() z = Expand(one, shape)",
        "z = Tile(x, shape)",
    ],
)
def test_a_tensor_out_of_all_proportion(model_from_text, node):
    with pytest.raises(ModelError, match=r"makes a tensor of [\d,]+ bytes from [\d,]+ bytes of"):
        build(model_from_text, GROWS % node, shape=np.array([2**16, 2**16]))
    build(model_from_text, GROWS % node, shape=np.array([16, 16]))


@pytest.mark.parametrize(("place", "words"), [(0, "values along one axis"), (1, "makes a tensor of")])
def test_padding_out_of_all_proportion(model_from_text, place, words):
    """Along the batch, whose size is not known, as well as along an axis of known size."""
    text = f"{HEAD} g (float[N, 4] x, int64[4] pads) => (float[A, B] y) {{ y = Pad(x, pads) }}"
    pads = np.zeros(4, np.int64)
    pads[place] = 2**30
    with pytest.raises(ModelError, match=words):
        build(model_from_text, text, pads=pads)
    build(model_from_text, text, pads=np.minimum(pads, 100))
