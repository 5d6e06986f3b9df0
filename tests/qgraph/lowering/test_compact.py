"""Files that are as small as their weights: k bits take k bits, and the graph beside them little."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from qgraph.lowering.compact import compact
from qgraph.running.sessions import Session


@pytest.fixture(scope="module")
def calibration():
    return np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("activations", [8, 6, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_a_file_weighs_what_its_bits_do(shared, calibration, bits, activations):
    """At most 1.05 times the sum of bits / 8, and 24 kB of graph."""
    model = shared / "models" / "cifar10_resnet20.onnx"
    result = qgraph.quantize(model, calibration, method="minmax", weights=bits, edge_bits=bits, activations=activations)
    weights = sum(value.const_value.size for value in result.net.graph.initializers.values() if value.shape.rank() > 1)
    assert result.nbytes <= 1.05 * weights * bits / 8 + 24_000
    assert onnx.load_from_string(ir.to_proto(result.model).SerializeToString()).ByteSize() == result.nbytes


BODIES = """
<ir_version: 8, opset_import: ["" : 13]>
branches (bool c, float[N, 3] x) => (float[N, 3] y) <float[3] made = {1.0, 2.0, 3.0}>
{
  scaled_up_by_us = Mul(x, made)
  y = If (c) <
    then_branch = yes () => (float[N, 3] a) { a = Neg(scaled_up_by_us) },
    else_branch = no () => (float[N, 3] b) { b = Add(scaled_up_by_us, made) }
  >
}
"""


@pytest.mark.parametrize("condition", [True, False])
def test_bodies_still_find_what_was_renamed(condition):
    net = ir.from_onnx_text(BODIES)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    feeds = {"c": np.array(condition), "x": x}
    before = Session(net).run(feeds)["y"]
    compact(net, known=["x"])
    names = {str(name) for name in ir.convenience.create_value_mapping(net.graph)}
    assert not names & {"made", "scaled_up_by_us"}
    assert {"c", "x", "y"} <= names
    onnx.checker.check_model(ir.to_proto(net), full_check=True)
    np.testing.assert_array_equal(Session(net).run(feeds)["y"], before)


def test_new_names_keep_clear_of_the_old(model_from_text):
    text = """<ir_version: 8, opset_import: ["" : 13]>
    taken (float[N, 3] a) => (float[N, 3] y) { long_name = Neg(a) b = Abs(long_name) y = Exp(b) }"""
    net = ir.from_proto(model_from_text(text))
    compact(net, known=["b"])
    assert [node.outputs[0].name for node in net.graph] == ["c", "b", "y"]
