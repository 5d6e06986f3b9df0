"""The learned quantizers against `qmath.lsq_gradients`: LSQ+, Eq. 2 to 4, for all configurations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qmath
from qgraph.gradient import append, gradients, op, rules, tensor
from qgraph.methods.lsqplus.optimise import cosine, optimiser
from qgraph.methods.lsqplus.quantizer import DOMAIN, OPERATOR, expand, learned_quantize
from qgraph.methods.lsqplus.weight_quantizer import WeightGrid
from qgraph.plan.plan import WeightQuant
from qgraph.running.sessions import Session

SCALE = np.float32(0.23)
SHAPE = (4, 3, 5)


def _step(bits: int, *, offset: bool, shifted: bool, non_negative: bool) -> ir.Model:
    """loss = sum c x_hat, and its gradients."""
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> m (float[4,3,5] x, float[4,3,5] c, float scale, float low, '
        "float high, uint8 zero_point, float offset) => () { }"
    )
    model.opset_imports[DOMAIN] = 1
    v = {str(i.name): i for i in model.graph.inputs}
    y = learned_quantize(
        model.graph,
        *(v[name] for name in ("x", "scale", "low", "high", "zero_point")),
        v["offset"] if offset else None,
        qmax=2**bits - 1,
        shifted=shifted,
        non_negative=non_negative,
    )
    y.name = "y"
    model.graph.outputs.append(y)
    append(model, op.ReduceSum(tensor(y) * tensor(v["c"]), keepdims=0), name="loss")
    step = gradients(model, "loss", ["x", "scale", *(["offset"] if offset else [])], builder="portable")
    expand(step)
    return step


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("configuration", [1, 2, 3, 4])
def test_node_has_the_gradients_of_the_paper(bits: int, configuration: int) -> None:
    chosen = qmath.lsq_configuration(configuration)
    n, p = chosen.code_range(bits)
    rng = np.random.default_rng(bits)
    x = rng.uniform((1.3 * n - 1.5) * SCALE, (1.3 * p + 1.5) * SCALE, SHAPE).astype(np.float32)
    c = rng.normal(size=SHAPE).astype(np.float32)
    offset = np.float32(-0.4 if chosen.offset else 0.0)
    model = _step(bits, offset=chosen.offset, shifted=chosen.offset, non_negative=False)
    feeds = {
        "x": x,
        "c": c,
        "scale": np.asarray(SCALE),
        "low": np.asarray(offset + SCALE * np.float32(n)),
        "high": np.asarray(offset + SCALE * np.float32(p)),
        "zero_point": np.asarray(np.uint8(-n)),
        "offset": np.asarray(offset),
    }
    session = Session(model, threads=1)
    found = session.run({name: feeds[name] for name in session.input_names})
    expected = qmath.lsq_gradients(c, x, SCALE, offset, bits=bits, configuration=configuration)
    quantized = qmath.lsq_quantize(x, SCALE, offset, bits=bits, configuration=configuration)
    assert 0 < np.count_nonzero(expected.x) < x.size
    np.testing.assert_allclose(found["y"], quantized, atol=2e-5)
    np.testing.assert_array_equal(found["x_grad"], expected.x.astype(np.float32))
    np.testing.assert_allclose(found["scale_grad"], expected.scale, rtol=2e-5, atol=2e-3)
    if chosen.offset:
        np.testing.assert_allclose(found["offset_grad"], expected.offset, rtol=1e-5, atol=1e-5)


def test_values_that_are_never_negative_need_one_comparison() -> None:
    x = np.abs(np.random.default_rng(0).normal(size=SHAPE)).astype(np.float32)
    c = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    model = _step(2, offset=False, shifted=False, non_negative=True)
    assert [node.op_type for node in model.graph].count("Less") == 1
    assert "Greater" not in [node.op_type for node in model.graph]
    session = Session(model, threads=1)
    zero = np.asarray(np.float32(0))
    feeds = {"x": x, "c": c, "scale": np.asarray(SCALE), "high": np.asarray(3 * SCALE), "low": zero, "offset": zero}
    feeds["zero_point"] = np.asarray(np.uint8(0))
    found = session.run({name: feeds[name] for name in session.input_names})
    expected = qmath.lsq_gradients(c, x, SCALE, bits=2, configuration=1)
    np.testing.assert_array_equal(found["x_grad"], expected.x.astype(np.float32))
    np.testing.assert_allclose(found["scale_grad"], expected.scale, rtol=1e-5)


def test_node_is_registered_and_written_out() -> None:
    assert f"{DOMAIN}::{OPERATOR}" in rules()
    model = _step(4, offset=True, shifted=True, non_negative=False)
    assert DOMAIN not in model.opset_imports
    assert OPERATOR not in [node.op_type for node in model.graph]


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weight_grid_has_the_gradients_of_the_paper(bits: int, axis: int | None) -> None:
    rng = np.random.default_rng(3)
    w, g = rng.normal(size=SHAPE).astype(np.float32), rng.normal(size=SHAPE).astype(np.float32)
    size = 1 if axis is None else SHAPE[axis]
    scale = rng.uniform(0.5, 1.5, size).astype(np.float32) * np.float32(3.0 / 2**bits)
    plan = WeightQuant(
        bits=bits, scale=tuple(map(float, scale)), granularity=qmath.Granularity(axis=axis), symmetric=False
    )
    grid = WeightGrid(quant=plan)
    given = scale[0] if axis is None else scale
    expected = qmath.lsq_gradients(g, w, given, bits=bits, configuration=2, axis=axis)
    by_weight, by_scale = grid.gradients(g, w, scale)
    np.testing.assert_array_equal(by_weight, expected.x.astype(np.float32))
    np.testing.assert_allclose(by_scale.reshape(-1), expected.scale.reshape(-1), rtol=2e-4, atol=1e-4)
    quantized = qmath.lsq_quantize(w, given, bits=bits, configuration=2, axis=axis)
    np.testing.assert_allclose(grid.quantize(w, scale), quantized, rtol=1e-6)


def test_optimisers_follow_their_formulas() -> None:
    rng = np.random.default_rng(0)
    gradients_ = rng.normal(size=(3, 4)).astype(np.float32)
    rate = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    sgd, adam = (optimiser(kind, 4, momentum=0.9) for kind in ("sgd", "adam"))
    found = {"sgd": np.ones(4, np.float32), "adam": np.ones(4, np.float32)}
    want = {"sgd": np.ones(4), "adam": np.ones(4)}
    velocity, mean, square = np.zeros(4), np.zeros(4), np.zeros(4)
    for step, g in enumerate(gradients_, start=1):
        sgd.update(found["sgd"], g, rate, step)
        adam.update(found["adam"], g, rate, step)
        velocity = 0.9 * velocity + g
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g.astype(np.float64) ** 2
        want["sgd"] = want["sgd"] - rate * velocity
        want["adam"] = want["adam"] - rate * (mean / (1 - 0.9**step)) / np.sqrt(square / (1 - 0.999**step))
    np.testing.assert_allclose(found["sgd"], want["sgd"], rtol=1e-5)
    np.testing.assert_allclose(found["adam"], want["adam"], rtol=1e-4)


def test_cosine_rises_then_falls_to_nothing() -> None:
    shares = [cosine(step, 100, warmup=0.1) for step in range(100)]
    assert max(shares) == shares[10] == 1.0
    assert 0 < shares[0] < shares[5] < 1.0
    assert shares[11:] == sorted(shares[11:], reverse=True)
    assert 0 < shares[-1] < 1e-3
