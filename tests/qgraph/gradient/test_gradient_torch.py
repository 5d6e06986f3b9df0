"""Gradient rules against torch's autograd, where torch is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qgraph.gradient import gradients
from qgraph.running.sessions import Session

torch = pytest.importorskip("torch")
F = torch.nn.functional

Function = Callable[..., Any]

UNARY: dict[str, tuple[str, Function]] = {
    "Abs": ("y = Abs(x)", lambda x: x.abs()),
    "Exp": ("y = Exp(x)", lambda x: x.exp()),
    "Erf": ("y = Erf(x)", lambda x: x.erf()),
    "Relu": ("y = Relu(x)", F.relu),
    "LeakyRelu": ("y = LeakyRelu<alpha = 0.2>(x)", lambda x: F.leaky_relu(x, 0.2)),
    "Elu": ("y = Elu<alpha = 0.7>(x)", lambda x: F.elu(x, 0.7)),
    "Selu": ("y = Selu(x)", F.selu),
    "Sigmoid": ("y = Sigmoid(x)", torch.sigmoid),
    "HardSigmoid": ("y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)", F.hardsigmoid),
    "HardSwish": ("y = HardSwish(x)", F.hardswish),
    "Tanh": ("y = Tanh(x)", torch.tanh),
    "Softplus": ("y = Softplus(x)", F.softplus),
    "Softsign": ("y = Softsign(x)", F.softsign),
    "Mish": ("y = Mish(x)", F.mish),
    "Gelu": ("y = Gelu(x)", F.gelu),
    "Gelu tanh": ('y = Gelu<approximate = "tanh">(x)', lambda x: F.gelu(x, approximate="tanh")),
    "Softmax": ("y = Softmax<axis = 1>(x)", lambda x: F.softmax(x, 1)),
    "LogSoftmax": ("y = LogSoftmax<axis = 1>(x)", lambda x: F.log_softmax(x, 1)),
    "ReduceL2": ("a = Constant<value_ints = [1, 2]>() y = ReduceL2<keepdims = 0>(x, a)", lambda x: x.norm(dim=(1, 2))),
    "ReduceMax": ("a = Constant<value_ints = [2]>() y = ReduceMax(x, a)", lambda x: x.amax(2, keepdim=True)),
    "MaxPool": (
        "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
        lambda x: F.max_pool2d(x, 3, 2, 1),
    ),
    "AveragePool": (
        "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "AveragePool ceil": (
        "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)",
        lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    ),
    "Resize nearest": (
        'y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , r)',
        lambda x: F.interpolate(x, scale_factor=(2.0, 2.0)),
    ),
    "Resize linear": (
        'y = Resize<mode = "linear">(x, , r)',
        lambda x: F.interpolate(x, scale_factor=(2.0, 2.0), mode="bilinear"),
    ),
    "Pad reflect": (
        'p = Constant<value_ints = [0, 0, 1, 2, 0, 0, 2, 1]>() y = Pad<mode = "reflect">(x, p)',
        lambda x: F.pad(x, (2, 1, 1, 2), "reflect"),
    ),
    "Gather": (
        "i = Constant<value_ints = [0, 2, 0]>() y = Gather<axis = 1>(x, i)",
        lambda x: x[:, [0, 2, 0]],
    ),
}

WEIGHTED: dict[str, tuple[str, tuple[int, ...], Function]] = {
    "Conv": (
        "y = Conv<strides = [2, 1], pads = [1, 2, 1, 2], dilations = [1, 2]>(x, w)",
        (4, 3, 3, 3),
        lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2)),
    ),
    "Conv depthwise": (
        "y = Conv<group = 3, pads = [1, 1, 1, 1]>(x, w)",
        (3, 1, 3, 3),
        lambda x, w: F.conv2d(x, w, None, 1, 1, 1, 3),
    ),
    "ConvTranspose": (
        "y = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>(x, w)",
        (3, 2, 3, 3),
        lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1),
    ),
    "PRelu": ("y = PRelu(x, w)", (3, 1, 1), lambda x, w: F.prelu(x, w.reshape(-1))),
    "LayerNormalization": ("y = LayerNormalization(x, w)", (7,), lambda x, w: F.layer_norm(x, (7,), w)),
    "InstanceNormalization": (
        "b = Constant<value_floats = [0.0, 0.0, 0.0]>() y = InstanceNormalization(x, w, b)",
        (3,),
        lambda x, w: F.instance_norm(x, weight=w),
    ),
    "MatMul": ("y = MatMul(x, w)", (7, 4), lambda x, w: x @ w),
}

SHAPE = (2, 3, 6, 7)


def _gradients(body: str, wrt: list[str], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    interface = ", ".join(f"float[{','.join(map(str, v.shape))}] {k}" for k, v in feeds.items())
    model = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["": 20]> m ({interface}) => (float loss) '
        f"<float[4] r = {{1.0, 1.0, 2.0, 2.0}}> {{ {body} e = Sin(y) "
        "product = Mul(y, e) loss = ReduceSum<keepdims = 0>(product) }"
    )
    return Session(gradients(model, "loss", wrt, builder="portable"), threads=1).run(feeds)


def _compare(body: str, function: Function, arrays: dict[str, np.ndarray]) -> None:
    leaves = {k: torch.from_numpy(v).requires_grad_() for k, v in arrays.items()}
    y = function(*leaves.values())
    (y * y.sin()).sum().backward()
    found = _gradients(body, list(arrays), arrays)
    for name, leaf in leaves.items():
        expected = leaf.grad.numpy()
        np.testing.assert_allclose(found[f"{name}_grad"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def _draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    body, function = UNARY[name]
    _compare(body, function, {"x": _draw(SHAPE, 0)})


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted(name: str) -> None:
    body, shape, function = WEIGHTED[name]
    _compare(body, function, {"x": _draw(SHAPE, 0), "w": _draw(shape, 1)})
