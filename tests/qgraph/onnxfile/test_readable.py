"""What onnx-ir does not read: dimensions that mean nothing, sparse weights, maps; and types of sequences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.cli.inspect import _describe
from qgraph.errors import ModelError
from qgraph.onnxfile.load import load
from qgraph.onnxfile.readable import readable, restore_types
from qgraph.onnxfile.write import save

N = helper.make_node
X = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)


def random(*shape):
    return np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)


def classifier(nodes, outputs, *, domains=(), drop=(), **constants):
    """Gemm -> Relu -> Gemm, whose result h is read by `nodes`."""
    constants = {"w": random(16, 8), "v": random(8, 4)} | constants
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n not in drop]
    layers = [N("Gemm", ["x", "w"], ["g"]), N("Relu", ["g"], ["r"]), N("Gemm", ["r", "v"], ["h"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])
    graph = helper.make_graph([*layers, *nodes], "g", [x], outputs, tensors)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, v) for d, v in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def floats(name, shape=("n", 4)):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.mark.parametrize("dims", [[-1, 3, 0, 0], [0, 3, -1, -1], [-1, 3, "h", -2]])
def test_dimensions_that_mean_nothing_are_open(agreement, model_from_text, dims):
    net = model_from_text(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[n, 3, h, u] x, float[8, 3, 3, 3] w) => (float[n, 8, h, u] y) { c = Conv(x, w)
          y = Relu(c) }""",
        w=random(8, 3, 3, 3),
    )
    for value in (*net.graph.input, *net.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, dims, strict=True):
            dim.Clear()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    net.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    x = np.random.default_rng(1).normal(size=(8, 3, 16, 12)).astype(np.float32)
    given = qgraph.quantize(net, {"x": x})
    shape = [d if isinstance(d, int) else None for d in given.model.graph.inputs[0].shape]
    assert shape == [None, 3, None, None]


def zip_map(labels, key):
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    nodes = [N("Softmax", ["h"], ["p"]), N("ZipMap", ["p"], ["out"], domain="ai.onnx.ml", **labels)]
    return classifier(nodes, [helper.make_value_info("out", kind), floats("h")], domains=[("ai.onnx.ml", 3)])


ZIPS = [
    ({"classlabels_int64s": [0, 1, 2, 3]}, TensorProto.INT64, "seq(map(int64,tensor(float)))"),
    ({"classlabels_strings": ["a", "b", "c", "d"]}, TensorProto.STRING, "seq(map(string,tensor(float)))"),
]


@pytest.mark.parametrize(("labels", "key", "named"), ZIPS)
@pytest.mark.parametrize("options", [{}, {"activations": None}, {"weights": "mixed"}, {"format": "float"}])
def test_maps_as_outputs(agreement, tmp_path, labels, key, named, options):
    net = zip_map(labels, key)
    assert agreement(net, {"x": X}, **options) > (5 if "mixed" in options.values() else 22)
    written = onnx.load(tmp_path / "quantized.onnx")
    assert written.graph.output[0] == net.graph.output[0]
    assert _describe(load(net).graph.outputs[0])["type"] == named


def test_a_map_survives_a_file(tmp_path):
    net = zip_map(*ZIPS[0][:2])
    save(load(net), tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").graph.output[0] == net.graph.output[0]
    assert restore_types(readable(net, "m")).graph.output[0] == net.graph.output[0]


def test_maps_as_inputs_are_refused_by_name():
    net = zip_map(*ZIPS[0][:2])
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    net.graph.input.append(helper.make_value_info("words", kind))
    with pytest.raises(ModelError, match=r"input 'words' is a map\(string,tensor\(float\)\), and samples are tensors"):
        load(net)


def sparse(name="w", shape=(16, 8), by_axis=False, places=(1, 17, 100)):
    values = numpy_helper.from_array(np.array([1.0, 2.0, -3.0], np.float32), name)
    rows = np.array(np.unravel_index(places, shape)).T if by_axis else np.array(places)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(rows, f"{name}_at"), list(shape))


