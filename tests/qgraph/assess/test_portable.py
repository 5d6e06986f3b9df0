"""What is proven for every processor: true of what onnxruntime computes, and false where a fault was put in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

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


def qdq(weight: np.ndarray, zero: int = 0, point: int = 0) -> ir.Model:
    ones = {name: np.array(0.5, np.float32) for name in ("sx", "sw", "sy")}
    return model(QDQ, w=weight, zx=np.array(zero, np.uint8), zw=np.array(point, weight.dtype), **ones)


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
    ones = {name: np.array(0.5, np.float32) for name in ("sx", "sw", "sy")}
    zeros = {"zx": np.array(0, np.uint8), "zw": np.array(0, np.int8)}
    weight = np.full((2, 1), 127, np.int8)
    found = prove_portable(load(model(text, w=weight, top=np.array(15, np.uint8), **ones, **zeros)))
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
