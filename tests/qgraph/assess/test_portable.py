"""What is proven for every processor: true of what onnxruntime computes, and false where a fault was put in."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

import qgraph
from qgraph.assess.portable import prove_portable
from qgraph.onnxfile.load import load
from tests.conftest import DEMO

RNG = np.random.default_rng(11)


def model(text: str, opset: int = 21, **weights: np.ndarray) -> ir.Model:
    net = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, array in weights.items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        net.graph.register_initializer(value)
        for node in net.graph:
            for index, read in enumerate(node.inputs):
                if read is not None and read.name == name:
                    node.replace_input_with(index, value)
    return net


PRODUCT = """g (uint8[1,K] x) => (int32[1,N] y) { y = MatMulInteger(x, w, zx) }"""
QDQ = """g (float[1,K] x) => (float[1,N] y) {
    q = QuantizeLinear(x, sx, zx)
    d = DequantizeLinear(q, sx, zx)
    e = DequantizeLinear(w, sw, zw)
    p = MatMul(d, e)
    r = QuantizeLinear(p, sy, zx)
    y = DequantizeLinear(r, sy, zx)
}"""


HALVES = {name: np.array(0.5, np.float32) for name in ("sx", "sw", "sy")}


def qdq(weight: np.ndarray, zero: int = 0, point: int = 0) -> ir.Model:
    return model(QDQ, w=weight, zx=np.array(zero, np.uint8), zw=np.array(point, weight.dtype), **HALVES)


def test_sums_are_those_that_onnxruntime_reaches_at_the_corners():
    weight = RNG.integers(-60, 60, (7, 3)).astype(np.int8)
    net = model(PRODUCT, w=weight, zx=np.array(30, np.uint8))
    (layer,) = prove_portable(load(net)).layers
    session = onnxruntime.InferenceSession(ir.to_proto(net).SerializeToString())
    reached = []
    for column in range(3):
        for most in (weight[:, column] > 0, weight[:, column] < 0):
            x = np.where(most, 255, 0).astype(np.uint8)[None]
            reached.append(session.run(None, {"x": x})[0][0, column])
    assert layer.sums[0] <= min(reached)
    assert max(reached) <= layer.sums[1]
    # a product at code 0 is -30 w, unless it is padded away
    assert layer.sums[1] >= max(reached) - 30 * 60 * 7
    assert layer.why == ""
    assert layer.rounds_once


@pytest.mark.parametrize(
    ("pair", "saturating"), [((64, 64), 0), ((65, 64), 1), ((-64, -64), 0), ((-65, -64), 1), ((127, -128), 0)]
)
def test_pairs_beyond_sixteen_bits_are_found(pair, saturating):
    found = prove_portable(load(qdq(np.array([pair], np.int8).T)))
    assert found.layers[0].saturating == saturating
    assert found.pairs_fit == (not saturating)
    assert bool(found.layers[0].why) == bool(saturating)


def test_unsigned_weights_are_not_added_in_sixteen_bits():
    found = prove_portable(load(qdq(np.array([[255], [255]], np.uint8), point=128)))
    assert found.layers[0].saturating == 0


def test_a_sum_that_overflows_is_found():
    weight = np.full((70_000, 1), 127, np.int8)
    found = prove_portable(load(model(PRODUCT, w=weight, zx=np.array(0, np.uint8))))
    assert not found.sums_fit
    assert "can leave 32 bits" in found.layers[0].why


def test_a_min_narrows_the_operand():
    text = QDQ.replace("d = DequantizeLinear(q,", "n = Min(q, top)\n    d = DequantizeLinear(n,")
    zeros = {"zx": np.array(0, np.uint8), "zw": np.array(0, np.int8)}
    weight = np.full((2, 1), 127, np.int8)
    found = prove_portable(load(model(text, w=weight, top=np.array(15, np.uint8), **HALVES, **zeros)))
    assert found.layers[0].sums == (0, 2 * 127 * 15)
    assert found.layers[0].saturating == 0


def test_a_zero_point_of_every_run_may_be_any_code():
    text = """g (float[1,K] x) => (int32[1,N] y) { q, s, z = DynamicQuantizeLinear(x)  y = MatMulInteger(q, w, z) }"""
    found = prove_portable(load(model(text, w=np.array([[3], [-2]], np.int8))))
    assert found.layers[0].sums == (-5 * 255, 5 * 255)


def test_floats_are_named():
    found = prove_portable(load(DEMO / "digits.onnx"))
    assert not found.proven
    assert {layer.why for layer in found.layers} == {"it adds floats"}


@pytest.mark.parametrize("options", [{}, {"weights": 4}, {"activations": 4}])
def test_what_is_written_here_neither_overflows_nor_saturates(options):
    small = qgraph.quantize(DEMO / "digits.onnx", DEMO / "digits_calibration.npz", limit=32, measure=False, **options)
    found = prove_portable(load(small.model))
    integers = [layer for layer in found.layers if layer.sums is not None]
    assert found.sums_fit
    assert found.pairs_fit
    assert len(integers) >= 6
    assert all(layer.rounds_once and not layer.why for layer in integers)


def test_all_of_int8_saturates_somewhere():
    small = qgraph.quantize(
        DEMO / "digits.onnx", DEMO / "digits_calibration.npz", limit=32, measure=False, target_cpu="vnni"
    )
    assert not prove_portable(load(small.model)).pairs_fit


@pytest.mark.parametrize(
    ("made", "codes", "highest"),
    [
        ("c = Identity(m)", 2, 15),
        ("c = Concat<axis=1>(m, m)", 4, 15),
        ("c = Pad(m, pads, seven)", 4, 15),
        ("c = Pad(m, pads, top)", 4, 255),
        ("c = Concat<axis=1>(m, q)", 4, 255),
        ("c = Max(m, top)", 2, 255),
        ("b = Cast<to=9>(m) c = Where(b, q, q)", 2, 255),
    ],
)
def test_a_bound_of_codes_is_followed_only_through_what_keeps_it(made, codes, highest):
    text = f"""g (uint8[1,K] q) => (int32[1,N] y) {{
        m = Min(q, low)
        {made}
        y = MatMulInteger(c, w)
    }}"""
    bounds = {"low": np.array(15, np.uint8), "top": np.array(255, np.uint8), "seven": np.array(7, np.uint8)}
    net = model(text, w=np.ones((codes, 1), np.int8), pads=np.array([0, 1, 0, 1]), **bounds)
    assert prove_portable(load(net)).layers[0].sums == (0, codes * highest)


def test_a_sum_with_a_bias_of_the_run_is_not_proven():
    text = """g (uint8[1,2,3,3] x, int32[2] b) => (uint8[1,2,3,3] y) { y = QLinearConv(x, s, z, w, s, v, s, z, b) }"""
    parts = {"s": np.array(0.5, np.float32), "z": np.array(0, np.uint8), "v": np.array(0, np.int8)}
    found = prove_portable(load(model(text, w=np.ones((2, 2, 1, 1), np.int8), **parts)))
    assert found.layers[0].why == "its bias is computed at run time"
    assert not found.proven


OWN = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "mine" : 1]>
g (float[1,64] x) => (float[1,4] y)
<int8[64,4] w, float s = {0.5}, uint8[4,2,16] b, float[8] steps, float[64,4] f> { BODY }
<domain: "mine", opset_import: ["" : 21]> product (a, b) => (c) { c = MatMul(a, b) }"""


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("y = com.microsoft.DynamicQuantizeMatMul(x, w, s)", "DynamicQuantizeMatMul"),
        ("y = com.microsoft.MatMulNBits<K=64, N=4, bits=4, block_size=32>(x, b, steps)", "MatMulNBits"),
        ("y = mine.product(x, f)", "product"),
    ],
)
def test_products_that_are_no_layers_are_not_proven(body, op):
    proto = onnx.parser.parse_model(OWN.replace("BODY", body))
    arrays = {"w": np.ones((64, 4), np.int8), "b": np.ones((4, 2, 16), np.uint8), "steps": np.ones(8, np.float32)}
    arrays["f"] = np.ones((64, 4), np.float32)
    del proto.graph.initializer[:]
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "s")
    proto.graph.initializer.extend([scale, *(numpy_helper.from_array(a, n) for n, a in arrays.items())])
    found = prove_portable(load(proto))
    assert found.inexact == {op: 1}
    assert not found.proven


