"""Pad and Resize that name their axes, and paddings that a maximum does not take."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qgraph.errors import ModelError
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import prepare
from qgraph.running.sessions import Session

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 4, 8, 8)).astype(np.float32)
W, V = (RNG.normal(0, 0.3, shape).astype(np.float32) for shape in ((8, 4, 3, 3), (4, 8, 1, 1)))


def between(build, middle, opset=18, **constants):
    """Conv -> Relu -> `middle`, a line from r to z -> Conv."""
    declared = "".join(
        f", {KINDS[a.dtype.kind, a.dtype.itemsize]}[{','.join(map(str, a.shape))}] {n}" for n, a in constants.items()
    )
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[n, 4, 8, 8] x, float[8, 4, 3, 3] w, float[4, 8, 1, 1] v{declared.replace("[]", "")})
      => (float[n, 4, h, u] y) {{
        c = Conv(x, w)
        r = Relu(c)
        {middle}
        y = Conv(z, v)
    }}"""
    return build(text, w=W, v=V, **constants)


KINDS = {("i", 8): "int64", ("f", 4): "float"}
AXES = {
    "pad": ("z = Pad(r, p, , a)", {"p": np.array([1, 2, 3, 1]), "a": np.array([2, 3])}),
    "pad, from the end": ("z = Pad(r, p, , a)", {"p": np.array([1, 2]), "a": np.array([-1])}),
    "pad by reflection": (
        'z = Pad <mode = "reflect"> (r, p, , a)',
        {"p": np.array([1, 1, 1, 1]), "a": np.array([3, 2])},
    ),
    "scales": ('z = Resize <mode = "nearest", axes = [2, 3]> (r, , s)', {"s": np.array([2, 3], np.float32)}),
    "scales, one axis": ('z = Resize <mode = "nearest", axes = [-1]> (r, , s)', {"s": np.array([2], np.float32)}),
    "sizes": ('z = Resize <mode = "nearest", axes = [2, 3]> (r, , , s)', {"s": np.array([12, 9])}),
    "not larger": (
        'z = Resize <mode = "nearest", axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (r, , , s)',
        {"s": np.array([12, 15])},
    ),
    "bilinear": ('z = Resize <mode = "linear", axes = [2, 3]> (r, , s)', {"s": np.array([2, 2], np.float32)}),
}


@pytest.mark.parametrize("case", AXES)
def test_axes(agreement, model_from_text, case):
    middle, constants = AXES[case]
    net = between(model_from_text, middle, **constants)
    assert agreement(net, {"x": X}) > 22
    plain, normal = Session(load(net).ir_model).run_list({"x": X}), Session(prepare(net).ir_model).run_list({"x": X})
    np.testing.assert_allclose(plain[0], normal[0], rtol=1e-4, atol=1e-5)


def test_computed_pads_keep_their_axes(agreement, model_from_text):
    """Pads that depend on the input cannot be written for all axes: the operator stays in floats."""
    middle = """n = Shape <start = 1, end = 2> (x)
        m = Div(n, four)
        p = Concat <axis = 0> (m, m)
        z = Pad(r, p, , a)"""
    net = between(model_from_text, middle, four=np.array([4]), a=np.array([3]))
    assert agreement(net, {"x": X}) > 22


LOW = np.array(-np.inf, np.float32)
PADS = np.array([0, 0, 0, 0, 0, 0, 1, 1])
POOL = "z = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (q)"


@pytest.mark.parametrize("low", [-np.inf, np.finfo(np.float32).min, -65504.0])
@pytest.mark.parametrize("activations", [8, None])
def test_padding_before_a_maximum(agreement, model_from_text, low, activations):
    net = between(model_from_text, f"q = Pad(r, p, low)\n{POOL}", p=PADS, low=np.array(low, np.float32))
    assert agreement(net, {"x": X}, activations=activations) > 22


def test_the_pool_pads_itself(model_from_text):
    net = between(model_from_text, f"q = Pad(r, p, low)\n{POOL}", p=PADS, low=LOW)
    operators = Counter(node.op_type for node in normalise(load(net)).graph)
    assert operators == {"Conv": 2, "Relu": 1, "MaxPool": 1}


WHOLE = {
    "cut off": ("q = Pad(r, p, low)\n" + POOL, np.array([0, 0, -1, 0, 0, 0, 1, 1]), V),
    "read twice": ("q = Pad(r, p, low)\n" + POOL + "\nu = MaxPool <kernel_shape = [1, 1]> (q)", PADS, V),
    "ceil": ("q = Pad(r, p, low)\n" + POOL.replace("<", "<ceil_mode = 1, "), PADS, V),
    "named axes": ("q = Pad(r, p, low, a)\n" + POOL, np.array([0, 0, 1, 1]), V),
}


@pytest.mark.parametrize("case", WHOLE)
def test_padding_that_a_pool_cannot_do_itself(agreement, model_from_text, case):
    middle, pads, _ = WHOLE[case]
    constants = {"p": pads, "low": LOW} | ({"a": np.array([2, 3])} if "axes" in case else {})
    assert agreement(between(model_from_text, middle, **constants), {"x": X}) > 22


def test_padding_by_attributes_before_opset_11(agreement, model_from_text):
    middle = f"q = Pad <pads = [0, 0, 0, 0, 0, 0, 1, 1], value = -inf> (r)\n{POOL}"
    try:
        net = between(model_from_text, middle, opset=10)
    except Exception:
        net = between(model_from_text, middle.replace("-inf", "-3.4028235e38"), opset=10)
    assert agreement(net, {"x": X}) > 22


def test_a_model_that_computes_infinities_is_refused(model_from_text):
    import qgraph

    net = between(model_from_text, "q = Log(zero)\nz = Add(r, q)", zero=np.zeros(1, np.float32))
    with pytest.raises(ModelError, match="invalid values for"):
        qgraph.quantize(net, {"x": X})
