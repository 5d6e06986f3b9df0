"""The learned quantizers against `qmath.lsq_gradients`: LSQ+, Eq. 2 to 4, for all configurations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qmath
from qgraph.gradient import append, gradients, op, rules, tensor
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.loss import LOSS, append_loss, targets_of
from qgraph.methods.lsqplus.optimise import cosine, optimiser
from qgraph.methods.lsqplus.parameters import absorb
from qgraph.methods.lsqplus.quantizer import DOMAIN, OPERATOR, expand, learned_quantize
from qgraph.methods.lsqplus.trained import Trained
from qgraph.methods.lsqplus.weight_quantizer import WeightGrid
from qgraph.onnxfile.opset import prepare
from qgraph.plan.codes import quantized
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, WeightQuant
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


def test_the_last_codes_are_saturated() -> None:
    """At v = n and v = p exactly LSQ+ says `otherwise`: no gradient for x, n and p for the scale."""
    plan = WeightQuant(bits=3, scale=(0.25,), symmetric=False)
    w, g = np.array([-1.0, 0.75, 0.5, -0.75], np.float32), np.array([1, 2, 4, 8], np.float32)
    by_weight, by_scale = WeightGrid(quant=plan).gradients(g, w, np.array([0.25], np.float32))
    np.testing.assert_array_equal(by_weight, [0, 0, 4, 8])
    np.testing.assert_array_equal(by_scale, [-4 + 2 * 3])
    x = np.full(SHAPE, 0.5, np.float32)
    x.reshape(-1)[:4] = [0.75, 0.0, 0.25, 1.0]
    model = _step(2, offset=False, shifted=False, non_negative=False)
    session = Session(model, threads=1)
    feeds = {"x": x, "c": np.ones(SHAPE, np.float32), "low": np.float32(0), "high": np.float32(0.75)}
    feeds |= {"scale": np.float32(0.25), "zero_point": np.uint8(0), "offset": np.float32(0)}
    found = session.run({name: np.asarray(feeds[name]) for name in session.input_names})
    np.testing.assert_array_equal(found["x_grad"].reshape(-1)[:5], [0, 0, 1, 0, 1])
    np.testing.assert_allclose(found["scale_grad"], 6.0, rtol=1e-6)


NET = """<ir_version: 8, opset_import: ["": 17]> m (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y)
<float[4, 3, 3, 3] w, float[5, 4, 3, 3] v> {
  [first] c = Conv<pads = [1, 1, 1, 1]>(x, w) a = LeakyRelu(c) [second] y = Conv<pads = [1, 1, 1, 1]>(a, v) }"""


def _absorbed(model_from_text, **changes) -> Trained:
    """The parameters of two layers with scales per channel; the tensor between them has an offset in whole steps."""
    rng = np.random.default_rng(2)
    arrays = {"w": rng.normal(size=(4, 3, 3, 3)), "v": rng.normal(size=(5, 4, 3, 3))}
    net = prepare(model_from_text(NET, **{name: array.astype(np.float32) for name, array in arrays.items()}))
    layers = tuple(
        LayerQuant(
            name=name,
            op="Conv",
            weight=WeightQuant(bits=4, scale=(0.25,) * size, granularity=qmath.Granularity(axis=0)),
        )
        for name, size in (("first", 4), ("second", 5))
    )
    grid = ActivationQuant(tensor="a", bits=3, scale=0.5, zero_point=2)
    plan = QuantPlan(model=net.digest, recipe="test", layers=layers, activations=(grid,))
    return absorb(net, plan, LsqPlusConfig(**changes))


def test_the_factor_of_a_scale_counts_the_values_that_share_it(model_from_text) -> None:
    """LSQ, section 2.2: 1 / sqrt(N p), N the weights of one channel, or the features of one sample."""
    slots = _absorbed(model_from_text).slots
    assert slots["weight_scale:first"].factor == pytest.approx(1 / np.sqrt(27 * 7))
    assert slots["weight_scale:second"].factor == pytest.approx(1 / np.sqrt(36 * 7))
    assert slots["scale:a:tensor"].factor == pytest.approx(1 / np.sqrt(4 * 36 * 7))


def test_a_zero_point_in_place_of_an_offset_leaves_the_gradients_of_the_paper(model_from_text) -> None:
    """The graph counts codes from the zero point, the paper from n: Eq. 3's slope is n or p where x is clipped."""
    trained = _absorbed(model_from_text)
    (grid,) = trained.grids
    assert grid.offset == "integer"
    scale, zero_point, _ = trained.grid_values(trained.start, grid)
    offset = (grid.zero_point - int(zero_point)) * scale
    assert offset != 0
    x = np.random.default_rng(0).normal(0.5, 2.0, SHAPE).astype(np.float32)
    c = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    session = Session(_step(3, offset=True, shifted=False, non_negative=False), threads=1)
    given = {name.split(":")[0]: array for name, array in trained.feeds(trained.start).items() if ":a:" in name}
    feeds = {"x": x, "c": c, **given}
    step = session.run({name: np.asarray(feeds[name]) for name in session.input_names})
    found = {name: np.zeros_like(array) for name, array in trained.feeds(trained.start).items()}
    found |= {"scale:a:tensor": step["scale_grad"], "offset:a:tensor": step["offset_grad"]}
    flat = trained.gradient(trained.start, found)
    configuration = 4 if grid.zero_point == 0 else 3
    expected = qmath.lsq_gradients(c, x, scale, offset, bits=3, configuration=configuration)
    np.testing.assert_allclose(trained.view(flat, "scale:a:tensor"), expected.scale, rtol=2e-5)
    np.testing.assert_allclose(trained.view(flat, "offset:a:tensor"), expected.offset, rtol=2e-5)