@pytest.mark.parametrize("by_axis", [False, True])
@pytest.mark.parametrize("place", ["initializer", "constant", "body"])
def test_sparse_weights(agreement, by_axis, place):
    tensor = sparse(by_axis=by_axis)
    if place == "initializer":
        net = classifier([], [floats("h")], drop=["w"])
        net.graph.sparse_initializer.append(tensor)
    elif place == "constant":
        net = classifier([], [floats("h")], drop=["w"])
        net.graph.node.insert(0, N("Constant", [], ["w"], sparse_value=tensor))
    else:
        inner = helper.make_graph([N("MatMul", ["x", "s"], ["t"])], "b", [], [floats("t", None)])
        inner.sparse_initializer.append(sparse("s", by_axis=by_axis))
        other = helper.make_graph([N("Identity", ["g"], ["e"])], "b", [], [floats("e", None)])
        yes = numpy_helper.from_array(np.array(True), "yes")
        net = classifier(
            [N("If", ["yes"], ["q"], then_branch=inner, else_branch=other)], [floats("h"), floats("q", ("n", 8))]
        )
        net.graph.initializer.append(yes)
    if place == "body":  # onnxruntime itself does not take these
        bodies = [attribute.g for attribute in readable(net, "m").graph.node[3].attribute]
        assert [t.name for body in bodies for t in body.initializer] == ["s"]
        return
    assert agreement(net, {"x": X}) > 22


@pytest.mark.parametrize("places", [(1, 17, 128), (-1, 2, 3), (1, 2)])
def test_damaged_sparse_weights(places):
    net = classifier([], [floats("h")], drop=["w"])
    net.graph.sparse_initializer.append(sparse(places=places))
    with pytest.raises(ModelError, match="at places that are not inside it"):
        load(net)


SEQUENCES = {
    "split": [N("SplitToSequence", ["h", "two"], ["s"], axis=1), N("SequenceAt", ["s", "one"], ["e"])],
    "construct": [N("SequenceConstruct", ["h", "h"], ["s"]), N("ConcatFromSequence", ["s"], ["e"], axis=1)],
    "insert": [
        N("SequenceEmpty", [], ["s0"]),
        N("SequenceInsert", ["s0", "h"], ["s"]),
        N("SequenceAt", ["s", "zero"], ["e"]),
    ],
    "optional": [N("Optional", ["h"], ["o"]), N("OptionalGetElement", ["o"], ["e"])],
    "optional sequence": [
        N("SequenceConstruct", ["h", "h"], ["s"]),
        N("Optional", ["s"], ["o"]),
        N("OptionalGetElement", ["o"], ["t"]),
        N("SequenceAt", ["t", "one"], ["e"]),
    ],
}


@pytest.mark.parametrize("case", SEQUENCES)
@pytest.mark.parametrize("options", [{}, {"activations": None}, {"weights": "mixed"}])
def test_sequences_and_optionals(agreement, case, options):
    numbers = {"two": np.array(2), "one": np.array(1), "zero": np.array(0)}
    columns = {"split": 2, "construct": 8}.get(case, 4)
    after = [*SEQUENCES[case], N("Abs", ["e"], ["f"]), N("Gemm", ["f", "u"], ["y"])]
    net = classifier(after, [floats("y", ("n", 3))], u=random(columns, 3), **numbers)
    onnx.checker.check_model(net, full_check=True)
    assert agreement(net, {"x": X}, **options) > (5 if "mixed" in options.values() else 22)


def test_a_sequence_as_an_output(agreement):
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    outputs = [helper.make_value_info("s", kind), floats("h")]
    net = classifier([N("SequenceConstruct", ["h", "g"], ["s"])], outputs)
    assert agreement(net, {"x": X}) > 22


def test_a_sequence_as_an_input_of_weights_alone(tmp_path):
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 4]))
    net = classifier(
        [N("SequenceAt", ["s", "zero"], ["e"]), N("Add", ["h", "e"], ["y"])], [floats("y")], zero=np.array(0)
    )
    net.graph.input.append(helper.make_value_info("s", kind))
    qgraph.quantize(net, activations=None).save(tmp_path / "q.onnx")
    assert onnx.load(tmp_path / "q.onnx").graph.input[1] == net.graph.input[1]
