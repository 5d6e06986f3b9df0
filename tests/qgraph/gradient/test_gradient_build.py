"""The builder: what it writes, what it leaves out, and what it says when it cannot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qgraph.gradient import (
    GradientError,
    MissingRuleError,
    append,
    builders,
    gradient_name,
    gradients,
    op,
    rule,
    tensor,
)
from qgraph.gradient.registry import _rules
from qgraph.running.sessions import Session

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
WEIGHTS = ", ".join(f"{v:.3f}" for v in np.random.default_rng(0).normal(size=36))
NET = f"""m (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y, float loss)
<float[2, 2, 3, 3] w = {{{WEIGHTS}}}, float[2] b = {{0.1, -0.2}}> {{
    c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    s = Sigmoid(c)
    y = Mul(c, s)
    loss = ReduceMean<keepdims = 0>(y)
}}"""


def _text(body: str) -> ir.Model:
    return ir.from_onnx_text(f"{HEADER} {body}")


def _operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def _feeds(batch: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(batch, 2, 4, 4)).astype(np.float32)}


def test_outputs_are_the_models_then_the_gradients() -> None:
    model = _text(NET)
    made = gradients(model, "loss", ["w", "x"], builder="portable")
    assert [v.name for v in made.graph.outputs] == ["y", "loss", "w_grad", "x_grad"]
    assert [v.name for v in model.graph.outputs] == ["y", "loss"]
    assert made.graph.outputs[3].shape == model.graph.inputs[0].shape
    for batch in (1, 5):
        found = Session(made, threads=1).run(_feeds(batch))
        assert found["x_grad"].shape == (batch, 2, 4, 4)
        assert found["w_grad"].shape == (2, 2, 3, 3)


def test_accepts_paths_and_protos_and_is_saved_as_a_valid_file(tmp_path: Path) -> None:
    proto = ir.to_proto(_text(NET))
    onnx.save(proto, tmp_path / "net.onnx")
    results = []
    for given in (proto, tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        ir.save(gradients(given, "loss", ["x"], builder="portable"), tmp_path / "step.onnx")
        onnx.checker.check_model(tmp_path / "step.onnx", full_check=True)
        results.append(Session(tmp_path / "step.onnx", threads=1).run(_feeds())["x_grad"])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_dead_branches_are_never_built() -> None:
    made = gradients(_text(NET), "loss", ["x"], builder="portable")
    assert _operators(made)["Conv"] == 2  # forward, and the input's gradient; none for the weight
    assert not any("b_grad" in str(v.name) for node in made.graph for v in node.outputs)


def test_forward_subexpressions_are_used_again() -> None:
    model = _text(
        "m (float[3] x) => (float loss) "
        "{ y = Softplus(x) s = Sigmoid(x) z = Mul(y, s) loss = ReduceSum<keepdims = 0>(z) }"
    )
    assert _operators(gradients(model, "loss", ["x"], builder="portable"))["Sigmoid"] == 1


@pytest.mark.parametrize("product", ["Mul(x, s)", "Mul(s, x)"])
@pytest.mark.parametrize(("rest", "wrt"), [("", ["x"]), ("", ["x", "s"]), ("z = Add(s, y)", ["x"])])
def test_a_value_times_its_sigmoid(product: str, rest: str, wrt: list[str]) -> None:
    """One derivative unless that for the sigmoid is asked for; both agree with y' = s + x s (1 - s)."""
    last = "z" if rest else "y"
    body = f"s = Sigmoid(x) y = {product} {rest} loss = ReduceSum<keepdims = 0>({last})"
    model = _text(f"m (float[5] x) => (float loss) {{ {body} }}")
    made = gradients(model, "loss", wrt, builder="portable")
    x = np.linspace(-4, 4, 5, dtype=np.float32)
    s = 1 / (1 + np.exp(-x))
    found = Session(made, threads=1).run({"x": x})
    np.testing.assert_allclose(found["x_grad"], s + (x + bool(rest)) * s * (1 - s), rtol=1e-5)
    if "s" in wrt:
        np.testing.assert_allclose(found["s_grad"], x, rtol=1e-6)
    if "s" not in wrt and not rest:
        assert _operators(made)["Mul"] == 3  # one of them in the forward pass


