"""A network cut at a layer computes what the whole does, whatever is fed in place of the layer's weight and bias."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.qrater.bench import advance
from qgraph.methods.qrater.cut import BIAS, OPERAND, WEIGHT, cut, part
from qgraph.methods.qrater.tensors import Tensors
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.codes import quantized
from qgraph.plan.grids import weight_grid
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan
from qgraph.running.sessions import Session

RNG = np.random.default_rng(19)
HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('
CALLS = {
    "MatMul": "m = MatMul(r, w)",
    "MatMul, left": "t = Transpose(r)  s = MatMul(w, t)  m = Transpose(s)",
    "Gemm": "m = Gemm(r, w, c)",
    "Gemm without a bias": "m = Gemm(r, w)",
    "Gemm, scaled": "m = Gemm<alpha=0.5, beta=0.25>(r, w, c)",
    "Gemm, beta 0": "m = Gemm<beta=0.0>(r, w, c)",
}


def network(model_from_text, call):
    """A layer, the one that is cut, and a sum that reads what lies before both."""
    left = "left" in call
    body = f"[first] a = MatMul(x, u)  r = Relu(a)  {CALLS[call]}  n = Add(m, r)  [last] y = MatMul(n, v)"
    inputs = "float[N,5] x, float[5,6] u, float[6,6] w, float[6,4] v" + (
        ", float[6] c" if ", c)" in CALLS[call] else ""
    )
    shapes = {"u": (5, 6), "w": (6, 6), "v": (6, 4)} | ({"c": (6,)} if ", c)" in CALLS[call] else {})
    arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    net = normalise(load(model_from_text(f"{HEAD}{inputs}) => (float[N,4] y) {{ {body} }}", **arrays)))
    view = GraphView(net)
    (layer,) = (one for one in view.layers if one.weight.name == "w")
    assert left == (layer.weight_index == 0)
    return net, view, layer


@pytest.mark.parametrize("call", CALLS)
def test_the_parts_compute_the_whole(model_from_text, call):
    net, view, layer = network(model_from_text, call)
    quant = {
        one.name: LayerQuant(name=one.name, op=one.op, weight=weight_grid(-3.0, 3.0, bits=5, symmetric=True))
        for one in view.layers
    }
    others = tuple(q for name, q in quant.items() if name != layer.name)
    grids = (ActivationQuant(tensor="x", bits=6, scale=0.1, zero_point=32),)
    plan = QuantPlan(model=net.digest, recipe="", layers=others, activations=grids)
    found = cut(net, plan, layer.name)
    x = RNG.normal(size=(7, 5)).astype(np.float32)
    whole = Session(simulate(net, plan)).run({"x": x})["y"]
    tensors = Tensors(10**7)
    tensors.put("x", 0, x)
    advance(found, tensors, 1)
    assert tensors.names() == {*found.frontier, found.source, "x"}
    fed = {name: tensors.get(name, 0) for name in found.frontier}
    suffix = Session(found.suffix)

    def behind(weight, shift):
        given = fed | {OPERAND: tensors.get(found.source, 0), WEIGHT: weight, BIAS: found.bias_for(shift)}
        return suffix.run({name: given[name] for name in suffix.input_names})["y"]

    weight, shift = layer.weight_array(), tuple(np.linspace(-1, 1, 6))
    np.testing.assert_allclose(behind(weight, ()), whole, atol=1e-4)
    fine = weight_grid(-9.0, 9.0, bits=8, symmetric=True)
    alone = QuantPlan(
        model=net.digest,
        recipe="",
        layers=(*others, LayerQuant(name=layer.name, op=layer.op, weight=fine, bias_shift=shift)),
        activations=grids,
    )
    rounded = quantized(weight, alone.layers[-1].weight)
    np.testing.assert_allclose(behind(rounded, shift), Session(simulate(net, alone)).run({"x": x})["y"], atol=1e-3)
    result = Session(found.alone).run({OPERAND: tensors.get(found.source, 0), WEIGHT: weight})["search/result"]
    moved = Session(net.ir_model, outputs=[str(layer.output.name)]).run({"x": x})
    assert result.shape == next(iter(moved.values())).shape


def test_a_part_that_hands_its_input_on(model_from_text):
    """onnxruntime needs an operator between an input and an output."""
    net, _, _ = network(model_from_text, "MatMul")
    only = part(net.ir_model, inputs=["r"], outputs=["r", "y"])
    assert [v.name for v in only.graph.inputs] == ["r"]
    r = RNG.normal(size=(3, 6)).astype(np.float32)
    found = Session(only).run_list({"r": r})
    np.testing.assert_array_equal(found[0], r)
    assert found[1].shape == (3, 4)
