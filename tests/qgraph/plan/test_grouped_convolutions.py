"""Groups of convolutions: a step for neighbours along the inputs of every tap, or along the taps of a filter."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
import qmath
from qgraph.lowering.lower import lower
from qgraph.onnxfile.opset import prepare
from qgraph.plan import codes
from qgraph.plan.grouped import grouped_grid
from qgraph.running.sessions import Session

RNG = np.random.default_rng(5)
WEIGHT = (RNG.laplace(size=(6, 40, 3, 3)) * np.exp(RNG.normal(size=(1, 40, 1, 1)))).astype(np.float32)


def network(weight):
    """Two convolutions; the edges of a network have 8 bits."""
    outputs, inputs = weight.shape[:2]
    ones = ", ".join(["1.0"] * (outputs * outputs))
    net = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, {inputs}, 12, 40] x) => (float[N, {outputs}, H, W] z)
        <float[{outputs}, {outputs}, 1, 1] o = {{{ones}}}, float[1] w = {{0}}>
        {{ y = Conv(x, w) z = Conv(y, o) }}"""
    )
    net.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    net.graph.initializers["w"].shape = ir.Shape(weight.shape)
    return prepare(net)


@pytest.mark.parametrize(("shape", "axis"), [((6, 40, 3, 3), 1), ((6, 3, 3, 70), 3), ((6, 40, 1, 1), 1)])
def test_groups_run_along_the_longest_axis_and_lose_less(shape, axis):
    weight = (RNG.laplace(size=shape) * np.linspace(0.1, 2, shape[axis]).reshape([-1, *[1] * (3 - axis)])).astype("f4")
    net = network(weight)
    made = qgraph.quantize(net.ir_model, weights=4, activations=None, edge_bits="same", measure=False)
    plan = made.plan
    quant = next(q for q in plan.layers if q.weight.unit)
    assert (quant.weight.granularity.axis, quant.weight.granularity.group) == (axis, 32)
    plain = qgraph.quantize(net.ir_model, weights=4, activations=None, edge_bits="same", group="none", measure=False)
    errors = [
        np.square(codes.quantized(weight, next(q for q in p.layers if q.name == quant.name).weight) - weight).sum()
        for p in (plan, plain.plan)
    ]
    assert errors[0] < 0.8 * errors[1]
    x = RNG.normal(size=(2, shape[1], 12, 80)).astype(np.float32)[..., : 40 if shape[3] < 40 else 80]
    if shape[3] > 40:
        return
    runs = [Session(m).run_list({"x": x})[0] for m in (made.model, lower(made.net, plan, format="float"))]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-4, atol=1e-3 * np.abs(runs[1]).max())


def test_every_parameter_belongs_to_its_group():
    along = qmath.Granularity(axis=1, group=16)
    grid = grouped_grid(WEIGHT, along, bits=4, symmetric=False, most=None)
    assert grid.channel_axis == 0
    assert len(grid.unit) == 6
    rows = [
        grouped_grid(WEIGHT[:, :, i, j], along, bits=4, symmetric=False, most=None) for i in range(3) for j in range(3)
    ]
    found = np.square(codes.quantized(WEIGHT, grid) - WEIGHT).sum()
    apart = sum(
        np.square(codes.quantized(WEIGHT[:, :, k // 3, k % 3], one) - WEIGHT[:, :, k // 3, k % 3]).sum()
        for k, one in enumerate(rows)
    )
    assert found < 1.1 * apart  # one unit for all taps of a channel, not one for each


def test_static_convolutions_have_groups_only_if_asked():
    net = network(WEIGHT)
    x = RNG.normal(size=(8, 40, 12, 40)).astype(np.float32)
    given = {"weights": 4, "activations": 8, "edge_bits": "same", "measure": False}
    plain = qgraph.quantize(net.ir_model, {"x": x}, **given)
    assert not any(q.weight.unit for q in plain.plan.layers)
    made = qgraph.quantize(net.ir_model, {"x": x}, group=32, **given)
    quant = next(q for q in made.plan.layers if q.weight.unit)
    assert quant.runs == "integers"
    errors = [
        np.square(Session(r.model).run_list({"x": x})[0] - Session(net.ir_model).run_list({"x": x})[0]).mean()
        for r in (plain, made)
    ]
    assert errors[1] < errors[0]


def test_rounding_to_second_order_takes_groups_of_taps():
    net = network(WEIGHT)
    x = RNG.normal(size=(16, 40, 12, 40)).astype(np.float32) + np.linspace(-2, 2, 40, dtype=np.float32)[:, None, None]
    given = {"weights": 4, "activations": None, "edge_bits": "same", "measure": False}
    (want,) = Session(net.ir_model).run_list({"x": x})
    errors = []
    for rounding in ("nearest", "second-order"):
        made = qgraph.quantize(net.ir_model, {"x": x}, rounding=rounding, **given)
        assert any(q.weight.unit and q.weight.granularity.axis == 1 for q in made.plan.layers)
        errors.append(np.square(Session(made.model).run_list({"x": x})[0] - want).mean())
    assert errors[1] < errors[0]


def test_channels_apart_leave_groups_where_they_are():
    """Columns without a factor are not rounded; those behind them keep the steps of their own groups."""
    from qgraph.graph.sites import GraphView
    from qgraph.methods.second_order.round import _row_grid

    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 64] x) => (float[N, 4] y) <float[64, 4] w = {%s}>
    { y = MatMul(x, w) }"""
    weight = RNG.normal(size=(64, 4)).astype(np.float32)
    layer = GraphView(prepare(ir.from_onnx_text(text % ", ".join(f"{v:.5f}" for v in weight.ravel())))).layers[0]
    along = qmath.Granularity(axis=0, group=32)
    grid = grouped_grid(weight, along, bits=4, symmetric=False, most=None)
    kept = np.delete(np.arange(64), 3)
    found = _row_grid(layer, dataclasses.replace(grid, codes=""), weight.shape, kept)
    steps = np.reshape(found.scale, (4, 63))
    np.testing.assert_array_equal(steps[:, 30], np.reshape(grid.scale, (2, 4))[0])
    np.testing.assert_array_equal(steps[:, 31], np.reshape(grid.scale, (2, 4))[1])
