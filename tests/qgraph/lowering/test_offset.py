"""The real offset of LSQ+ in a plan: simulated as Eq. 1, folded into biases on export (Eq. 5), exact at the borders."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

import qmath
from qgraph.assess.layer_errors import grid_error
from qgraph.errors import PlanError
from qgraph.lowering.lower import lower
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import prepare
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, WeightQuant
from qgraph.running.sessions import Session

BITS, SCALE, OFFSET = 3, 0.21, -0.37
HEADER = '<ir_version: 8, opset_import: ["": 17]> m (float[N, 4, 6, 6] x) => (float[N, 5, H, W] y)'


def _quantized(x: np.ndarray, zero_point: int = 0, offset: float = OFFSET) -> np.ndarray:
    """LSQ+, Eq. 1 and 2, in float64."""
    codes = np.clip(np.rint((x - offset) / SCALE), -zero_point, 2**BITS - 1 - zero_point)
    return codes * SCALE + offset


def _convolved(x: np.ndarray, weight: np.ndarray, pad: int) -> np.ndarray:
    """Conv of stride 1 whose padding holds zeros, as a plain sum."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight)


def _net(model_from_text, pads: str, kernel: int) -> tuple[Model, np.ndarray]:
    weight = np.random.default_rng(0).integers(-7, 8, (5, 4, kernel, kernel)).astype(np.float32) * np.float32(0.125)
    text = f"{HEADER} <float[5, 4, {kernel}, {kernel}] w> {{ [conv] y = Conv<pads = {pads}>(x, w) }}"
    return prepare(load(model_from_text(text, w=weight))), weight


def _plan(net: Model, **changes) -> QuantPlan:
    grid = ActivationQuant(tensor="x", bits=BITS, scale=SCALE, offset=OFFSET, **changes)
    weight = WeightQuant(bits=4, scale=(0.125,))
    return QuantPlan(
        model=net.digest,
        recipe="lsqplus",
        layers=(LayerQuant(name="conv", op="Conv", weight=weight),),
        activations=(grid,),
    )


@pytest.mark.parametrize("format", ["float", "qdq"])
@pytest.mark.parametrize(("pads", "kernel"), [("[0, 0, 0, 0]", 1), ("[0, 0, 0, 0]", 3), ("[1, 1, 1, 1]", 3)])
@pytest.mark.parametrize("zero_point", [0, 4])
def test_offset_is_exact_everywhere(model_from_text, format: str, pads: str, kernel: int, zero_point: int) -> None:
    net, weight = _net(model_from_text, pads, kernel)
    x = np.random.default_rng(1).normal(size=(3, 4, 6, 6)).astype(np.float32)
    lowered = lower(net, _plan(net, zero_point=zero_point), format=format)
    onnx.checker.check_model(_proto(lowered), full_check=True)
    found = Session(lowered, threads=1).run({"x": x})["y"]
    expected = _convolved(_quantized(x, zero_point), weight, int(pads[1]))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_offset_is_exact_where_the_mode_pads(model_from_text, mode: str) -> None:
    weight = np.random.default_rng(0).integers(-7, 8, (5, 4, 3, 3)).astype(np.float32) * np.float32(0.125)
    text = f'{HEADER} <float[5, 4, 3, 3] w> {{ [conv] y = Conv<auto_pad = "{mode}">(x, w) }}'
    net = prepare(load(model_from_text(text, w=weight)))
    x = np.random.default_rng(1).normal(size=(3, 4, 6, 6)).astype(np.float32)
    found = Session(lower(net, _plan(net), format="qdq"), threads=1).run({"x": x})["y"]
    np.testing.assert_allclose(found, _convolved(_quantized(x), weight, 1), atol=2e-5)


def test_offset_costs_no_operator_behind_the_grid_where_nothing_pads(model_from_text) -> None:
    net, weight = _net(model_from_text, "[0, 0, 0, 0]", 3)
    nodes = lower(net, _plan(net), format="qdq").graph
    conv = next(n for n in nodes if n.op_type == "Conv")
    assert conv.inputs[0].producer().op_type == "DequantizeLinear"
    assert "Add" not in [n.op_type for n in nodes]
    np.testing.assert_allclose(conv.inputs[2].const_value.numpy(), OFFSET * weight.sum(axis=(1, 2, 3)), rtol=1e-6)


