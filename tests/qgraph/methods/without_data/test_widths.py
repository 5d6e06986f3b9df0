"""Without samples, small layers stay at 8 bits: their errors cost least to lower."""

from __future__ import annotations

import math
from importlib.resources import files

import numpy as np

import qgraph
from qgraph.graph.sites import GraphView
from qgraph.methods.without_data.expected import Expected
from qgraph.methods.without_data.widths import EXTRA, relative_noise, with_small_layers_at_8_bits
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe

NET = normalise(load(files("qgraph") / "demo_assets" / "digits.onnx"))
VIEW = GraphView(NET)


def start(**overrides):
    return initial_plan(VIEW, choose_recipe("zeroq", False, weights=4, activations=None, **overrides), None)


def test_small_layers_have_more_bits_and_all_take_no_more_than_a_quarter_of_a_bit():
    plan = start(edge_bits="same")
    better = with_small_layers_at_8_bits(plan, VIEW, {}, bits=4)
    sizes = {q.name: math.prod(VIEW.by_name[q.name].weight_array().shape) for q in better.layers}
    bits = {q.name: q.weight.bits for q in better.layers}
    assert set(bits.values()) == {4, 8}
    smallest, largest = (choose(sizes, key=sizes.get) for choose in (min, max))
    assert bits[smallest] > bits[largest] == 4
    spent = sum(sizes[name] * (bits[name] - 4) for name in sizes)
    assert 0 < spent <= EXTRA * sum(sizes.values())
    assert "small layers stay at 8 bits" in better.notes[-1]


def test_what_was_asked_for_stays():
    plan = start(edge_bits="same")
    names = [quant.name for quant in plan.layers]
    assert with_small_layers_at_8_bits(plan, VIEW, {}, bits=4, asked=names) == plan
    assert with_small_layers_at_8_bits(plan, VIEW, {}, bits=8) == plan
    given = {"activations": None, "measure": False, "edge_bits": "same"}
    model = files("qgraph") / "demo_assets" / "digits.onnx"
    for options in ({"weights": 4, "allocate_bits": "none"}, {"weights": 4, "changes": ("*:weights=4",)}):
        assert {layer.weight_bits for layer in qgraph.quantize(model, **given, **options).layers} == {4}


def test_noise_counts_by_the_spreads_of_inputs():
    quant = next(q for q in start(edge_bits="same", group="none").layers if q.op == "Conv")
    layer = VIEW.by_name[quant.name]
    spread = np.zeros(layer.input_channels)
    spread[0] = 2.0
    noise = relative_noise(quant, layer, Expected(np.zeros_like(spread), spread))
    from qgraph.plan import codes

    weight = layer.weight_array()[:, :1]
    error = codes.quantized(layer.weight_array(), quant.weight)[:, :1] - weight
    np.testing.assert_allclose(noise, np.square(error).sum() / np.square(weight).sum(), rtol=1e-5)
