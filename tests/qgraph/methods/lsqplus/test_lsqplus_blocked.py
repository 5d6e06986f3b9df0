"""The training graph in onnxruntime's blocked layout: the same loss and gradients, for weights that change."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qgraph.gradient import deferred_gradients
from qgraph.gradient.layout import DOMAIN, blocked
from qgraph.graph.sites import GraphView
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.initialise import initialise
from qgraph.methods.lsqplus.loss import targets_of
from qgraph.methods.lsqplus.parameters import absorb
from qgraph.methods.lsqplus.step import training_graph
from qgraph.observe.statistics import observe
from qgraph.onnxfile.opset import prepare
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

CONFIG = LsqPlusConfig()
SHIFT = ", ".join(f"{0.1 * i:.1f}" for i in range(32))
STEP = f"""<ir_version: 8, opset_import: ["": 17]>
m (float[4, 3, 12, 12] x, float[16, 3, 3, 3] w, float[16] b, float[32, 16, 1, 1] u, float[32, 1, 3, 3] d, float[32] e,
   float[5, 32] v, float s, float t) => (float loss)
<uint8 z = {{0}}, uint8 top = {{15}}, float lowest = {{-0.5}}, float six = {{0.6}},
 float[32] shift = {{{SHIFT}}}, int64[3] like = {{32, 1, 1}}> {{
    a = Conv<pads = [1, 1, 1, 1]>(x, w, b) bent = Clip(a, lowest, six) r = Relu(bent)
    q = QuantizeLinear(r, s, z) k = Min(q, top) h = DequantizeLinear(k, s, z) c = Conv(h, u)
    g = Sigmoid(c) i = Mul(c, g)
    j = Conv<group = 32, strides = [2, 2], pads = [1, 1, 1, 1]>(i, d, e) wide = Reshape(shift, like) l = Add(j, wide)
    m = Mul(l, t) n = GlobalAveragePool(m) o = Sigmoid(n) gated = Mul(m, o) p = GlobalAveragePool(gated)
    f = Flatten(p) y = Gemm<transB = 1>(f, v) y2 = Mul(y, y) mine = ReduceSum<keepdims = 0>(y2)
    rest = ReduceSum<keepdims = 0>(i) loss = Add(mine, rest)
}}"""
SHAPES = {"w": (16, 3, 3, 3), "b": (16,), "u": (32, 16, 1, 1), "d": (32, 1, 3, 3), "e": (32,), "v": (5, 32)}


def _values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (0.4 * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def test_loss_and_gradients_are_those_of_the_plain_graph() -> None:
    made = deferred_gradients(ir.from_onnx_text(STEP), "loss", list(SHAPES)).model
    fast = blocked(made, list(SHAPES))
    assert fast is not None
    assert DOMAIN in {node.domain for node in fast.model.graph}
    in_blocks = {n.op_type for n in fast.model.graph if str(n.outputs[0].name).endswith("/blocked")}
    assert in_blocks >= {"Clip", "DequantizeLinear", "Equal", "Min", "QuantizeLinear"}
    assert "GlobalAveragePool" in {n.op_type for n in fast.model.graph if n.domain == DOMAIN}
    plain = Session(made, threads=1, fuse_integers=False)
    quick = Session(fast.model, threads=1, fuse_integers=False, optimize=False)
    x = np.random.default_rng(9).normal(size=(4, 3, 12, 12)).astype(np.float32)
    fixed = {"x": x, "s": np.asarray(np.float32(0.25)), "t": np.asarray(np.float32(0.5))}
    for seed in (0, 1):  # the same session, other weights
        values = _values(seed)
        given = {**fixed, **values, **fast.feeds(values)}
        expected = plain.run({name: given[name] for name in plain.input_names})
        found = quick.run({name: given[name] for name in quick.input_names})
        assert set(found) == set(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=2e-4, atol=2e-4 * np.abs(array).max(), err_msg=name)


def test_constants_that_onnxruntime_computes_with_are_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> m (float[2, 4] x, float[4, 3] w) => (float[2, 3] y)
    { v = Mul(w, w) y = MatMul(x, v) }"""
    assert blocked(ir.from_onnx_text(text), ["w"]) is None


@pytest.mark.parametrize("name", ["cifar10_resnet20", "cifar10_silu_se", "cifar10_relu6_dw"])
def test_networks(shared, name: str) -> None:
    """Weights alone: with few thresholds among the activations, both layouts agree to rounding."""
    net = prepare(shared / "models" / f"{name}.onnx")
    view = GraphView(net)
    rng = np.random.default_rng(0)
    data = open_data(rng.normal(size=(4, 3, 32, 32)).astype(np.float32), net)
    recipe = choose_recipe("lsqplus", True, weights=4, activations=None)
    plan = initialise(initial_plan(view, recipe, observe(net, data)), view, None, config=CONFIG)
    trained = absorb(net, plan, CONFIG)
    step = training_graph(trained, targets_of(net.ir_model, ""), CONFIG, batch=4, labelled=False).model
    names = [str(v.name) for v in step.graph.inputs if str(v.name).startswith(("weight:", "bias:"))]
    fast = blocked(step, names)
    assert fast is not None
    assert sum(node.domain == DOMAIN and node.op_type == "Conv" for node in fast.model.graph) > 20
    parameters = trained.feeds(trained.start)
    given = {**parameters, **fast.feeds(parameters), "input": next(data.batches(4)).feeds["input"]}
    given["float:logits"] = rng.normal(size=(4, 10)).astype(np.float32)
    found = []
    for session in (
        Session(step, threads=1, fuse_integers=False),
        Session(fast.model, threads=1, fuse_integers=False, optimize=False),
    ):
        found.append(session.run({key: given[key] for key in session.input_names}))
    for key, array in found[0].items():  # a value that rounding moves across zero passes a ReLU's gradient or not
        assert np.linalg.norm(found[1][key] - array) <= 1e-2 * np.linalg.norm(array), key