def test_integer_multiple_of_the_scale_is_a_zero_point_and_exact_at_padding(model_from_text) -> None:
    """beta = -z s needs no offset: the padded zero is code z."""
    net, weight = _net(model_from_text, "[1, 1, 1, 1]", 3)
    plan = _plan(net, zero_point=2).map_activations(lambda a: dataclasses.replace(a, offset=0.0))
    x = np.random.default_rng(2).normal(size=(2, 4, 6, 6)).astype(np.float32)
    lowered = lower(net, plan, format="qdq")
    found = Session(lowered, threads=1).run({"x": x})["y"]
    np.testing.assert_allclose(found, _convolved(_quantized(x, offset=-2 * SCALE), weight, 1), atol=2e-5)
    assert "Add" not in [n.op_type for n in lowered.graph]


def test_other_readers_see_the_offset(model_from_text) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    m (float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y, float[N, 4, 8, 8] p)
    <float[5, 4, 1, 1] w> { [conv] c = Conv(x, w) y = Relu(c) k = Constant<value = int64[8] {0,0,1,1,0,0,1,1}>()
    p = Pad(x, k) }"""
    weight = np.random.default_rng(0).integers(-7, 8, (5, 4, 1, 1)).astype(np.float32) * np.float32(0.125)
    net = normalise(load(model_from_text(text, w=weight)))
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)
    for format in ("float", "qdq"):
        found = Session(lower(net, _plan(net), format=format), threads=1).run({"x": x})
        expected = _quantized(x)
        np.testing.assert_allclose(found["y"], np.maximum(_convolved(expected, weight, 0), 0), atol=2e-5)
        np.testing.assert_allclose(found["p"], np.pad(expected, ((0, 0), (0, 0), (1, 1), (1, 1))), atol=2e-6)


def test_predicted_error_knows_the_offset() -> None:
    x = np.random.default_rng(0).normal(0.5, 0.6, 50_000)
    accumulator = qmath.StatisticsAccumulator(bins=qmath.BINS)
    accumulator.update(x)
    grid = ActivationQuant(tensor="x", bits=BITS, scale=SCALE, zero_point=1, offset=OFFSET)
    exact = np.mean((_quantized(x, 1) - x) ** 2)
    assert grid_error(accumulator.result(), grid) == pytest.approx(exact, rel=1e-2)


def test_plan_keeps_and_checks_the_offset() -> None:
    grid = ActivationQuant(tensor="x", bits=BITS, scale=SCALE, zero_point=1, offset=OFFSET)
    plan = QuantPlan(model="m", recipe="lsqplus", activations=(grid,))
    assert QuantPlan.from_json(plan.to_json()) == plan
    assert (grid.low, grid.high) == (OFFSET - SCALE, OFFSET + 6 * SCALE)
    with pytest.raises(PlanError, match="offset of 'x' must be finite"):
        ActivationQuant(tensor="x", bits=BITS, scale=SCALE, offset=float("inf"))


def _proto(model) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.to_proto(model)


def test_biases_survive_coarse_grids(model_from_text) -> None:
    """Integer kernels round a bias to steps of scale_x * scale_w; two-bit weights are unpacked to a finer grid."""
    text = f"{HEADER} <float[5, 4, 1, 1] w, float[5] b> {{ [conv] c = Conv(x, w, b) y = Relu(c) }}"
    rng = np.random.default_rng(0)
    weight, bias = rng.integers(-1, 2, (5, 4, 1, 1)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    net = prepare(load(model_from_text(text, w=weight, b=bias)))
    grids = (
        ActivationQuant(tensor="x", bits=2, scale=1.0),
        ActivationQuant(tensor="y", bits=8, scale=0.04),
    )
    layer = LayerQuant(name="conv", op="Conv", weight=WeightQuant(bits=2, scale=(1.0,)))
    plan = QuantPlan(model=net.digest, recipe="lsqplus", layers=(layer,), activations=grids)
    lowered = lower(net, plan, format="qdq")
    x = rng.uniform(0, 3, (2, 4, 6, 6)).astype(np.float32)
    found = Session(lowered, threads=1).run({"x": x})["y"]
    exact = np.maximum(np.einsum("nchw,oc->nohw", np.rint(x), weight[:, :, 0, 0]) + bias[:, None, None], 0)
    np.testing.assert_allclose(found, exact, atol=0.02 + 1 / 64)
