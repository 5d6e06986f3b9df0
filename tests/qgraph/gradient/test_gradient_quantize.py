"""Straight-through gradients of rounding and fake-quantization, against the formulas of LSQ."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qgraph.gradient import GradientError, gradients
from qgraph.running.sessions import Session, version


def _run(
    body: str, interface: str, wrt: list[str], feeds: dict[str, np.ndarray], opset: int = 21
) -> dict[str, np.ndarray]:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": {opset}]> m ({interface}) => (float loss) {{ {body} '
        "p = Mul(y, c) loss = ReduceSum<keepdims = 0>(p) }"
    )
    return Session(gradients(model, "loss", wrt, builder="portable"), threads=1).run(feeds)


def test_round_is_the_identity() -> None:
    c = np.array([1.0, -2.0, 3.0], np.float32)
    found = _run("y = Round(x)", "float[3] x, float[3] c", ["x"], {"x": np.array([0.4, 1.6, -2.5], np.float32), "c": c})
    np.testing.assert_array_equal(found["x_grad"], c)


def test_pair_has_the_gradients_of_lsq() -> None:
    scale, zero = 0.5, 3
    x = np.array([-9.0, -1.5, -0.3, 0.0, 0.7, 31.0, 126.1, 500.0], np.float32)
    c = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    found = _run(
        "z = Constant<value = uint8 {3}>() q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        "float[8] x, float s, float[8] c",
        ["x", "s"],
        {"x": x, "s": np.array(scale, np.float32), "c": c},
    )
    position = x.astype(np.float64) / scale
    inside = (position + zero >= 0) & (position + zero <= 255)
    code = np.clip(np.round(position) + zero, 0, 255)
    np.testing.assert_allclose(found["x_grad"], np.where(inside, c, 0), rtol=1e-6)
    slope = code - zero - np.where(inside, position, 0)
    np.testing.assert_allclose(found["s_grad"], (c * slope).sum(), rtol=1e-5)


def test_scale_per_channel() -> None:
    rng = np.random.default_rng(1)
    x, c = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(2, 3, 4)).astype(np.float32)
    s = np.array([0.005, 0.02, 0.3], np.float32)
    found = _run(
        "z = Constant<value = int8[3] {0, 0, 0}>() q = QuantizeLinear<axis = 1>(x, s, z) "
        "y = DequantizeLinear<axis = 1>(q, s, z)",
        "float[2,3,4] x, float[3] s, float[2,3,4] c",
        ["x", "s"],
        {"x": x, "s": s, "c": c},
    )
    position = x.astype(np.float64) / s[:, None]
    inside = (position >= -128) & (position <= 127)
    assert 0 < inside.sum() < inside.size
    np.testing.assert_allclose(found["x_grad"], np.where(inside, c, 0), rtol=1e-6)
    slope = np.clip(np.round(position), -128, 127) - np.where(inside, position, 0)
    np.testing.assert_allclose(found["s_grad"], (c * slope).sum((0, 2)), rtol=1e-4, atol=3e-5)  # codes reach 128


@pytest.mark.skipif(version.startswith("1.19"), reason="this onnxruntime has no Min for uint8")
def test_low_bits_in_an_eight_bit_container_mask_at_their_own_limit() -> None:
    x, c = np.array([0.2, 0.75, 0.76, 2.0, -1.0], np.float32), np.arange(1, 6, dtype=np.float32)
    found = _run(
        "z = Constant<value = uint8 {0}>() top = Constant<value = uint8 {15}>() s = Constant<value_float = 0.05>() "
        "q = QuantizeLinear(x, s, z) k = Min(q, top) y = DequantizeLinear(k, s, z)",
        "float[5] x, float[5] c",
        ["x"],
        {"x": x, "c": c},
    )
    np.testing.assert_allclose(found["x_grad"], [1, 2, 3, 0, 0], rtol=1e-6)


def test_chain_of_float_operators() -> None:
    x, c = np.array([-2.0, -0.6, 0.2, 0.9, 5.0], np.float32), np.arange(1, 6, dtype=np.float32)
    found = _run(
        "s = Constant<value_float = 0.25>() lo = Constant<value_float = -4.0>() hi = Constant<value_float = 3.0>() "
        "v = Div(x, s) k = Clip(v, lo, hi) r = Round(k) y = Mul(r, s)",
        "float[5] x, float[5] c",
        ["x"],
        {"x": x, "c": c},
    )
    np.testing.assert_allclose(found["x_grad"], [0, 2, 3, 0, 0], rtol=1e-6)


def test_blocked_scales_are_refused() -> None:
    with pytest.raises(GradientError, match=r"blocked.*one scale per"):
        _run(
            "q = QuantizeLinear<axis = 1, block_size = 2>(x, s) y = DequantizeLinear<axis = 1, block_size = 2>(q, s)",
            "float[2,4] x, float[2,2] s, float[2,4] c",
            ["x"],
            {},
        )


def test_the_ends_of_the_codes_are_inside() -> None:
    """x / s + z of 0 and 255 exactly: no value is clipped, so that both pass the gradient; a step beyond, none does."""
    x, c = np.array([-1.5, 126.0, -2.0, 126.5], np.float32), np.array([1, 2, 4, 8], np.float32)
    found = _run(
        "z = Constant<value = uint8 {3}>() q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        "float[4] x, float s, float[4] c",
        ["x", "s"],
        {"x": x, "s": np.array(0.5, np.float32), "c": c},
    )
    np.testing.assert_array_equal(found["x_grad"], [1, 2, 0, 0])
    np.testing.assert_array_equal(found["s_grad"], 4 * -3 + 8 * 252)
