"""Clips of weights: on every kind of grid, no worse than the full range."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph import weights
from qgraph.calibrate import clip_weights
from qgraph.gathering import prepare
from qgraph.graph import GraphView
from qgraph.initial import initial_plan
from qgraph.recipe import Recipe

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N,4] x, float[4,6] w) => (float[N,6] y) { y = MatMul(x, w) }"""


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_least_squares_clip_of_weights(model_from_text, symmetric, per_channel):
    weight = np.random.default_rng(4).laplace(0.3, 1.0, (4000, 6)).astype(np.float32)
    weight[:, 5] = 0
    net = prepare(model_from_text(TEXT.replace("4,6", "4000,6").replace("N,4]", "N,4000]"), w=weight))
    view = GraphView(net)
    options = {"weights": 3, "edge_bits": 3, "activations": None}
    full = initial_plan(
        view, Recipe.choose("minmax", False, symmetric=symmetric, per_channel=per_channel, **options), None
    )

    def errors(plan):
        return ((weights.quantized(weight, plan.layers[0].weight) - weight) ** 2).mean(axis=0)

    before, after = errors(full), errors(clip_weights(full, view, method="mse"))
    assert after[5] == before[5] == 0
    assert (after[:5] < 0.6 * before[:5]).all()
    clipped = clip_weights(full, view, method="percentile").layers[0].weight
    assert clipped.symmetric == symmetric
    assert max(clipped.scale[:5]) < max(full.layers[0].weight.scale[:5])
