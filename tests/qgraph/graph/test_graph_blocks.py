"""Cutting networks into blocks: residual blocks, bottlenecks, chains, and what enters and leaves."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import onnx_ir as ir

from qgraph.graph.blocks import blocks
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import prepare

RNG = np.random.default_rng(5)
DEMO = files("qgraph") / "demo_assets" / "digits.onnx"
HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[2, 4, 8, 8] x, float[1, 4, 1, 1] m) => (float[2, 4, 8, 8] y)'


def view_of(body: str, weights: int) -> GraphView:
    numbers = (", ".join(f"{v:.3f}" for v in RNG.normal(size=16)) for _ in range(weights))
    held = ", ".join(f"float[4, 4, 1, 1] w{i} = {{{some}}}" for i, some in enumerate(numbers))
    return GraphView(prepare(ir.from_onnx_text(f"{HEAD} <{held}> {{ {body} }}")))


def shape_of(view: GraphView, **options: int) -> list[int]:
    return [len(block.layers) for block in blocks(view, **options)]


def test_a_residual_block_is_one_and_single_layers_are_joined():
    body = "a = Conv(x, w0) b = Relu(a) c = Conv(b, w1) d = Relu(c) e = Conv(d, w2) f = Add(e, b) g = Conv(f, w3) "
    view = view_of(body + "h = Sigmoid(g) i = Mul(g, h) j = Conv(i, w4) y = Relu(j)", 5)
    found = blocks(view)
    assert [len(block.layers) for block in found] == [1, 2, 2]
    assert [block.reads for block in found] == [("x",), ("b",), ("f",)]
    assert [block.writes for block in found] == [("b",), ("f",), ("y",)]
    assert shape_of(view, in_chain=1) == [1, 2, 1, 1]
    chain = "a = Conv(x, w0) b = Conv(a, w1) c = Conv(b, w2) d = Conv(c, w3) y = Conv(d, w4)"
    assert shape_of(view_of(chain, 5)) == [3, 2]


def test_a_value_of_no_layer_may_pass_every_cut():
    body = "n = Sigmoid(m) a = Conv(x, w0) b = Mul(a, n) c = Conv(b, w1) y = Mul(c, n)"
    first, second = blocks(view_of(body, 2), in_chain=1)
    assert set(first.reads) == {"x", "n"}
    assert set(second.reads) == {"b", "n"}


def test_long_stretches_are_cut_where_the_fewest_tensors_live():
    body = "a = Conv(x, w0) b = Conv(a, w1) c = Conv(b, w2) d = Conv(c, w3) e = Conv(d, w4) f = Add(e, a) y = Add(f, b)"
    view = view_of(body, 5)
    assert shape_of(view) == [1, 4]
    parts = blocks(view, at_most=2)
    assert sum(len(block.layers) for block in parts) == 5
    assert max(len(block.layers) for block in parts) <= 2
    assert any(len(block.reads) > 1 for block in parts)


def test_blocks_cover_a_network_and_hang_together():
    view = GraphView(normalise(load(DEMO)))
    found = blocks(view)
    assert [name for block in found for name in block.layers] == [layer.name for layer in view.layers]
    known = {str(v.name) for v in view.model.graph.inputs}
    for block in found:
        assert set(block.reads) <= known
        known |= set(block.writes)
