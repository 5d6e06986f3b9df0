"""Without samples, bits that ruin a network are foretold from its weights."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest

import qgraph
from qgraph.graph.sites import GraphView
from qgraph.methods.without_data.floor import foretold_db
from qgraph.running.sessions import Session

DEPTH = 24


def deep() -> onnx.ModelProto:
    """Rotations one after another, so that no error grows or shrinks on its way."""
    lines = "\n".join(f"x{k + 1} = Conv(x{k}, w{k})" for k in range(DEPTH))
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[1, 32, 4, 4] x0) => (float[1, 32, 4, 4] x{DEPTH}) {{
        {lines}
    }}"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for k in range(DEPTH):
        weight = np.linalg.qr(rng.normal(size=(32, 32)))[0].reshape(32, 32, 1, 1).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{k}"))
    return model


@pytest.mark.parametrize("bits", [2, 3])
def test_few_bits_are_warned_of(bits: int) -> None:
    with pytest.warns(UserWarning, match=r"errors of all weights together are foretold to leave -?\d+ dB"):
        qgraph.quantize(deep(), weights=bits, activations=None, measure=False)


@pytest.mark.parametrize("bits", [4, 8])
def test_enough_bits_are_not(bits: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = qgraph.quantize(deep(), weights=bits, activations=None, measure=False)
    assert result.nbytes


def test_the_foretold_figure_is_near_the_noise_of_the_outputs() -> None:
    model = deep()
    result = qgraph.quantize(model, weights=6, activations=None, measure=False)
    x = {"x0": np.random.default_rng(1).normal(size=(1, 32, 4, 4)).astype(np.float32)}
    want, have = (Session(m).run_list(x)[0] for m in (model.SerializeToString(), result.model))
    measured = 10 * np.log10(np.square(want).sum() / np.square(want - have).sum())
    assert foretold_db(result.plan, GraphView(result.net), {}) == pytest.approx(measured, abs=1.5)
