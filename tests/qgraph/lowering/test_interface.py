"""Tensors of the interface in unusual roles: inputs and weights that are outputs, products of whole numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

X = np.random.default_rng(1).normal(size=(32, 4, 8, 8)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)


def random(*shape):
    return np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)


@pytest.mark.parametrize(
    "options", [{}, {"weights": 4}, {"method": "minmax"}, {"activations": None}, {"format": "float"}]
)
def test_an_input_that_is_an_output(agreement, model_from_text, options):
    net = model_from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 4, 8, 8] x, float[4, 4, 3, 3] w, float[4, 4, 1, 1] v)
          => (float[n, 4, 8, 8] y, float[n, 4, 8, 8] x) {
          c = Conv <pads = [1, 1, 1, 1]> (x, w)
          s = Add(c, x)
          y = Conv(s, v)
        }""",
        w=random(4, 4, 3, 3),
        v=random(4, 4, 1, 1),
    )
    assert agreement(net, {"x": X}, **options) > (12 if "weights" in options else 22)


@pytest.mark.parametrize("options", [{}, {"activations": None}, {"weights": "mixed"}])
def test_weights_that_are_outputs(agreement, model_from_text, tmp_path, options):
    net = model_from_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 16] x, float[16, 8] w, float[8] b, float[8, 4] v, int64[2] k)
          => (float[n, 4] y, float[16, 8] w, float[8] b, int64[2] k) {
          h = Gemm(x, w, b)
          r = Relu(h)
          y = Gemm(r, v)
        }""",
        w=random(16, 8),
        b=random(8),
        v=random(8, 4),
        k=np.array([1, 2]),
    )
    agreement(net, {"x": ROWS}, **options)
    written = onnx.load(tmp_path / "quantized.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert list(written.graph.output) == list(net.graph.output)


@pytest.mark.filterwarnings("ignore:input 't' is 1")
@pytest.mark.parametrize(("kind", "dtype"), [("int64", np.int64), ("int32", np.int32), ("double", np.float64)])
@pytest.mark.parametrize("activations", [8, None])
def test_products_of_other_numbers(agreement, model_from_text, kind, dtype, activations):
    net = model_from_text(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 16] x, {kind}[n, 4] t, float[16, 8] w, {kind}[4, 3] k, {kind}[3] o)
          => (float[n, 8] y, {kind}[n, 3] z) {{
          y = MatMul(x, w)
          u = MatMul(t, k)
          z = Add(u, o)
        }}""",
        w=random(16, 8),
        k=np.arange(12).reshape(4, 3).astype(dtype),
        o=np.array([1, 2, 3], dtype),
    )
    assert agreement(net, {"x": ROWS, "t": np.ones((32, 4), dtype)}, activations=activations) > 22
