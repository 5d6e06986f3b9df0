"""A portable plan: no sum leaves 32 bits, no pair 16, every multiplier is exact; what that costs is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
import qmath
from qgraph.assess.portable import prove_portable
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.methods.portable.portable import made_portable, portable_notes
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes
from qgraph.plan.grids import activation_grid, weight_grid
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.plan.saturation import without_saturation
from tests.conftest import DEMO

RNG = np.random.default_rng(3)
HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('
CONV = "float[N,4,6,6] x, float[8,4,3,3] w) => (float[N,8,4,4] y) { y = Conv(x, w) }"
GEMM = "float[N,K] x, float[2,K] w) => (float[N,2] y) { y = Gemm<transB=1>(x, w) }"
ADD = """float[N,4,6,6] x, float[4,4,1,1] w) => (float[N,4,6,6] y) {
    a = Conv(x, w)
    y = Add(a, x)
}"""


def planned(model_from_text, text, weight, ranges, **changes):
    """The view and a plan with 8-bit weights per channel, and a grid for every tensor in `ranges`."""
    net = normalise(load(model_from_text(HEAD + text, w=weight)))
    view = GraphView(net)
    (layer,) = view.layers
    over = tuple(range(1, weight.ndim))
    grid = weight_grid(
        weight.min(over), weight.max(over), bits=8, granularity=qmath.Granularity(axis=0), symmetric=True
    )
    quant = LayerQuant(name=layer.name, op=layer.op, weight=grid)
    activations = tuple(activation_grid(name, low, high, bits=8) for name, (low, high) in ranges.items())
    plan = QuantPlan(model=net.digest, recipe="test", layers=(quant,), activations=activations)
    return view, dataclasses.replace(plan, **changes)


def wide(shape):
    """Weights whose neighbours are a little too large and of one sign here and there."""
    weight = RNG.normal(0, 0.05, shape).astype(np.float32)
    weight[:, 0] = np.where(RNG.random((shape[0], *shape[2:])) < 0.2, 1.0, weight[:, 0])
    weight[:, 1] = 0.12
    return weight


def test_few_pairs_move_and_cost_less_than_a_coarser_step(model_from_text):
    weight = wide((8, 512, 3, 3))
    text = CONV.replace("[N,4", "[N,512").replace("[8,4", "[8,512")
    view, plan = planned(model_from_text, text, weight, {"x": (0, 1), "y": (-3, 3)})
    made = made_portable(plan, view)
    grid = made.layers[0].weight
    rows = view.layers[0].kernel_rows(codes.stored(codes.codes(weight, grid), grid))
    least, greatest = qmath.pair_range(rows, 0, 255)
    assert (least >= -(2**15)).all()
    assert (greatest < 2**15).all()
    coarse = without_saturation(plan, view).layers[0].weight
    errors = [np.square(codes.quantized(weight, g) - weight).sum(axis=(1, 2, 3)) for g in (grid, coarse)]
    assert (errors[0] < errors[1]).all()
    assert errors[0].sum() < 0.98 * errors[1].sum()
    assert "pairs of products were narrowed" in portable_notes(made)[0]
    assert made_portable(made, view) == made


def test_errors_are_weighted_by_the_variance_of_operands(model_from_text):
    weight = np.zeros((8, 4, 3, 3), np.float32)
    weight[:, 0] = weight[:, 1] = 1.0  # of each pair, one must give way
    view, plan = planned(model_from_text, CONV, weight, {"x": (0, 1)})
    x = RNG.random((64, 4, 6, 6)).astype(np.float32) * np.array([1.0, 0.01, 1, 1], np.float32).reshape(1, 4, 1, 1)
    from qgraph.observe.statistics import observe

    data = qgraph.open_data(x, view.model)
    made = made_portable(plan, view, observe(view.model, data))
    moved = codes.quantized(weight, made.layers[0].weight)
    assert np.abs(moved[:, 0] - 1).max() < 0.05 < np.abs(moved[:, 1] - 1).max()


def test_sums_beyond_32_bits_get_coarser_steps(model_from_text):
    weight = np.ones((2, 150_000), np.float32)
    view, plan = planned(model_from_text, GEMM.replace("K", "150000"), weight, {"x": (0, 1)})
    (before,) = prove_portable(load(ir.to_proto(lower(view.model, plan, format="qdq")))).layers
    assert before.sums[1] > 2**31
    made = made_portable(plan, view)
    (layer,) = prove_portable(load(ir.to_proto(lower(view.model, made, format="qdq")))).layers
    assert layer.why == ""
    assert made.layers[0].weight.scale[0] > plan.layers[0].weight.scale[0]


def test_tensors_that_are_added_have_steps_far_from_thresholds(model_from_text):
    weight = RNG.normal(0, 0.3, (4, 4, 1, 1)).astype(np.float32)
    view, plan = planned(model_from_text, ADD, weight, {"x": (-1, 1.3), "a": (-2, 1.7), "y": (-2.2, 2.6)})
    assert not prove_portable(load(ir.to_proto(lower(view.model, plan, format="qdq")))).proven
    made = made_portable(plan, view)
    assert portable_notes(made) == ()
    assert prove_portable(load(ir.to_proto(lower(view.model, made, format="qdq")))).proven
    for old, new in zip(plan.activations, made.activations, strict=True):
        assert old.scale <= new.scale < 1.03 * old.scale


def test_an_addition_of_very_different_ranges_is_named(model_from_text):
    weight = RNG.normal(0, 0.3, (4, 4, 1, 1)).astype(np.float32)
    view, plan = planned(model_from_text, ADD, weight, {"x": (-1, 1.3), "a": (-0.011, 0.017), "y": (-1, 1.3)})
    made = made_portable(plan, view)
    assert portable_notes(made)[0].startswith("may round differently elsewhere: ")


def multipliers(model):
    """For each convolution and Gemm of a file: scale of operand, of weight, of result (1 for floats)."""
    net = load(model).graph
    held = {name: value.const_value.numpy() for name, value in net.initializers.items()}
    for node in net:
        if node.op_type in ("Conv", "Gemm"):
            x, w = (node.inputs[i].producer() for i in (0, 1))
            readers = [use.node for use in node.outputs[0].uses()]
            while readers and readers[0].op_type in ("Relu", "Clip"):
                readers = [use.node for use in readers[0].outputs[0].uses()]
            y = readers[0] if readers and readers[0].op_type == "QuantizeLinear" else None
            yield held[x.inputs[1].name], held[w.inputs[1].name], 1.0 if y is None else held[y.inputs[1].name]


@pytest.mark.parametrize("options", [{}, {"weights": 4}, {"weights": 4, "rounding": "second-order"}], ids=str)
def test_the_demo_is_proven_and_its_multipliers_are_exact(options):
    data = dict(np.load(DEMO / "digits_calibration.npz"))
    result = qgraph.quantize(DEMO / "digits.onnx", data, portable=True, limit=64, measure=False, **options)
    assert result.plan.portable
    proto = ir.to_proto(result.model)
    found = prove_portable(load(proto))
    assert found.sums_fit
    assert found.pairs_fit
    assert not found.inexact
    checked = 0
    for x, w, y in multipliers(proto):
        product = (np.float32(x) * w.astype(np.float32)).astype(np.float64)
        np.testing.assert_array_equal(product, np.float64(x) * w)  # no rounding in s_x s_w
        np.testing.assert_array_equal((product / y).astype(np.float32).astype(np.float64) * y, product)
        checked += 1
    assert checked == 7
    biases = [n for n in onnx.load_from_string(proto.SerializeToString()).graph.node if n.op_type == "Conv"]
    made = {output: n.op_type for n in proto.graph.node for output in n.output}
    assert all(made[node.input[2]] == "DequantizeLinear" for node in biases if len(node.input) > 2)


def test_a_portable_file_is_as_good(tmp_path):
    test = DEMO / "digits_test.npz"
    plain = qgraph.quantize(DEMO / "digits.onnx", DEMO / "digits_calibration.npz", measure=False)
    made = qgraph.apply(DEMO / "digits.onnx", plain.plan, portable=True, measure=False)
    found = [qgraph.evaluate(m, test, against=DEMO / "digits.onnx").sqnr_db for m in (plain.model, made.ir_model)]
    assert found[1] > found[0] - 2.0  # steps that differ by 1 % at random differ by as much
    again = qgraph.apply(DEMO / "digits.onnx", made.plan, measure=False)
    assert ir.to_proto(again.ir_model) == ir.to_proto(made.ir_model)


TWICE = """float[N,64] x, float[64,64] w) => (float[N,64] y) {
    a = Gemm<transB=1>(x, w)
    b = Relu(a)
    c = Gemm<transB=1>(b, w)
    y = Sigmoid(c)
}"""


@pytest.mark.parametrize("narrowed", [False, True])
def test_layers_that_share_a_weight_share_its_codes(model_from_text, narrowed):
    """Of 80 products of two weights in a recurrent network, unrolled, each had a weight of its own in the file."""
    weight = wide((64, 64))
    if not narrowed:
        weight[:, 1::2] = 0  # no pair is larger than one weight
    data = RNG.normal(size=(32, 64)).astype(np.float32) * np.linspace(0.1, 3, 64, dtype=np.float32)
    result = qgraph.quantize(
        model_from_text(HEAD + TWICE, w=weight), data, method="minmax", measure=False, portable=True
    )
    first, second = result.plan.layers
    assert first.weight == second.weight
    assert bool(first.weight.codes) == narrowed
    proof = prove_portable(load(result.model))
    assert len(proof.layers) == 2
    assert not any(layer.why for layer in proof.layers)


RECURRENT = """float[5,N,6] x, float[1,32,6] w, float[1,32,8] r, float[4,8] v) => (float[5,N,4] y) {
    two = Constant<value_int=1>()
    axes = Constant<value_ints=[1]>()
    rows = Unsqueeze(x, axes)
    flat = Squeeze(rows, axes)
    h = LSTM<hidden_size=8>(flat, w, r)
    s = Squeeze(h, axes)
    t = Constant<value_floats=[1.0]>()
    m = Mul(s, t)
    p = Transpose<perm=[0,1,2]>(m)
    vt = Transpose<perm=[1,0]>(v)
    y = MatMul(p, vt)
}"""


def test_what_the_calibration_did_not_observe_is_not_needed(model_from_text):
    """The operand of a recurrent layer has no statistics."""
    arrays = {"w": (1, 32, 6), "r": (1, 32, 8), "v": (4, 8)}
    weights = {name: RNG.normal(0, 0.3, shape).astype(np.float32) for name, shape in arrays.items()}
    proto = model_from_text(HEAD + RECURRENT, **weights)
    data = RNG.normal(size=(5, 16, 6)).astype(np.float32)
    result = qgraph.quantize(proto, {"x": data}, method="minmax", measure=False, portable=True)
    assert result.plan.portable
