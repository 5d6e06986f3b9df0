"""Models from which nothing can be distilled: what is quantized then, and that it is said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import qgraph
from qgraph.errors import NothingToDistilError

WEIGHTS = {"w": (4, 3, 3, 3), "v": (2, 4, 1, 1), "table": (9, 3)}


def _model(inputs: str, first: str) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[N, 2, 6, 6] y) {{
        {first}
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        r = Relu(c)
        y = Conv(r, v)
    }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return model


TOKENS = _model("int64[N, 6, 6] t", "e = Gather(table, t) x = Transpose<perm = [0, 3, 1, 2]>(e)")
IMAGES = _model("float[N, 3, 6, 6] i", "x = Identity(i)")


@pytest.mark.parametrize(("model", "reason"), [(TOKENS, "only float inputs"), (IMAGES, "no BatchNormalization")])
def test_weights_alone_where_nothing_can_be_distilled(model: onnx.ModelProto, reason: str) -> None:
    with pytest.warns(UserWarning, match=f"only weights are quantized.*{reason}.*give data"):
        result = qgraph.quantize(model, measure=False)
    assert result.data == "none"
    assert result.plan.activations == ()
    assert {layer.runs for layer in result.plan.layers} == {"floats"}
    assert {layer.weight.bits for layer in result.plan.layers} == {8}


def test_static_grids_on_request_are_from_noise_where_there_can_be_noise() -> None:
    with pytest.warns(UserWarning, match="using noise"):
        result = qgraph.quantize(IMAGES, activations=8, measure=False, shapes={"i": (4, 3, 6, 6)})
    assert result.plan.activations
    with pytest.raises(NothingToDistilError, match="only float inputs"):
        qgraph.quantize(TOKENS, activations=8, measure=False)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 32),
        ({"weights": 4}, 128),
        ({"activations": 4}, 128),
        ({"rounding": "second-order"}, 128),
        ({"weights": "mixed", "average_bits": 6.0}, 128),
        ({"weights": 4, "rounding": "nearest"}, 32),
        ({"weights": 4, "protocol": "paper", "method": "zeroq"}, 32),
        ({"weights": 4, "settings": {"zeroq.count": 16}}, 16),
    ],
)
def test_more_samples_are_distilled_where_codes_are_rounded_by_them(digits, options: dict, count: int) -> None:
    settings = {"zeroq.steps": 1, "zeroq.settled": 0.0} | options.pop("settings", {})
    result = qgraph.quantize(digits, measure=False, guard="off", settings=settings, **options)
    assert result.samples.count == count * 7 // 8  # the others are held out