@pytest.mark.parametrize("label_weight", [0.0, 0.25, 1.0])
def test_the_loss_is_that_of_the_formula(label_weight: float) -> None:
    """label_weight CE + (1 - label_weight) T^2 KL, summed over the batch."""
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> m (float[4,5] x) => (float[4,5] z) { z = Identity(x) }'
    )
    config = LsqPlusConfig(temperature=3.0, label_weight=label_weight)
    append_loss(model, targets_of(model, "m"), config, batch=4, labelled=True)
    rng = np.random.default_rng(0)
    z, t = (rng.normal(size=(4, 5)).astype(np.float32) for _ in range(2))
    labels = np.eye(5, dtype=np.float32)[[0, 3, 1, 1]]
    session = Session(model, threads=1)
    feeds = {"x": z, "float:z": t, "labels": labels}
    found = session.run({name: feeds[name] for name in session.input_names})[LOSS]

    def log_softmax(scores):
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    wanted, have = (log_softmax(scores.astype(np.float64) / 3.0) for scores in (t, z))
    divergence = (np.exp(wanted) * (wanted - have)).sum()
    entropy = -(labels * log_softmax(z.astype(np.float64))).sum()
    assert found == pytest.approx(label_weight * entropy + (1 - label_weight) * 9 * divergence, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "shape"), [("ConvTranspose<group = 2>", (4, 3, 1, 1)), ("Conv<group = 2>", (6, 2, 1, 1))]
)
def test_a_bias_that_is_learned_has_a_value_per_output(model_from_text, call, shape) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]> m (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y)
    <float[{", ".join(map(str, shape))}] w> {{ [layer] y = {call}(x, w) }}"""
    net = prepare(model_from_text(text, w=np.ones(shape, np.float32)))
    op_type = call.split("<")[0]
    quant = LayerQuant(name="layer", op=op_type, weight=WeightQuant(bits=4, scale=(0.25,)))
    trained = absorb(net, QuantPlan(model=net.digest, recipe="test", layers=(quant,)), LsqPlusConfig())
    np.testing.assert_array_equal(trained.view(trained.start, "bias:layer"), np.zeros(6, np.float32))


@pytest.mark.parametrize("granularity", [qmath.Granularity(axis=0), qmath.Granularity(axis=1, group=2)])
def test_weights_are_trained_as_the_plan_quantizes_them(granularity: qmath.Granularity) -> None:
    w = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    scale = np.linspace(0.1, 0.5, granularity.count(SHAPE)).astype(np.float32)
    plan = WeightQuant(bits=3, scale=tuple(map(float, scale)), granularity=granularity, symmetric=False)
    np.testing.assert_array_equal(WeightGrid(quant=plan).quantize(w, scale), quantized(w, plan))
