"""Recurrent layers, and layers in the bodies of If, Loop and Scan: their weights in few bits, floats once loaded."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.write import serialised
from qgraph.running.sessions import Session

RNG = np.random.default_rng(0)
N = helper.make_node
FLOAT = TensorProto.FLOAT


def info(name, shape=None, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def body(nodes, outputs, inputs=(), constants=None):
    tensors = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    return helper.make_graph(nodes, "body", list(inputs), [info(o) for o in outputs], tensors)


def model(nodes, inputs, outputs, constants=None):
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def normal(*shape, scale=0.2):
    return RNG.normal(0, scale, shape).astype(np.float32)


def convolutions_in_both_branches():
    """Each with a weight of its own, named alike, and what stands outside."""
    weights = [N("Constant", [], ["cw"], value=numpy_helper.from_array(normal(32, 16, 3))) for _ in range(2)]
    sides = [
        body([weight, N("Conv", ["h", "cw", "b"], [f"o{i}"], name="conv", pads=[1, 1])], [f"o{i}"])
        for i, weight in enumerate(weights)
    ]
    nodes = [N("Relu", ["x"], ["h"]), N("If", ["c"], ["y"], name="choice", then_branch=sides[0], else_branch=sides[1])]
    inputs = [info("x", ["n", 16, 20]), info("c", [], TensorProto.BOOL)]
    net = model(nodes, inputs, [info("y", ["n", 32, 20])], {"b": normal(32)})
    return net, {"x": normal(4, 16, 20, scale=1), "c": np.array(True)}, ["choice/then_branch/", "choice/else_branch/"]


def nested_branches():
    """A weight that both inner branches read is stored once."""
    deep = [body([N("MatMul", ["x", "w"], [f"t{i}"], name=f"product{i}")], [f"t{i}"]) for i in range(2)]
    inner = N("If", ["d"], ["i"], name="inner", then_branch=deep[0], else_branch=deep[1])
    outer = body([inner, N("Tanh", ["i"], ["o"])], ["o"])
    other = body([N("Identity", ["x"], ["p"])], ["p"])
    nodes = [N("If", ["c"], ["y"], name="outer", then_branch=outer, else_branch=other)]
    flags = [info(name, [], TensorProto.BOOL) for name in "cd"]
    net = model(nodes, [info("x", ["n", 48]), *flags], [info("y", ["n", 48])], {"w": normal(48, 48)})
    feeds = {"x": normal(4, 48, scale=1), "c": np.array(True), "d": np.array(False)}
    return net, feeds, ["outer/then_branch/inner/then_branch/product0", "outer/then_branch/inner/else_branch/product1"]


def loop():
    inner = body(
        [N("MatMul", ["s", "w"], ["m"], name="product"), N("Tanh", ["m"], ["next"]), N("Identity", ["go"], ["on"])],
        ["on", "next", "m"],
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("s", ["n", 48])],
        {"w": normal(48, 48)},
    )
    inner.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    nodes = [N("Loop", ["times", "", "x"], ["last", "all"], name="loop", body=inner)]
    outputs = [info("last", ["n", 48]), info("all", [None, "n", 48])]
    net = model(nodes, [info("x", ["n", 48])], outputs, {"times": np.array(3)})
    return net, {"x": normal(4, 48, scale=1)}, ["loop/body/product"]


def scan():
    inner = body(
        [N("MatMul", ["e", "w"], ["m"], name="product"), N("Add", ["s", "m"], ["next"]), N("Relu", ["next"], ["r"])],
        ["next", "r"],
        [info("s", [4, 48]), info("e", [4, 32])],
        {"w": normal(32, 48)},
    )
    nodes = [N("Scan", ["zero", "x"], ["last", "all"], name="scan", body=inner, num_scan_inputs=1)]
    outputs = [info("last", [4, 48]), info("all", [6, 4, 48])]
    net = model(nodes, [info("x", [6, 4, 32])], outputs, {"zero": np.zeros((4, 48), np.float32)})
    return net, {"x": normal(6, 4, 32, scale=1)}, ["scan/body/product"]


def recurrent(op, gates, *, directions=1, peephole=False, lengths=False):
    def make():
        hidden, width, direction = 32, 24, "bidirectional" if directions == 2 else "forward"
        constants = {
            "w": normal(directions, gates * hidden, width),
            "r": normal(directions, gates * hidden, hidden),
            "b": normal(directions, 2 * gates * hidden),
        }
        names = ["x", "w", "r", "b", "len" if lengths else ""]
        if peephole:
            constants["p"] = normal(directions, 3 * hidden)
            names += ["", "", "p"]
        nodes = [N(op, names, ["y", "h"], name="rnn", hidden_size=hidden, direction=direction)]
        inputs = [info("x", [6, "n", width]), *([info("len", ["n"], TensorProto.INT32)] if lengths else [])]
        outputs = [info("y", [6, directions, "n", hidden]), info("h", [directions, "n", hidden])]
        feeds = {"x": normal(6, 4, width, scale=1)}
        feeds |= {"len": np.array([6, 3, 5, 1], np.int32)} if lengths else {}
        return model(nodes, inputs, outputs, constants), feeds, ["rnn/W", "rnn/R"]

    return make


CASES = {
    "If": convolutions_in_both_branches,
    "nested If": nested_branches,
    "Loop": loop,
    "Scan": scan,
    "LSTM": recurrent("LSTM", 4),
    "LSTM both ways": recurrent("LSTM", 4, directions=2, peephole=True, lengths=True),
    "GRU": recurrent("GRU", 3, lengths=True),
    "GRU both ways": recurrent("GRU", 3, directions=2),
    "RNN": recurrent("RNN", 1, directions=2),
}


def decibels(net, result, feeds):
    """Signal over error of the worst output; both models have the same interface."""
    written = onnx.ModelProto.FromString(serialised(result.model))
    onnx.checker.check_model(written)
    for side in ("input", "output"):
        assert [*getattr(written.graph, side)] == [*getattr(net.graph, side)]
    wanted, found = (Session(m.SerializeToString()).run_list(feeds) for m in (net, written))
    ratios = [np.square(a).sum() / np.square(a - b).sum() for a, b in zip(wanted, found, strict=True)]
    return 10 * np.log10(min(ratios))


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def test_weights_of_eight_bits_keep_the_outputs(case):
    net, feeds, names = case
    result = qgraph.quantize(net, activations=None, measure=False)
    assert decibels(net, result, feeds) > 35
    assert [layer.name for layer in result.layers] == [layer.name for layer in result.plan.layers]
    for name in names:
        (layer,) = [layer for layer in result.plan.layers if layer.name.startswith(name)]
        assert (layer.weight.bits, layer.runs) == (8, "floats")
    assert result.nbytes < 0.6 * net.ByteSize()


def test_weights_of_four_bits_are_floats_once_the_file_is_loaded(case, tmp_path):
    net, _, _ = case
    result = qgraph.quantize(net, activations=None, weights=4, edge_bits=4, measure=False)
    assert {layer.weight.bits for layer in result.plan.layers} == {4}
    path = tmp_path / "optimised.onnx"
    Session(result.model, optimized_path=path)
    left = {node.op_type for node in onnx.load(path).graph.node}
    assert not left & {"BitShift", "MatMulInteger", "Cast", "Mul", "Sub", "DequantizeLinear"}


def test_a_weight_read_in_two_bodies_is_stored_once():
    net, _, names = nested_branches()
    result = qgraph.quantize(net, activations=None, measure=False)
    large = [v for v in result.model.graph.initializers.values() if v.const_value.nbytes >= 48 * 48]
    assert len(large) == 1
    assert len(names) == 2


def test_what_is_computed_from_constants_in_a_body_is_a_weight():
    """Gates that an exporter cuts and joins at every run, in branches apart."""
    w, x = normal(1, 128, 24), normal(6, 4, 24, scale=1)
    sides = []
    for side in "te":
        nodes = [
            N("Slice", ["w", f"{a}{side}", f"{b}{side}", f"one{side}"], [f"{a}{b}{side}"]) for a, b in ("gh", "ag")
        ]
        nodes += [
            N("Concat", [f"gh{side}", f"ag{side}"], [f"cat{side}"], axis=1),
            N("LSTM", ["x", f"cat{side}", "r"], [f"y{side}"], hidden_size=32, name=f"rnn{side}"),
        ]
        places = {"a": 0, "g": 64, "h": 128, "one": 1}
        constants = {f"{name}{side}": np.array([place]) for name, place in places.items()}
        sides.append(body(nodes, [f"y{side}"], constants=constants))
    nodes = [N("If", ["c"], ["y"], name="choice", then_branch=sides[0], else_branch=sides[1])]
    inputs = [info("x", [6, "n", 24]), info("c", [], TensorProto.BOOL)]
    net = model(nodes, inputs, [info("y", [6, 1, "n", 32])], {"w": w, "r": normal(1, 128, 32)})
    result = qgraph.quantize(net, activations=None, measure=False)
    assert len(result.plan.layers) == 4
    assert result.nbytes < 0.55 * net.ByteSize()
    assert decibels(net, result, {"x": x, "c": np.array(False)}) > 35


@pytest.mark.parametrize(("pattern", "left"), [("rnn", []), ("rnn/R", ["rnn/W"]), ("*/W", ["rnn/R"])])
def test_keep_takes_the_name_of_the_operator_or_of_a_weight(pattern, left):
    net, _, _ = CASES["LSTM"]()
    gemm = N("Gemm", ["h2", "v"], ["z"], name="out")
    net.graph.node.extend([N("Squeeze", ["h", "zero"], ["h2"]), gemm])
    net.graph.initializer.extend(
        [numpy_helper.from_array(normal(32, 8), "v"), numpy_helper.from_array(np.array([0]), "zero")]
    )
    net.graph.output.append(info("z", ["n", 8]))
    result = qgraph.quantize(net, activations=None, measure=False, keep=(pattern,))
    assert [layer.name for layer in result.plan.layers if layer.op == "LSTM"] == left
    kept = {entry.name: entry.bytes for entry in result.plan.kept_float}
    assert kept.get("rnn/R", 0) == (0 if "rnn/R" in left else 128 * 32 * 4)


def test_shared_edges_and_tails_look_into_bodies():
    view = GraphView(normalise(load(convolutions_in_both_branches()[0])))
    assert view.edge_layers == set(view.by_name)
    view = GraphView(normalise(load(nested_branches()[0])))
    assert view.tail == ()


@pytest.mark.filterwarnings("ignore:the else branch")  # no sample takes it
def test_a_weight_of_integers_and_of_a_body_is_stored_once():
    """On the grid of the integers."""
    inner = body([N("MatMul", ["h", "w"], ["t"], name="inside")], ["t"])
    other = body([N("Identity", ["h"], ["e"])], ["e"])
    nodes = [
        N("MatMul", ["x", "w"], ["h"], name="outside"),
        N("If", ["c"], ["i"], then_branch=inner, else_branch=other),
    ]
    nodes += [N("MatMul", ["i", "v"], ["y"], name="last")]
    inputs = [info("x", ["n", 48]), info("c", [], TensorProto.BOOL)]
    net = model(nodes, inputs, [info("y", ["n", 48])], {"w": 1 + normal(48, 48), "v": normal(48, 48)})
    data = {"x": normal(16, 48, scale=1), "c": np.array(True)}
    for bits in (8, 4):
        result = qgraph.quantize(net, data, weights=bits, activations=8, edge_bits=bits, measure=False, method="minmax")
        grids = {layer.name: (layer.runs, layer.weight) for layer in result.plan.layers}
        assert grids["outside"][0] == "integers"
        assert grids["If_i/then_branch/inside"] == grids["outside"]
        stored = [v for v in result.model.graph.initializers.values() if v.const_value.nbytes >= 48 * 48 * bits // 8]
        assert len(stored) == 2


def test_weights_of_floats_have_zero_points():
    """They cost nothing there, and weights of one sign need them."""
    net, _, _ = nested_branches()
    one_sign = onnx.ModelProto.FromString(net.SerializeToString())
    one_sign.graph.initializer[0].CopyFrom(numpy_helper.from_array(1 + np.abs(normal(48, 48)), "w"))
    grids = [layer.weight for layer in qgraph.quantize(one_sign, activations=None, measure=False).plan.layers]
    assert {grid.zero_point[0] for grid in grids} == {-128}
    firm = qgraph.quantize(one_sign, activations=None, symmetric=True, measure=False).plan.layers
    assert {layer.weight.zero_point for layer in firm} == {(0,)}


@pytest.mark.parametrize(("make", "bits", "least"), [(loop, 8, 30), (loop, 4, 14), (scan, 8, 35), (scan, 4, 20)])
def test_products_in_bodies_find_their_grids_at_every_step(make, bits, least):
    """One kernel in the body, whose weight no processor saturates."""
    net, feeds, (name,) = make()
    result = qgraph.quantize(net, activations="dynamic", weights=bits, edge_bits=bits, measure=False)
    assert [(layer.name, layer.runs) for layer in result.plan.layers] == [(name, "dynamic")]
    assert decibels(net, result, feeds) > least
    (found,) = inspect_fused(load(ir.to_proto(result.model))).layers
    assert (found.name, found.kernel, found.integer) == (name, "DynamicQuantizeMatMul", True)


def test_a_product_of_what_a_body_reads_from_outside():
    """Its grid is found once, outside; the product stays in the body."""
    inner = body(
        [N("MatMul", ["x", "w"], ["m"], name="product"), N("Add", ["s", "m"], ["next"]), N("Identity", ["go"], ["on"])],
        ["on", "next", "m"],
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("s", ["n", 48])],
    )
    inner.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    nodes = [N("Loop", ["times", "", "z"], ["last", "all"], name="loop", body=inner)]
    outputs = [info("last", ["n", 48]), info("all", [None, "n", 48])]
    inputs = [info("x", ["n", 48]), info("z", ["n", 48])]
    net = model(nodes, inputs, outputs, {"w": normal(48, 48), "times": np.array(3)})
    result = qgraph.quantize(net, activations="dynamic", measure=False)
    assert [layer.runs for layer in result.plan.layers] == ["dynamic"]
    assert decibels(net, result, {"x": normal(4, 48, scale=1), "z": normal(4, 48)}) > 35


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_of_16_bit_floats_keep_the_type(bits):
    w, v, x = (
        array.astype(np.float16) for array in (normal(32, 16, 3, 3), normal(32, 48), normal(4, 16, 8, 8, scale=1))
    )
    nodes = [
        N("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        N("GlobalAveragePool", ["c"], ["p"]),
        N("Flatten", ["p"], ["f"]),
        N("Gemm", ["f", "v"], ["y"], name="out"),
    ]
    half = TensorProto.FLOAT16
    inputs, outputs = [info("x", ["n", 16, 8, 8], half)], [info("y", ["n", 48], half)]
    net = model(nodes, inputs, outputs, {"w": w, "v": v})
    for data in (None, {"x": x}):
        activations = None if data is None else 8
        result = qgraph.quantize(net, data, activations=activations, weights=bits, edge_bits=bits, measure=False)
        assert {layer.name: layer.runs for layer in result.plan.layers} == {"conv": "floats", "out": "floats"}
        assert result.nbytes < (0.8 if bits == 8 else 0.55) * net.ByteSize()
        assert decibels(net, result, {"x": x}) > 6 * bits - 11


def test_a_transposed_convolution_runs_on_floats_alone(tmp_path):
    """Also where it reads what an integer convolution wrote."""
    nodes = [
        N("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        N("Relu", ["c"], ["r"]),
        N("ConvTranspose", ["r", "v"], ["t"], name="up", strides=[2, 2]),
        N("Relu", ["t"], ["u"]),
        N("Conv", ["u", "z"], ["y"], name="last"),
    ]
    weights = {"w": normal(32, 16, 3, 3), "v": normal(32, 16, 2, 2), "z": normal(16, 16, 1, 1)}
    net = model(nodes, [info("x", ["n", 16, 8, 8])], [info("y", ["n", 16, 16, 16])], weights)
    x = normal(8, 16, 8, 8, scale=1)
    result = qgraph.quantize(net, {"x": x}, weights=8, activations=8, measure=False)
    assert [layer.runs for layer in result.plan.layers] == ["integers", "floats", "integers"]
    path = tmp_path / "optimised.onnx"
    Session(result.model, optimized_path=path)
    graph = onnx.load(path).graph
    (up,) = [node for node in graph.node if node.op_type == "ConvTranspose"]
    assert up.input[1] in {tensor.name for tensor in graph.initializer}, "floats, once the file is loaded"
    assert decibels(net, result, {"x": x}) > 30
