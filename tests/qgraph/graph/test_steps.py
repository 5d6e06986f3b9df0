"""Layers in the bodies of Loop and Scan: observed at every step, and convolutions there on integers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.assess.compare import _error
from qgraph.assess.fused import inspect_fused
from qgraph.errors import QGraphError, UsageError
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.observe import statistics
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data
from tests.qgraph.graph.in_bodies import decibels, make_one_channel_loud

N = helper.make_node
RNG = np.random.default_rng(0)
STEPS, CHANNELS = 5, 16


def info(name, shape=None, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def held() -> dict[str, np.ndarray]:
    shapes = {"w0": (16, 16, 3, 3), "w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "p": (8, 64), "q": (64, 8)}
    rng = np.random.default_rng(1)
    return {
        name: rng.normal(0, 0.2 if name in "pq" else 0.1, shape).astype(np.float32) for name, shape in shapes.items()
    }


def convolutions(source: str = "s") -> list[onnx.NodeProto]:
    """A residual block: the first convolution reads the state of the loop."""
    return [
        N("Conv", [source, "w0"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        N("Relu", ["a"], ["b"]),
        N("Conv", ["b", "w1"], ["k"], name="c2", pads=[1, 1, 1, 1]),
        N("Add", [source, "k"], ["d"]),
        N("Tanh", ["d"], ["next"]),
    ]


def states(also: tuple[str, ...]) -> list[onnx.NodeProto]:
    """What the first convolution reads, as a result of a body."""
    return [N("Identity", ["s"], ["read"])] if "read" in also else []


def loop(nodes=None, *, out: str = "y", start: str = "x", also: tuple[str, ...] = ()) -> onnx.NodeProto:
    """A Loop of `n` steps that carries `s`, and stacks the tensors `also`."""
    inputs = [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("s")]
    outputs = [info("on", [], TensorProto.BOOL), info("next"), *map(info, also)]
    nodes = [*(nodes or convolutions()), *states(also), N("Identity", ["go"], ["on"])]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    return N("Loop", ["n", "", start], [out, *(f"{name}s" for name in also)], name="loop", body=body)


def scan(also: tuple[str, ...] = ()) -> list[onnx.NodeProto]:
    """A Scan that adds one of `STEPS` frames to its state at every step."""
    nodes = [N("Add", ["q", "e"], ["s"]), *convolutions(), *states(also)]
    inputs, outputs = [info("q"), info("e")], [info("next"), *map(info, also)]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    names = [f"{name}s" for name in also]
    return [
        N("Expand", ["x", "five"], ["frames"]),
        N("Scan", ["x", "frames"], ["y", *names], name="scan", body=body, num_scan_inputs=1),
    ]


def model(nodes: list[onnx.NodeProto], outputs=("y",), inputs=(), opset: int = 17) -> onnx.ModelProto:
    tensors = {**held(), "five": np.array([STEPS, 1, 1, 1, 1])}
    fed = [info("x", ["b", CHANNELS, 8, 8]), *inputs]
    kinds = [info(name, None if name != "y" else ["b", CHANNELS, 8, 8]) for name in outputs]
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", fed, kinds, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


COUNT = info("n", [], TensorProto.INT64)
FLAG = info("c", [], TensorProto.BOOL)


def network(kind: str, also: tuple[str, ...] = ()) -> onnx.ModelProto:
    outputs = ("y", *(f"{name}s" for name in also))
    if kind == "Scan":
        return model(scan(also), outputs)
    return model([loop(also=also)], outputs, [COUNT])


def feeds(kind: str = "Loop", *, count: int = 8, steps: int = STEPS, **more) -> dict[str, np.ndarray]:
    x = RNG.normal(size=(count, CHANNELS, 8, 8)).astype(np.float32)
    return {"x": x, **({} if kind == "Scan" else {"n": np.array(steps)}), **more}


def quantized(net: onnx.ModelProto, data, **options):
    return qgraph.quantize(net, data, **{"activations": 8, "measure": False, "method": "minmax"} | options)


def runs(result) -> dict[str, str]:
    return {layer.name.rsplit("/")[-1]: layer.runs for layer in result.plan.layers}


def kernels(result) -> dict[str, str]:
    return {layer.name.rsplit("/")[-1]: layer.kernel for layer in inspect_fused(load(result.model)).layers}


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_operands_are_observed_at_every_step(kind):
    """Against the same tensors as the loop itself stacks them, in several batches."""
    given = feeds(kind)
    stacked = Session(network(kind, also=("read", "b")).SerializeToString()).run_list(given)[1:]
    plain = normalise(load(network(kind)))
    layers = {layer.name.rsplit("/")[-1]: layer for layer in GraphView(plain).observed}
    found = observe(plain, open_data(given, plain), threads=1)
    for name, steps in zip(("c1", "c2"), stacked, strict=True):
        seen = found.operand(layers[name])
        assert seen.count == steps.size
        assert (seen.min, seen.max) == pytest.approx((steps.min(), steps.max()), rel=1e-5)
        by_channel = np.moveaxis(steps, 2, 0).reshape(CHANNELS, -1)
        np.testing.assert_allclose(seen.channels.mean, by_channel.mean(axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
@pytest.mark.parametrize(("bits", "least"), [(8, 27), (4, 10)])
def test_convolutions_run_on_integers(kind, bits, least):
    net = network(kind)
    result = quantized(net, feeds(kind, count=16), weights=bits)
    assert runs(result) == {"c1": "integers", "c2": "integers"}
    assert kernels(result) == {"c1": "QLinearConv", "c2": "QLinearConv"}
    assert decibels(net, result, feeds(kind)) > least


def test_only_what_a_convolution_reads_of_the_state_is_rounded():
    """Codes do not pass from step to step: what is added to the state keeps its floats."""
    net = network("Loop")
    result = quantized(net, feeds())
    view = GraphView(normalise(load(net)))
    graph = view.by_name["loop/body/c1"].node.graph
    grids = {view.values[grid.tensor] for grid in result.plan.activations}
    assert {value.graph for value in grids} == {graph}
    assert not grids & {*graph.inputs, *graph.outputs}


def test_two_layers_share_the_grid_of_a_state():
    nodes = [*convolutions()[:-2], N("Conv", ["s", "w2"], ["g"], name="c3", pads=[1, 1, 1, 1])]
    net = model([loop([*nodes, N("Add", ["k", "g"], ["d"]), N("Tanh", ["d"], ["next"])])], inputs=[COUNT])
    result = quantized(net, feeds(count=16))
    assert runs(result) == dict.fromkeys(["c1", "c2", "c3"], "integers")
    read = [layer.input for layer in GraphView(normalise(load(net))).observed]
    assert len(set(read)) == 2
    assert set(kernels(result).values()) == {"QLinearConv"}
    assert decibels(net, result, feeds()) > 20


def test_what_is_read_from_outside_is_quantized_inside():
    """The same tensor at every step."""
    nodes = [*convolutions("x")[:-2], N("Add", ["s", "k"], ["d"]), N("Tanh", ["d"], ["next"])]
    net = model([loop(nodes)], inputs=[COUNT])
    result = quantized(net, feeds(count=16))
    assert set(kernels(result).values()) == {"QLinearConv"}
    assert decibels(net, result, feeds()) > 27


@pytest.mark.parametrize("outside", [False, True])
def test_where_no_step_runs_weights_alone_are_quantized(outside):
    """Also where a layer reads a tensor that has values outside."""
    moved = [N("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), *convolutions("t")[:-2], N("Add", ["s", "k"], ["next"])]
    net = model([loop(moved if outside else None)], inputs=[COUNT])
    given = feeds(steps=0)
    result = quantized(net, given)
    assert runs(result) == {"c1": "floats", "c2": "floats"}
    assert all("no step of its body runs" in kept.why for kept in result.plan.kept_float)
    assert len(result.plan.kept_float) == 2
    assert result.plan.activations == ()
    np.testing.assert_array_equal(Session(result.model).run_list(given)[0], given["x"])
    assert decibels(net, result, feeds()) > 30


def test_a_loop_of_more_steps_than_were_observed():
    """What steps compute stays within a range, so that grids hold."""
    net = network("Loop")
    result = quantized(net, feeds(count=16, steps=4))
    assert decibels(net, result, feeds(steps=9)) > 20


def test_tensors_that_grow_from_step_to_step():
    nodes = [*convolutions()[:-1], N("Concat", ["d", "x"], ["m"], axis=3), N("Tanh", ["m"], ["next"])]
    net = model([loop(nodes)], inputs=[COUNT])
    net.graph.output[0].type.tensor_type.shape.dim[3].dim_param = "growing"
    plain = normalise(load(net))
    given = feeds()
    (layer,) = [layer for layer in GraphView(plain).observed if layer.name.endswith("c2")]
    assert observe(plain, open_data(given, plain)).operand(layer).count == given["x"].size * sum(range(1, STEPS + 1))
    result = quantized(net, given)
    assert kernels(result) == {"c1": "QLinearConv", "c2": "QLinearConv"}
    assert decibels(net, result, feeds()) > 27


def test_a_loop_that_ends_early():
    """By its condition: the steps that did not run are not there."""
    proto = loop()
    body = next(a.g for a in proto.attribute if a.name == "body")
    body.node[-1].CopyFrom(N("Less", ["i", "two"], ["on"]))
    net = model([N("Constant", [], ["two"], value_int=2), proto], inputs=[COUNT])
    plain = normalise(load(net))
    given = feeds(steps=100)
    (layer,) = [layer for layer in GraphView(plain).observed if layer.name.endswith("c2")]
    assert observe(plain, open_data(given, plain)).operand(layer).count == 3 * given["x"].size
    assert decibels(net, quantized(net, given), feeds(steps=100)) > 27


def renamed(nodes: list[onnx.NodeProto], **names: str) -> list[onnx.NodeProto]:
    """The nodes with other names for some tensors."""
    for node in nodes:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    return nodes


def nested(kind: str) -> onnx.ModelProto:
    """A loop in a loop, a branch in a loop, and a loop in a branch; elsewhere it negates."""
    two = N("Constant", [], ["two"], value_int=2)
    if kind == "loop in a loop":
        body = helper.make_graph(
            [*renamed(convolutions(), s="s2", next="next2"), N("Identity", ["go2"], ["on2"])],
            "inner",
            [info("i2", [], TensorProto.INT64), info("go2", [], TensorProto.BOOL), info("s2")],
            [info("on2", [], TensorProto.BOOL), info("next2")],
        )
        return model([loop([N("Loop", ["n", "", "s"], ["next"], name="inner", body=body)])], inputs=[COUNT])
    if kind == "branch in a loop":
        odd = [N("Mod", ["i", "two"], ["rest"]), N("Cast", ["rest"], ["odd"], to=TensorProto.BOOL)]
        then = helper.make_graph(renamed(convolutions(), next="taken"), "t", [], [info("taken")])
        other = helper.make_graph([N("Neg", ["s"], ["z"])], "e", [], [info("z")])
        choice = N("If", ["odd"], ["next"], name="If", then_branch=then, else_branch=other)
        return model([two, loop([*odd, choice])], inputs=[COUNT])
    then = helper.make_graph([loop(out="r")], "t", [], [info("r")])
    other = helper.make_graph([N("Neg", ["x"], ["z"])], "e", [], [info("z")])
    return model([N("If", ["c"], ["y"], name="If", then_branch=then, else_branch=other)], inputs=[COUNT, FLAG])


@pytest.mark.filterwarnings("ignore:the else branch of If")
@pytest.mark.parametrize("kind", ["loop in a loop", "branch in a loop", "loop in a branch"])
def test_bodies_in_bodies(kind):
    net, more = nested(kind), {"steps": 3} | ({"c": np.array(True)} if kind == "loop in a branch" else {})
    plain = normalise(load(net))
    given = feeds(**more)
    (layer,) = [layer for layer in GraphView(plain).observed if layer.name.endswith("c2")]
    times = {"loop in a loop": 9, "branch in a loop": 1, "loop in a branch": 3}[kind]
    assert observe(plain, open_data(given, plain)).operand(layer).count == times * given["x"].size
    result = quantized(net, given)
    assert kernels(result) == {"c1": "QLinearConv", "c2": "QLinearConv"}
    assert decibels(net, result, feeds(**more)) > 22


def test_the_size_of_batches_does_not_matter(monkeypatch):
    """What a single sample takes in all steps decides how many run at a time."""
    plain = normalise(load(network("Loop")))
    data = open_data(feeds(count=12), plain)
    sizes = []

    def measured(limit, sample_bytes):
        sizes.append(sample_bytes)
        return 5

    monkeypatch.setattr(statistics, "batch_within", measured)
    many = observe(plain, data, threads=2)
    monkeypatch.setattr(statistics, "batch_within", lambda *_: 1)
    assert observe(plain, data, threads=1).tensors == many.tensors
    one = CHANNELS * 8 * 8 * 4
    assert sizes == [one * (STEPS * len(many.tensors) + 1) + 8], "with what is fed"


@pytest.mark.parametrize("axis", [None, 0, 1, -1, -4])
def test_steps_are_taken_in_together_along_no_channel_axis(axis):
    """The statistics of the tensors of all steps, whichever axis is that of channels."""
    plain = normalise(load(network("Loop")))
    given = feeds(count=1)
    (layer,) = [layer for layer in GraphView(plain).observed if layer.name.endswith("c2")]
    name = str(layer.input.name)
    found = observe(plain, open_data(given, plain), tensors={name: axis}, threads=1)[name]
    steps = np.stack(Session(plain.ir_model, outputs=[name]).run(given)[name])
    assert found.count == steps.size
    if axis is not None:
        channels = np.moveaxis(steps, axis % 4 + 1, 0)
        np.testing.assert_allclose(found.channels.mean, channels.reshape(len(channels), -1).mean(axis=1), rtol=1e-4)


def test_a_cluster_observes_the_same(cluster):
    plain = normalise(load(network("Loop")))
    data = open_data(feeds(count=12), plain)
    here, there = (observe(plain, data, threads=2, executor=where) for where in ("local", cluster))
    assert here.tensors == there.tensors


def test_products_stay_in_floats():
    """Observed as well, but on static grids they would be slower."""
    products = [N("MatMul", ["s", "p"], ["h"], name="p1"), N("MatMul", ["h", "q"], ["m"], name="p2")]
    nodes = [*products, *convolutions("m")]
    net = model([loop(nodes)], inputs=[COUNT])
    assert observe(plain := normalise(load(net)), open_data(feeds(), plain))["s"].count == STEPS * 8 * CHANNELS * 64
    result = quantized(net, feeds(count=16))
    assert runs(result) == {"p1": "floats", "p2": "floats", "c1": "integers", "c2": "integers"}
    dynamic = quantized(net, feeds(count=16), activations="dynamic")
    assert runs(dynamic) == {"p1": "dynamic", "p2": "dynamic", "c1": "floats", "c2": "floats"}
    assert decibels(net, result, feeds()) > 18, "the state becomes small, on a grid for all steps"


def test_the_guard_gives_up_grids_of_a_loop():
    net = network("Loop")
    make_one_channel_loud(net)
    assert decibels(net, quantized(net, feeds(count=16)), feeds()) < 15
    assert decibels(net, quantized(net, feeds(count=16), guard=20, measure=True), feeds()) > 20


def test_loops_before_opset_13_are_raised_before_they_are_observed():
    net = network("Loop")
    net.opset_import[0].version = 12
    assert GraphView(normalise(load(net))).observed == ()
    assert runs(quantized(net, feeds())) == {"c1": "integers", "c2": "integers"}


def test_without_samples_weights_alone_are_quantized():
    result = qgraph.quantize(network("Loop"), activations=None, measure=False)
    assert runs(result) == {"c1": "floats", "c2": "floats"}


@pytest.mark.filterwarnings("ignore:the (then|else) branch of If", "ignore:output 'y' is at")
@pytest.mark.parametrize("kind", ["Loop", "Scan", "loop in a branch"])
def test_tensors_of_bodies_have_sensitivities(kind):
    """Each in as many bits as its errors at the outputs ask for, with the values of all steps."""
    net = network(kind) if kind in ("Loop", "Scan") else nested(kind)
    given = feeds(kind, count=16, **({"c": np.array(True)} if "branch" in kind else {}))
    options = {"activations": "mixed", "average_activation_bits": 6}
    result = qgraph.quantize(net, given, measure=False, method="minmax", **options)
    assert runs(result) == {"c1": "integers", "c2": "integers"}
    rows = result.allocation.sensitivity.tensors
    assert {row.values for row in rows} == {STEPS * CHANNELS * 64}
    for row in rows:
        assert row.measured[0] > row.measured[-1] > 0


@pytest.mark.filterwarnings("ignore:output 'y' is at")
def test_mixed_weights_run_on_integers_as_well():
    net = network("Loop")
    result = quantized(net, feeds(count=16), weights="mixed", average_bits=6)
    assert runs(result) == {"c1": "integers", "c2": "integers"}
    assert {name: kernel for name, kernel in kernels(result).items() if name in ("c1", "c2")} == {
        "c1": "QLinearConv",
        "c2": "QLinearConv",
    }
    assert decibels(net, result, feeds()) > 18


def test_a_convolution_that_is_to_run_in_floats_does():
    """Beside others that read the same grid: onnxruntime would otherwise quantize its weight itself."""
    nodes = [*convolutions()[:-2], N("Conv", ["s", "w2"], ["g"], name="c3", pads=[1, 1, 1, 1])]
    net = model([loop([*nodes, N("Add", ["k", "g"], ["d"]), N("Tanh", ["d"], ["next"])])], inputs=[COUNT])
    plan = quantized(net, feeds(count=16)).plan
    plan = plan.map_layers(lambda q: dataclasses.replace(q, runs="floats") if q.name.endswith("c3") else q)
    written = lower(normalise(load(net)), plan, format="qdq")
    found = {layer.name: layer.kernel for layer in inspect_fused(load(written)).layers}
    assert "QLinearConv" not in found["loop/body/c3"]
    assert found["loop/body/c1"] == found["loop/body/c2"] == "QLinearConv"


def test_results_of_all_steps_are_compared():
    net, given = network("Loop", ("b",)), feeds()
    net.graph.output[1].CopyFrom(info("bs", ["steps", "b", CHANNELS, 8, 8]))
    result = quantized(net, given)
    names = Session(result.model).output_names
    want, have = (
        Session(m).run_list(given)[names.index("bs")].astype(float) for m in (net.SerializeToString(), result.model)
    )
    rows = {row.layer: row.sqnr_db[0] for row in qgraph.compare(net, [result], given)}
    assert list(rows) == [layer.name for layer in result.plan.layers]
    stacked = 10 * np.log10(np.square(want).sum() / np.square(want - have).sum())
    assert next(db for name, db in rows.items() if name.endswith("c1")) == pytest.approx(stacked, abs=0.3)


def test_steps_in_16_bit_floats_are_compared():
    net, given = network("Loop"), feeds()
    tensors = [net.graph.input[0], net.graph.output[0], *net.graph.node[0].attribute[0].g.input[2:]]
    for value in (*tensors, *net.graph.node[0].attribute[0].g.output[1:]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for index, array in enumerate(map(numpy_helper.to_array, list(net.graph.initializer))):
        if array.dtype == np.float32:
            fresh = numpy_helper.from_array(array.astype(np.float16), net.graph.initializer[index].name)
            net.graph.initializer[index].CopyFrom(fresh)
    given["x"] = given["x"].astype(np.float16)
    rows = qgraph.compare(net, [quantized(net, given)], given)
    assert [row.layer.rsplit("/")[-1] for row in rows] == ["c1", "c2"]
    assert all(row.sqnr_db[0] > 35 for row in rows)


def test_steps_that_the_other_model_lacks_count_as_wrong():
    assert _error([np.ones(2), np.ones(3)], [np.ones(2)]) == 3
    assert _error([np.ones(2)], [np.ones(2), np.ones(2)]) == 0
    assert _error([np.ones(2)], [np.zeros(0)]) == 2


def test_no_time_is_foretold_for_what_is_in_loops():
    with pytest.raises(QGraphError, match=r"nothing is foretold to become faster in bodies of Loop and Scan; allow"):
        quantized(network("Loop"), feeds(), target_latency=0.1)


def test_networks_without_a_layer_are_not_compared():
    net = model([N("Tanh", ["x"], ["y"])])
    with pytest.raises(UsageError, match="no Conv, Gemm or MatMul with a constant weight whose results to compare"):
        qgraph.compare(net, [net], feeds("Scan"))
