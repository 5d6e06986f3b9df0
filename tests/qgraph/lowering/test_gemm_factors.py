"""Products whose operand is divided by factors of its channels: every form of Gemm and MatMul computes the same."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

import qmath
from qgraph.graph.sites import GraphView
from qgraph.lowering.export import export
from qgraph.lowering.simulate import simulate
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes
from qgraph.plan.grids import weight_grid
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.running.sessions import Session

RNG = np.random.default_rng(11)
FACTORS = (0.5, 0.0, 2.0, 1.0, 0.0, 4.0, 0.25)
FORMS = ["MatMul", *itertools.product((0, 1), (0, 1), ((1.0, 1.0), (0.5, 2.0), (2.0, 0.0)))]


def dynamic(x: np.ndarray) -> np.ndarray:
    """DynamicQuantizeLinear and back, in float64."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = np.float32((high - low) / 255)
    zero = np.rint(np.clip(-low / step, 0, 255))
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step


@pytest.mark.parametrize("factors", [(), FACTORS], ids=["plain", "factors"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_computes_the_formula(model_from_text, form, factors):
    turned, transposed, (alpha, beta) = (0, 0, (1.0, 0.0)) if form == "MatMul" else form
    call = (
        "MatMul(x, w)"
        if form == "MatMul"
        else (f"Gemm<transA={turned}, transB={transposed}, alpha={alpha}, beta={beta}>(x, w, c)")
    )
    given, held = ("7,N" if turned else "N,7"), ("5,7" if transposed else "7,5")
    bias = "" if form == "MatMul" else ", float[5] c"
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    net (float[{given}] x, float[{held}] w{bias}) => (float[N,5] y) {{ [layer] y = {call} }}"""
    weight, c = RNG.uniform(-0.3, 0.3, (7, 5)).astype(np.float32), RNG.normal(size=5).astype(np.float32)
    arrays = {"w": np.ascontiguousarray(weight.T) if transposed else weight} | ({"c": c} if bias else {})
    net = normalise(load(model_from_text(text, **arrays)))
    (layer,) = GraphView(net).layers
    grid = weight_grid(
        -np.ones(5), np.ones(5), bits=7, granularity=qmath.Granularity(axis=layer.output_axis), symmetric=True
    )
    grid = dataclasses.replace(grid, input_scale=factors, gain=(1.0, 1.1, 0.9, 1.2, 0.8))
    quant = LayerQuant(name="layer", op=layer.op, weight=grid, runs="dynamic")
    plan = QuantPlan(model=net.digest, recipe="test", layers=(quant,))
    x = RNG.normal(size=(9, 7)).astype(np.float32)
    held_apart = np.asarray(factors or (1.0,) * 7) == 0
    scaled = np.where(held_apart, 1, np.asarray(factors or (1.0,) * 7))
    seen = dynamic(np.where(held_apart, 0, x / scaled)) * scaled
    rounded = codes.quantized(layer.weight_array(), grid)
    rounded = rounded.T if transposed else rounded
    assert (rounded[held_apart] == weight[held_apart]).all()
    expected = alpha * (np.where(held_apart, x, seen) @ rounded.astype(np.float64)) + (beta * c if bias else 0)
    feeds = {"x": np.ascontiguousarray(x.T) if turned else x}
    for lowered in (simulate(net, plan), export(net, plan), export(net, plan, packed=False)):
        np.testing.assert_allclose(Session(lowered).run(feeds)["y"], expected, atol=2e-4)
