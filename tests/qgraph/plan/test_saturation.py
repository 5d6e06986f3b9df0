"""No pair of products leaves 16 bits, and no more is given up than that takes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import qmath
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes
from qgraph.plan.grids import activation_grid, weight_grid
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.plan.saturation import largest_pairs, without_saturation

CONV = "float[N,3,6,6] x, float[4,3,3,3] w) => (float[N,4,4,4] y) { y = Conv(x, w) }"
GEMM = "float[N,6] x, float[4,6] w) => (float[N,4] y) { y = Gemm<transB=1>(x, w) }"
MATMUL = "float[N,6] x, float[6,4] w) => (float[N,4] y) { y = MatMul(x, w) }"
DEPTHWISE = "float[N,4,6,6] x, float[4,1,3,3] w) => (float[N,4,4,4] y) { y = Conv<group=4>(x, w) }"
TWO_FILTERS = "float[N,2,6,6] x, float[4,1,3,3] w) => (float[N,4,4,4] y) { y = Conv<group=2>(x, w) }"


def planned(model_from_text, text, weight, *, bits=8, symmetric=True, activation_bits=8):
    head = '<ir_version: 8, opset_import: ["": 17]> net ('
    net = normalise(load(model_from_text(head + text, w=weight)))
    view = GraphView(net)
    (layer,) = view.layers
    over = tuple(i for i in range(weight.ndim) if i != layer.scale_axis)
    grid = weight_grid(
        weight.min(over),
        weight.max(over),
        bits=bits,
        granularity=qmath.Granularity(axis=layer.scale_axis),
        symmetric=symmetric,
    )
    plan = QuantPlan(
        model=net.digest,
        recipe="test",
        layers=(LayerQuant(name=layer.name, op=layer.op, weight=grid),),
        activations=(activation_grid("x", 0, 1, bits=activation_bits),),
    )
    return view, plan


def pairs_of(view, plan):
    grid, layer = plan.layers[0].weight, view.layers[0]
    return largest_pairs(layer, codes.stored(codes.codes(layer.weight_array(), grid), grid))


def brute_force(view, plan):
    """The largest sum of neighbours of one sign, one product after the other in the kernel's order."""
    layer, grid = view.layers[0], plan.layers[0].weight
    stored = codes.stored(codes.codes(layer.weight_array(), grid), grid).astype(int)
    rows = []
    for channel in range(4):
        if layer.op == "Conv":
            taps = np.moveaxis(stored[channel], 0, -1)  # kernel height, width, inputs
        else:
            taps = stored[channel] if layer.op == "Gemm" else stored[:, channel]
        rows.append([*taps.reshape(-1), 0])
    return [
        max(abs(sum(v for v in row[i : i + 2] if v * sign > 0)) for sign in (1, -1) for i in range(0, len(row) - 1, 2))
        for row in rows
    ]


@pytest.mark.parametrize("text", [CONV, GEMM, MATMUL, TWO_FILTERS])
def test_pairs_are_those_of_the_kernel(model_from_text, text):
    shape = {CONV: (4, 3, 3, 3), GEMM: (4, 6), MATMUL: (6, 4), TWO_FILTERS: (4, 1, 3, 3)}[text]
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    view, plan = planned(model_from_text, text, weight)
    assert pairs_of(view, plan).tolist() == brute_force(view, plan)
    safe = without_saturation(plan, view)
    assert max(pairs_of(view, safe)) <= 128
    for before, after, pair in zip(
        plan.layers[0].weight.scale, safe.layers[0].weight.scale, pairs_of(view, plan), strict=True
    ):
        assert after == before if pair <= 128 else before < after <= before * pair / 128 * 1.03


@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (8, False), (7, False), (6, False), (4, True)])
def test_any_weight_is_safe_afterwards(model_from_text, bits, symmetric):
    weight = np.abs(np.random.default_rng(1).standard_normal((4, 6))).astype(np.float32) + 3  # all of one sign
    view, plan = planned(model_from_text, GEMM, weight, bits=bits, symmetric=symmetric)
    safe = without_saturation(plan, view)
    assert max(pairs_of(view, safe)) <= 128
    error = np.abs(codes.quantized(weight, safe.layers[0].weight) - weight).max()
    assert error <= weight.max() / 2 ** (min(bits, 7) - 1)


def test_neighbours_of_other_signs_and_narrow_operands_cost_nothing(model_from_text):
    weight = np.tile(np.float32([1, -1, 1, -1, 1, -1]), (4, 1))
    view, plan = planned(model_from_text, GEMM, weight)
    assert without_saturation(plan, view) == plan
    view, plan = planned(model_from_text, GEMM, np.abs(weight), activation_bits=7)
    assert without_saturation(plan, view) == plan
    view, plan = planned(model_from_text, GEMM, np.abs(weight))
    assert without_saturation(plan, view) != plan
    weights_alone = dataclasses.replace(plan, activations=())
    assert without_saturation(weights_alone, view) == weights_alone


def test_a_depthwise_kernel_does_not_pair(model_from_text):
    view, plan = planned(model_from_text, DEPTHWISE, np.ones((4, 1, 3, 3), np.float32))
    assert without_saturation(plan, view) == plan
    view, plan = planned(model_from_text, TWO_FILTERS, np.ones((4, 1, 3, 3), np.float32))
    assert without_saturation(plan, view) != plan
