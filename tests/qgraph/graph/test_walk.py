"""One walk for all: through bodies, through chosen operators, deep, and in time that grows with the graph alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import is_non_negative, root
from qgraph.graph.walk import ancestors, descendants, sources, walk
from qgraph.lowering.export import export
from qgraph.methods.lsqplus.configurations import offset_kind
from qgraph.onnxfile.edit import add_initializer
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe

W = np.random.default_rng(5).normal(size=(8, 8)).astype(np.float32)
BRANCHES = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N,8] x, bool c, float[8,8] w, float[8,8] v) => (float[N,8] y) {
  [first] a = MatMul(x, w)
  [moved] b = Relu(a)
  [choice] d = If(c) <then_branch = t () => (float[N,8] e) { [inner] e = Abs(b) },
                      else_branch = f () => (float[N,8] g) { [other] g = Neg(b) }>
  [beside] h = Exp(x)
  [last] y = MatMul(d, v)
}"""


def chain(op, count, *, tail=()):
    """x W, then `count` operators of one type, each with one input, and what `tail` says."""
    nodes, at = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first")], "h"
    for index in range(count):
        nodes.append(helper.make_node(op, [at], [f"h{index}"]))
        at = f"h{index}"
    nodes += [helper.make_node(kind, [at, *rest], ["y"], name="last") for kind, *rest in tail]
    end = "y" if tail else at
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8]) for name in ("x", end)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(W, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Known:
    def range_of(self, tensor):
        return -1.0, 1.0


def view_of(proto):
    return GraphView(normalise(load(proto)))


def names(nodes):
    return {str(node.name) for node in nodes}


@pytest.fixture
def branches(model_from_text):
    return view_of(model_from_text(BRANCHES, w=W, v=W))


def test_walks_pass_through_bodies(branches):
    assert names(descendants([branches.values["a"]])) == {"moved", "choice", "last"}
    assert names(ancestors([branches.values["d"]])) == {"first", "moved", "choice"}


def test_a_layer_that_a_branch_reads_is_not_the_last(branches):
    assert branches.edge_layers == {"first", "last"}
    assert names(branches.tail) == set()
    before = branches.by_name["first"].node
    assert before in ancestors([branches.by_name["last"].input])


def test_what_lies_behind_the_last_layer_is_its_tail(model_from_text):
    view = view_of(chain("Sin", 3))
    assert view.edge_layers == {"first"}
    assert [node.op_type for node in view.tail] == ["Sin"] * 3


def test_sources_go_by_way_of_some_operators(branches):
    found = sources([branches.values["b"]], lambda node: node.op_type == "Relu")
    assert [v.name for v in found] == ["b", "a"]


def test_a_walk_meets_everything_once():
    met = []

    def onward(number):
        met.append(number)
        return [number + 1, number + 1, number + 2] if number < 50 else []

    assert next(iter(walk([0, 0], onward))) == 0
    assert sorted(met) == list(range(52))


def test_depth_is_no_limit():
    """1,500 moves in a row, from a layer to a layer: more than Python's stack holds."""
    view = view_of(chain("Transpose", 1500, tail=[("MatMul", "w")]))
    assert root(view.by_name["last"].input).name == view.root(view.by_name["last"].input).name == "h"
    (site, *_) = [s for s in view.activation_sites(view.layers) if s.tensor == "h"]
    assert site.operand
    assert not site.non_negative
    assert not is_non_negative(view.by_name["last"].input)
    last = view.by_name["last"]
    assert offset_kind(view.values["h"], 4, [last], alone=False) == "real"
    plan = initial_plan(view, choose_recipe("minmax", True), Known())
    kinds = [node.op_type for node in export(view.model, plan).graph]
    assert kinds.count("Transpose") == 1500
    assert kinds.count("QuantizeLinear") == 2


def test_time_grows_with_the_graph_and_no_faster(monkeypatch):
    """Counted in looks at the readers of a tensor, and at its producer."""
    looks = 0

    def counted(original):
        def look(self):
            nonlocal looks
            looks += 1
            return original(self)

        return look

    def cost(model):
        nonlocal looks
        view = view_of(model)
        looks = 0
        _ = view.edge_layers, view.tail, view.activation_sites(view.layers)
        return looks

    monkeypatch.setattr(ir.Value, "uses", counted(ir.Value.uses))
    monkeypatch.setattr(ir.Value, "producer", counted(ir.Value.producer))
    for op, tail in (("Sin", ()), ("Sigmoid", [("MatMul", "w")]), ("Transpose", [("Add", "h")]), ("Relu", ())):
        few, many = cost(chain(op, 100, tail=tail)), cost(chain(op, 400, tail=tail))
        assert many < 5 * few, op


def test_what_is_read_twice_at_every_step_is_walked_once(model_from_text):
    lines = "\n".join(
        f"  c{i + 1} = Concat<axis = 1>(c{i}, c{i})\n  c{i + 1}s = GlobalMaxPool(c{i + 1})" for i in range(60)
    )
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4,2,2] x) => (float[N,M,1,1] y) {{
      c0 = Relu(x)
    {lines}
      y = GlobalMaxPool(c60)
    }}"""
    assert is_non_negative(load(onnx.parser.parse_model(text)).graph.outputs[0])


@pytest.mark.parametrize(("constant", "expected"), [([0.0, 3.0], True), ([0.0, -3.0], False), ([0.0, np.nan], False)])
def test_a_constant_beside_a_relu_says_its_sign(model_from_text, constant, expected):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[1,2] x, float[1,2] k, float[4,4] w) => (float[1,4] y) {
      r = Relu(x) c = Concat<axis = 1>(r, k) y = MatMul(c, w)
    }"""
    view = view_of(model_from_text(text, k=np.float32([constant]), w=W[:4, :4]))
    (site,) = [s for s in view.activation_sites(view.layers) if s.tensor == "c"]
    assert site.non_negative is expected
    assert is_non_negative(view.values["c"]) is expected


def test_a_negative_constant_beside_a_relu_keeps_its_side_of_the_grid(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[1,8] x, float[8,8] v, float[16,8] w, float[1,8] k) => (float[1,8] y) {
      h = MatMul(x, v) r = Relu(h) s = Concat<axis = 1>(r, k) y = MatMul(s, w)
    }"""
    model = model_from_text(text, v=W, w=np.concatenate([W, W]), k=np.full((1, 8), -3, np.float32))
    samples = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    result = qgraph.quantize(model, samples)
    assert min(layer.measured_sqnr_db for layer in result.layers) > 25


def test_constants_computed_from_constants_are_walked_once(model_from_text):
    """Each adds the one before to itself: 2 ** 60 paths lead to the weight."""
    lines = "\n".join(f"  w{i + 1} = Add(w{i}, w{i})" for i in range(60))
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,8] x, float[8,8] w0) => (float[N,8] y) {{
    {lines}
      y = MatMul(x, w60)
    }}"""
    (layer,) = inspect_fused(load(model_from_text(text, w0=W))).layers
    assert layer.why == "its weight is floating point"


def test_many_of_one_name_are_numbered():
    graph = view_of(chain("Relu", 1)).model.ir_model.clone().graph
    made = [add_initializer(graph, "same", np.float32(0)).name for _ in range(4)]
    assert made == ["same", "same.2", "same.3", "same.4"]
    assert add_initializer(graph, "same.2", np.float32(0)).name == "same.2.2"
    assert add_initializer(graph, "same", np.float32(0)).name == "same.5"
