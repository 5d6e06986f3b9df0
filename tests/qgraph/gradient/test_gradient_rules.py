"""Every gradient rule against central differences in float64, and in onnxruntime's float32 kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from float64_kernels import float64_runner
from gradient_cases import CASES, Case

from qgraph.gradient import gradient_name, gradients, rules
from qgraph.running.sessions import Session

STRAIGHT_THROUGH = {"Round", "QuantizeLinear", "DequantizeLinear"}  # tested against formulas in test_gradient_quantize
RESIZED_BEFORE_OPSET_10 = {"Upsample"}  # tested through the opset converter in test_gradient_build

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def test_every_rule_has_a_case() -> None:
    standard = {name for name in rules() if "::" not in name}  # others are tested with what registers them
    assert standard == {case.op for case in CASES} | STRAIGHT_THROUGH | RESIZED_BEFORE_OPSET_10


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_rule_agrees_with_central_differences(case: Case, sizes: str) -> None:
    dynamic = case.dynamic if sizes == "dynamic" else ()
    if sizes == "dynamic" and not dynamic:
        pytest.skip("the operator's padding needs static sizes")
    inputs = case.inputs()
    wrt = list(case.wrt or inputs)
    covector = _covector(case, inputs)
    double = gradients(_with_loss(case, covector, "double", dynamic), "loss", wrt, builder="portable")
    run = float64_runner(double)
    exact = run(inputs)
    rng = np.random.default_rng(7)
    for name in wrt:
        gradient = exact[gradient_name(name)]
        assert gradient.shape == inputs[name].shape
        for _ in range(3):
            direction = rng.normal(size=inputs[name].shape)
            slope = _central_difference(run, inputs, name, direction)
            np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-5, atol=1e-6 * _size(covector))

    single = gradients(_with_loss(case, covector, "float", dynamic), "loss", wrt, builder="portable")
    rounded = Session(single, threads=1).run({n: np.asarray(v, np.float32) for n, v in inputs.items()})
    for name in wrt:
        gradient = exact[gradient_name(name)]
        found = rounded[gradient_name(name)]
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=2e-5 * (1 + np.abs(gradient).max()))


def _central_difference(run: Run, inputs: dict[str, np.ndarray], name: str, direction: np.ndarray) -> float:
    step = 1e-6
    ahead, behind = (run(inputs | {name: inputs[name] + s * direction})["loss"].item() for s in (step, -step))
    return (ahead - behind) / (2 * step)


def _size(covector: np.ndarray) -> float:
    return 1.0 + float(np.abs(covector).sum())


def _model(case: Case, kind: str, dynamic: tuple[str, ...]) -> ir.Model:
    def declared(name: str, shape: tuple[int, ...]) -> str:
        sizes = [f"{name}{i}" if name in dynamic else str(d) for i, d in enumerate(shape)]
        return f"{kind}[{','.join(sizes)}] {name}" if shape else f"{kind} {name}"

    interface = ", ".join(declared(name, shape) for name, shape in case.shapes.items())
    constants = f"<{case.constants.replace('double', kind)}>" if case.constants else ""
    header = f'<ir_version: 9, opset_import: ["": {case.opset}]>'
    model = ir.from_onnx_text(f"{header}\ncase ({interface}) => ({kind} y) {constants} {{ {case.body} }}")
    model.graph.outputs[0].shape = None  # the text form has no way to leave it open
    return model


def _covector(case: Case, inputs: dict[str, np.ndarray]) -> np.ndarray:
    y = float64_runner(_model(case, "double", ()))(inputs)["y"]
    return np.random.default_rng(99).normal(size=y.shape)


def _with_loss(case: Case, covector: np.ndarray, kind: str, dynamic: tuple[str, ...]) -> ir.Model:
    """The case, and loss = <y, covector>."""
    model = _model(case, kind, dynamic)
    (y,) = model.graph.outputs
    weights = covector.astype(np.float64 if kind == "double" else np.float32)
    value = ir.Value(name="covector", const_value=ir.tensor(weights, name="covector"))
    value.dtype, value.shape = ir.DataType.from_numpy(weights.dtype), ir.Shape(weights.shape)
    model.graph.register_initializer(value)
    product = ir.node("Mul", [y, value])
    loss = ir.node("ReduceSum", product.outputs, attributes={"keepdims": 0})
    product.outputs[0].name, loss.outputs[0].name = "product", "loss"
    loss.outputs[0].dtype, loss.outputs[0].shape = y.dtype, ir.Shape([])
    model.graph.extend([product, loss])
    model.graph.outputs[:] = [loss.outputs[0]]
    return model