def test_codes_of_sixteen_bits_are_multiplied_in_floats():
    text = QDQ.replace("DequantizeLinear(w, sw, zw)", "DequantizeLinear<axis=1>(w, sw)")
    steps = {"sx": np.array(0.5, np.float32), "sy": np.array(0.5, np.float32), "sw": np.full(32, 0.01, np.float32)}
    found = prove_portable(load(model(text, w=np.full((64, 32), 3, np.int8), zx=np.array(0, np.uint16), **steps)))
    assert found.layers[0].why == "it adds floats"


MOVED = """g (float[1,2] x) => (float[1,4] y) {
    q = QuantizeLinear(x, sx, zx)
    d = DequantizeLinear(q, sx, zx)
    e = DequantizeLinear(w, sw, zw)
    t = Transpose <perm = [1, 0]> (e)
    p = MatMul(d, t)
    r = QuantizeLinear(p, sy, zx)
    y = DequantizeLinear(r, sy, zx)
}"""


@pytest.mark.parametrize(("rows", "saturating"), [([[127, 127], [1, 1]], 1), ([[127, 1], [127, 1]], 0)])
def test_a_weight_that_is_transposed_behind_its_codes_is_paired_as_onnxruntime_pairs_it(rows, saturating):
    weight = np.array([*rows, [1, 1], [1, 1]], np.int8)  # outputs x inputs
    net = model(MOVED, w=weight, zx=np.array(0, np.uint8), zw=np.array(0, np.int8), **HALVES)
    (layer,) = prove_portable(load(net)).layers
    assert layer.saturating == saturating
    assert layer.sums == (0, 255 * int(weight.sum(axis=1).max()))