def test_expansions_are_left_to_broadcasting() -> None:
    model = _text("m (float[3,4] x) => (float loss) { y = Mul(x, x) loss = ReduceMean<keepdims = 0>(y) }")
    made = gradients(model, "loss", ["x"], builder="portable")
    assert _operators(made)["Expand"] == 0
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(Session(made, threads=1).run({"x": x})["x_grad"], x / 6, rtol=1e-6)


def test_inner_tensors_and_inner_losses() -> None:
    made = gradients(_text(NET), "loss", ["c"], builder="portable")
    names = [v.name for v in made.graph.outputs]
    assert names == ["y", "loss", "c_grad"]
    model = _text("m (float[3] x) => (float[3] y) { y = Mul(x, x) s = ReduceSum<keepdims = 0>(y) z = Identity(s) }")
    assert [v.name for v in gradients(model, "s", ["x"], builder="portable").graph.outputs] == ["y", "x_grad"]


def test_loss_that_is_requested_itself() -> None:
    made = gradients(_text(NET), "loss", ["loss"], builder="portable")
    assert Session(made, threads=1).run(_feeds())["loss_grad"] == 1.0


def test_a_tensor_used_twice_gets_the_sum() -> None:
    model = _text(
        "m (float[2] x) => (float loss) { a = Exp(x) b = Mul(a, x) c = Add(b, x) loss = ReduceSum<keepdims = 0>(c) }"
    )
    x = np.array([0.3, -1.2], np.float32)
    found = Session(gradients(model, "loss", ["x"], builder="portable"), threads=1).run({"x": x})["x_grad"]
    np.testing.assert_allclose(found, np.exp(x) * (1 + x) + 1, rtol=1e-6)


def test_old_opsets_are_raised() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 4, opset_import: ["": 9]> m (float[1,1,2,2] x) => (float[1,1,4,4] y) '
        '<float[4] s = {1.0, 1.0, 2.0, 2.0}> { y = Upsample<mode = "nearest">(x, s) }'
    )
    made = gradients(_with_sum(model), "loss", ["x"], builder="portable")
    found = Session(made, threads=1).run({"x": np.ones((1, 1, 2, 2), np.float32)})
    np.testing.assert_array_equal(found["x_grad"], np.full((1, 1, 2, 2), 4.0))


def _with_sum(model: ir.Model) -> ir.Model:
    (y,) = model.graph.outputs
    node = ir.node("ReduceSum", [y], attributes={"keepdims": 0})
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = "loss", y.dtype, ir.Shape([])
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    return model


def test_expressions_can_be_appended_as_outputs() -> None:
    model = _text(NET)
    y = next(v for v in model.graph.outputs if v.name == "y")
    append(model, op.ReduceMax(tensor(y) * 2.0, keepdims=0), name="twice_the_largest")
    found = Session(model, threads=1).run(_feeds())
    np.testing.assert_allclose(found["twice_the_largest"], 2 * found["y"].max(), rtol=1e-6)


def test_missing_rule_names_node_operator_opset_and_the_function_to_add() -> None:
    model = _text("m (float[3] x) => (float loss) { y = Asinh(x) loss = ReduceSum<keepdims = 0>(y) }")
    model.graph[0].name = "the_node"
    with pytest.raises(MissingRuleError, match=r"Asinh \(opset 17\) of node 'the_node'(.|\n)*@rule\(\"Asinh\"\)"):
        gradients(model, "loss", ["x"], builder="portable")


