"""The two builders against each other, in the environment that has onnxruntime-training."""

from __future__ import annotations

import dataclasses
from importlib.resources import files

import numpy as np
import onnx_ir as ir
import pytest

from qgraph.gradient import GradientError, builders, gradients
from qgraph.methods.zeroq.distill import DistillConfig, distill
from qgraph.running.sessions import Session

training = pytest.mark.skipif(
    "training" not in builders(), reason="needs onnxruntime-training in an environment of its own"
)


def _numbers(shape: tuple[int, ...], seed: int) -> str:
    values = np.random.default_rng(seed).normal(size=shape).ravel() * 0.4
    return f"{{{', '.join(f'{v:.4f}' for v in values)}}}"


NET = f"""<ir_version: 8, opset_import: ["": 17]>
m (float[N, 3, 8, 8] x) => (float[N, 5] y, float loss)
<float[4, 3, 3, 3] w = {_numbers((4, 3, 3, 3), 0)}, float[4] gamma = {{1.0, 0.5, 2.0, 0.1}},
 float[4] beta = {{0.1, 0.2, -0.3, 0.0}},
 float[4] mean = {{0.2, -0.1, 0.0, 0.4}}, float[4] var = {{1.0, 0.5, 2.0, 0.3}},
 float[4, 1, 3, 3] d = {_numbers((4, 1, 3, 3), 1)},
 float[5, 4] f = {_numbers((5, 4), 2)}, float[5] fb = {_numbers((5,), 3)}> {{
    c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)
    n = BatchNormalization(c, gamma, beta, mean, var)
    r = Relu(n)
    k = Conv<pads = [1, 1, 1, 1], group = 4>(r, d)
    s = Sigmoid(k)
    q = Mul(k, s)
    a = Add(q, r)
    p = GlobalAveragePool(a)
    z = Flatten(p)
    y = Gemm<transB = 1>(z, f, fb)
    e = Mul(y, y)
    loss = ReduceMean<keepdims = 0>(e)
}}"""


@training
def test_builders_agree() -> None:
    feeds = {"x": np.random.default_rng(5).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    wrt = ["x", "w", "d", "gamma", "beta", "f", "fb"]
    ours, theirs = (
        Session(gradients(ir.from_onnx_text(NET), "loss", wrt, builder=b), threads=1).run(feeds)
        for b in ("portable", "training")
    )
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max())


@training
def test_training_is_never_chosen_in_silence() -> None:
    assert builders() == ("portable", "training")
    default = gradients(ir.from_onnx_text(NET), "loss", ["x"])
    assert not any(node.domain == "com.microsoft" for node in default.graph)
    asked = gradients(ir.from_onnx_text(NET), "loss", ["x"], builder="training")
    assert any(node.domain == "com.microsoft" for node in asked.graph)


@training
def test_distilling_by_either_builder_gives_the_same_samples() -> None:
    network = files("qgraph") / "demo_assets" / "digits.onnx"
    short = DistillConfig(steps=5, settled=0.0, batch=4)
    ours, theirs = (
        distill(str(network), count=4, config=dataclasses.replace(short, builder=builder), threads=1)
        for builder in ("portable", "training")
    )
    np.testing.assert_allclose(theirs.losses, ours.losses, rtol=1e-4)
    for name, array in ours.inputs.items():
        np.testing.assert_allclose(theirs.inputs[name], array, atol=1e-3)


@training
def test_training_differentiates_only_for_inputs_and_initializers() -> None:
    with pytest.raises(GradientError, match="choose builder='portable'"):
        gradients(ir.from_onnx_text(NET), "loss", ["c"], builder="training")


@pytest.mark.skipif("training" in builders(), reason="onnxruntime-training is installed")
def test_portable_is_the_default_on_stock_onnxruntime() -> None:
    assert builders() == ("portable",)
    default = gradients(ir.from_onnx_text(NET), "loss", ["x"])
    assert {node.domain for node in default.graph} == {""}
