"""Dynamic convolutions: products over what their windows cover."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.bits_in_file import bits_in_file
from qgraph.assess.fused import inspect_fused
from qgraph.errors import PlanError
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.onnxfile.load import load
from qgraph.plan.grids import sound
from qgraph.running.sessions import Session

RNG = np.random.default_rng(23)


def convolution(size: str, shape: tuple[int, ...], attributes: str = "") -> onnx.ModelProto:
    """A convolution with a bias, between other operators."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[n, {size}] x) => (float[n, m, o] y) {{
        s = Tanh(x)
        c = Conv{f"<{attributes}>" if attributes else ""}(s, w, b)
        t = Tanh(c)
        y = Mul(t, t)
    }}""".replace("float[n, m, o] y", f"float[{', '.join('nmopq'[: len(shape)])}] y")
    model = onnx.parser.parse_model(text)
    drawn = {"w": RNG.normal(size=shape) / np.prod(shape[1:]) ** 0.5, "b": RNG.normal(size=shape[0])}
    drawn = {name: array.astype(np.float32) for name, array in drawn.items()}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in drawn.items())
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def made_dynamic(model: onnx.ModelProto, **options: Any) -> tuple[qgraph.Result, qgraph.QuantPlan]:
    result = qgraph.quantize(model, activations=None, measure=False, **options)
    plan = result.plan.map_layers(lambda quant: dataclasses.replace(quant, runs="dynamic"))
    return result, sound(plan, GraphView(result.net), target_cpu="any")  # exact on CPUs without VNNI, too


def db(want: np.ndarray, have: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).sum() / max(np.square(want - have).sum(), 1e-30)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("sizes", "shape", "attributes"),
    [
        ((6, 20), (8, 6, 5), ""),
        ((6, 21), (8, 6, 4), "strides = [3], dilations = [2], pads = [1, 4]"),
        ((6, 9, 11), (8, 6, 3, 2), "pads = [2, 0, 1, 1], strides = [2, 1]"),
        ((6, 9, 11), (8, 6, 1, 3), 'auto_pad = "VALID", dilations = [1, 3]'),
        ((6, 9, 11), (8, 6, 1, 1), ""),
        ((6, 9, 11), (8, 6, 1, 1), "strides = [2, 3]"),
        ((6, 5, 6, 7), (8, 6, 2, 3, 2), "pads = [1, 0, 1, 0, 1, 0]"),
    ],
)
def test_file_computes_what_the_plan_says(
    sizes: tuple[int, ...], shape: tuple[int, ...], attributes: str, bits: int
) -> None:
    model = convolution(", ".join(map(str, sizes)), shape, attributes)
    result, plan = made_dynamic(model, weights=bits, edge_bits=bits)
    fed = {"x": RNG.normal(size=(3, *sizes)).astype(np.float32)}
    want, simulated, have = (
        Session(m).run_list(fed)[0]
        for m in (load(model).ir_model, lower(result.net, plan, format="float"), lower(result.net, plan, format="qdq"))
    )
    assert have.shape == want.shape
    assert db(simulated, have) > 90
    assert db(want, have) > (34 if bits == 8 else 12)


def test_the_file_multiplies_integers_and_holds_the_codes_of_the_weight() -> None:
    model = convolution("6, 20", (8, 6, 5))
    result, plan = made_dynamic(model, weights=5, edge_bits=5)
    made = load(ir.to_proto(lower(result.net, plan, format="qdq")))
    assert {layer.name: layer.integer for layer in inspect_fused(made).layers} == {"c": True}
    assert inspect_fused(made).operators["MatMulIntegerToFloat"] == 1
    assert bits_in_file(made)["c"] == (5, 8)


def test_convolutions_that_move_alike_share_their_rows() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n, 6, 20] x) => (float[n, 8, 16] y, float[n, 4, 16] z, float[n, 4, 8] other) {
        y = Conv(x, w)
        z = Conv(x, v)
        other = Conv<strides = [2]>(x, u)
    }"""
    model = onnx.parser.parse_model(text)
    for name, shape in {"w": (8, 6, 5), "v": (4, 6, 5), "u": (4, 6, 5)}.items():
        array = RNG.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result, plan = made_dynamic(model)
    made = lower(result.net, plan, format="qdq")
    operators = [node.op_type for node in made.graph]
    assert operators.count("DynamicQuantizeLinear") == 1
    assert operators.count("Concat") == 2
    fed = {"x": RNG.normal(size=(2, 6, 20)).astype(np.float32)}
    for want, have in zip(Session(load(model).ir_model).run_list(fed), Session(made).run_list(fed), strict=True):
        assert db(want, have) > 34


def test_groups_are_refused() -> None:
    result, plan = made_dynamic(convolution("6, 20", (8, 3, 5), "group = 2"))
    with pytest.raises(PlanError, match="cannot be dynamic: its groups"):
        lower(result.net, plan, format="qdq")