TWO_FACTORS = """g (float[B,2,LENGTH] x, float[B,LENGTH,3] w) => (float[B,2,3] y) {
    q = QuantizeLinear(x, sx, zx)
    d = DequantizeLinear(q, sx, zx)
    v = QuantizeLinear(w, sw, zw)
    e = DequantizeLinear(v, sw, zw)
    p = MatMul(d, e)
    r = QuantizeLinear(p, sy, zx)
    y = DequantizeLinear(r, sy, zx)
}"""


@pytest.mark.parametrize(
    ("length", "type_", "sums", "sums_fit", "pairs_fit"),
    [
        ("L", np.uint8, None, False, True),
        ("6", np.uint8, (0, 6 * 255 * 255), True, True),
        ("6", np.int8, (-6 * 255 * 128, 6 * 255 * 127), True, False),
        ("40000", np.uint8, (0, 40000 * 255 * 255), False, True),
    ],
)
def test_products_of_two_computed_tensors_are_proven_by_their_length(length, type_, sums, sums_fit, pairs_fit):
    text = TWO_FACTORS.replace("LENGTH", length)
    found = prove_portable(load(model(text, zx=np.array(0, np.uint8), zw=np.array(0, type_), **HALVES)))
    (layer,) = found.layers
    assert layer.sums == sums
    assert (found.sums_fit, found.pairs_fit) == (sums_fit, pairs_fit)
    assert bool(layer.why) != (sums_fit and pairs_fit)


def test_layers_in_branches_are_looked_at():
    body = QDQ[QDQ.index("{") :].replace("y = ", "t = ")
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,2] x, bool c) => (float[1,1] y) {\n'
        f"y = If (c) <then_branch = a () => (float[1,1] t) {body},\n"
        "else_branch = b () => (float[1,1] u) { u = ReduceMax(x) }>}"
    )
    proto = onnx.parser.parse_model(text)
    arrays = {"w": np.array([[127], [127]], np.int8), "zx": np.array(0, np.uint8), "zw": np.array(0, np.int8), **HALVES}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    found = prove_portable(load(proto))
    (layer,) = found.layers
    assert layer.name.startswith("If_0/then_branch/")
    assert layer.saturating == 1
    assert not found.pairs_fit


def test_the_largest_code_of_a_window_is_the_same_everywhere():
    """onnxruntime calls it NhwcMaxPool, where codes are stored with channels last."""
    text = """g (float[1,4,8,8] x) => (float[1,4,2,2] y) {
        q = QuantizeLinear(x, sx, zx)
        d = DequantizeLinear(q, sx, zx)
        e = DequantizeLinear(w, sw, zw)
        p = Conv <pads = [1, 1, 1, 1]> (d, e)
        r = QuantizeLinear(p, sy, zx)
        s = DequantizeLinear(r, sy, zx)
        m = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (s)
        t = QuantizeLinear(m, sy, zx)
        u = DequantizeLinear(t, sy, zx)
        f = DequantizeLinear(z, sw, zw)
        c = Conv(u, f)
        v = QuantizeLinear(c, sy, zx)
        y = DequantizeLinear(v, sy, zx)
    }"""
    codes = {"w": RNG.integers(-60, 60, (4, 4, 3, 3)), "z": RNG.integers(-60, 60, (4, 4, 1, 1))}
    arrays = {name: array.astype(np.int8) for name, array in codes.items()}
    found = prove_portable(load(model(text, **arrays, zx=np.array(0, np.uint8), zw=np.array(0, np.int8), **HALVES)))
    assert found.inexact == {}
    assert found.proven
