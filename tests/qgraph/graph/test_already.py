"""Models that are quantized already."""

from __future__ import annotations

import numpy as np
import pytest

import qgraph
from qgraph.errors import ModelError

X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
W = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def plain(build):
    return build(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 8] x, float[8, 4] w) => (float[n, 4] y) { y = MatMul(x, w) }""",
        w=W,
    )


def test_what_is_quantized_already_says_so(model_from_text, tmp_path):
    qgraph.quantize(plain(model_from_text), X, method="minmax").save(tmp_path / "q.onnx")
    with pytest.raises(ModelError, match=r"is already quantized.*and has no float layer left"):
        qgraph.quantize(str(tmp_path / "q.onnx"), X)


def dynamic(build):
    return build(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 8] x, uint8[8, 4] q, uint8 z, float[4, 4] v) => (float[n, 4] y) {
          a, s, p = DynamicQuantizeLinear(x)
          m = MatMulInteger(a, q, p, z)
          c = Cast <to = 1> (m)
          d = Mul(c, s)
          y = MatMul(d, v)
        }""",
        q=np.arange(32, dtype=np.uint8).reshape(8, 4),
        z=np.array(8, np.uint8),
        v=W[:4],
    )


def test_what_is_quantized_in_part_warns_and_names_the_tool(model_from_text):
    net = dynamic(model_from_text)
    net.producer_name = "onnx.quantize"
    with pytest.warns(UserWarning, match=r"already quantized, apparently by onnxruntime \(1 DynamicQuantizeLinear"):
        result = qgraph.quantize(net, X, measure=False)
    assert [layer.name for layer in result.plan.layers] == ["MatMul_y"]