def test_a_rule_can_be_added() -> None:
    model = _text("m (float[3] x) => (float loss) { y = Asinh(x) loss = ReduceSum<keepdims = 0>(y) }")
    try:
        rule("Asinh")(lambda n: n.g / op.Sqrt(n.x * n.x + 1.0))
        found = Session(gradients(model, "loss", ["x"], builder="portable"), threads=1)
        x = np.array([-1.0, 0.0, 2.0], np.float32)
        np.testing.assert_allclose(found.run({"x": x})["x_grad"], 1 / np.sqrt(x**2 + 1), rtol=1e-6)
    finally:
        _rules.pop(("", "Asinh"), None)


def test_an_operator_without_rule_off_the_path_does_not_matter() -> None:
    model = _text(
        "m (float[3] x, float[3] u) => (float loss) { v = Asinh(u) y = Mul(x, v) loss = ReduceSum<keepdims = 0>(y) }"
    )
    assert gradient_name("x") in {v.name for v in gradients(model, "loss", ["x"], builder="portable").graph.outputs}


def test_duplicate_registration_raises() -> None:
    with pytest.raises(ValueError, match=r"'Conv'.*already has a gradient rule"):
        rule("Conv")(lambda n: n.g)


@pytest.mark.parametrize(
    ("loss", "wrt", "message"),
    [
        ("losss", ["x"], r"no tensor named 'losss'; did you mean 'loss'"),
        ("loss", ["z"], r"no tensor named 'z'"),
        ("y", ["x"], r"'y' has shape .*reduce it first"),
        ("loss", [], r"at least one name"),
        ("loss", ["i"], r"'i' is of type INT64"),
        ("loss", ["u"], r"'loss' does not depend on 'u'"),
    ],
)
def test_wrong_requests_are_explained(loss: str, wrt: list[str], message: str) -> None:
    model = _text(
        "m (float[3] x, float[3] u, int64[1] i) => (float[3] y, float loss) "
        "{ y = Mul(x, x) v = Mul(u, u) w = ReduceSum<keepdims = 0>(v) k = Gather(x, i) "
        "loss = ReduceSum<keepdims = 0>(y) }"
    )
    with pytest.raises(GradientError, match=message):
        gradients(model, loss, wrt, builder="portable")


def test_a_name_that_is_taken_is_refused() -> None:
    model = _text("m (float[3] x) => (float loss) { x_grad = Mul(x, x) loss = ReduceSum<keepdims = 0>(x_grad) }")
    with pytest.raises(GradientError, match="already has a tensor named 'x_grad'"):
        gradients(model, "loss", ["x"], builder="portable")


def test_batch_norm_in_training_mode_is_refused() -> None:
    model = _text(
        "m (float[2,3,4] x, float[3] s, float[3] b, float[3] mean, float[3] var) => (float loss) "
        "{ y, rm, rv = BatchNormalization<training_mode = 1>(x, s, b, mean, var) loss = ReduceSum<keepdims = 0>(y) }"
    )
    with pytest.raises(GradientError, match="training mode"):
        gradients(model, "loss", ["x"], builder="portable")


def test_builders_that_are_not_there_are_named() -> None:
    with pytest.raises(GradientError, match="unknown gradient builder 'torch'"):
        gradients(_text(NET), "loss", ["x"], builder="torch")  # type: ignore[arg-type]
    if "training" not in builders():
        with pytest.raises(GradientError, match="pip install onnxruntime-training"):
            gradients(_text(NET), "loss", ["x"], builder="training")


def test_a_tensor_may_have_many_readers() -> None:
    """1,200 sums read x, one after the other: more than Python's stack holds."""
    lines = " ".join(f"h{i + 1} = Add(h{i}, x)" for i in range(1200))
    model = _text(f"m (float[2] x) => (float loss) {{ h0 = Neg(x) {lines} loss = ReduceSum<keepdims = 0>(h1200) }}")
    made = gradients(model, "loss", ["x"], builder="portable")
    found = Session(made, threads=1).run({"x": np.ones(2, np.float32)})
    assert found["x_grad"].tolist() == [1199.0, 1199.0]
