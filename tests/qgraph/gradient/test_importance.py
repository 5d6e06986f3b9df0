"""What outputs depend on: known importances, and none where an operator has no gradient."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qgraph.gradient.importance import counted, important_positions
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.opset import prepare
from qgraph.running.job import Job
from qgraph.samples.dataset import open_data

RNG = np.random.default_rng(8)
HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[N, 2, 1, 4] x) => (float[N, 1, 1, 4] y)'
MASKED = f"""{HEAD} <float[3, 2, 1, 1] v = {{1, 2, 3, 4, 5, 6}}, float[4] mask = {{0, 0, 1, 3}},
    float[1, 3, 1, 1] w = {{2, 1, 1}}> {{ t = Conv(x, v) m = Mul(t, mask) y = Conv(m, w) }}"""
UNKNOWN = f"""{HEAD} <float[1, 2, 1, 1] v = {{1, 2}}> {{ t = Conv(x, v) y = Shrink(t) }}"""


def found(text: str):
    net = prepare(ir.from_onnx_text(text))
    view = GraphView(net)
    x = RNG.normal(size=(9, 2, 1, 4)).astype(np.float32)
    names = [str(layer.output.name) for layer in view.layers]
    return names, important_positions(view, [*names, "x"], open_data(x, net), job=Job(threads=1))


def test_positions_count_by_the_squares_of_what_they_do_to_outputs():
    names, made = found(MASKED)
    assert set(made) == set(names)  # nothing is quantized of an input
    expected = np.float32([0, 0, 0.4, 3.6]).reshape(1, 1, 1, 4)  # the squares of the mask, with mean 1
    np.testing.assert_allclose(made[names[0]], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made[names[1]], np.ones((1, 1, 1, 4)), rtol=1e-6)
    assert counted(made[names[0]], np.zeros((5, 3, 1, 4))).shape == (5, 1, 1, 4)
    assert counted(made[names[0]], np.zeros((5, 3, 1, 6))) is None  # of another size


def test_no_gradient_no_importance():
    assert found(UNKNOWN)[1] == {}
