"""Tables that an output projection reads: in any form, they are one constant, in the file too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.graph.layers import attribute
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.sessions import Session

N = helper.make_node
WORDS, WIDTH = 500, 64
FORMS = ("Transpose", "stored transposed", "transB", "a copy with transB", "two tables")


def tied(form: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    table = rng.normal(0, 0.5, (WORDS, WIDTH)).astype(np.float32)
    held = {"w": table, "m": rng.normal(0, 0.15, (WIDTH, WIDTH)).astype(np.float32)}
    nodes = [N("Gather", ["w", "t"], ["e"], name="words"), N("MatMul", ["e", "m"], ["p"]), N("Tanh", ["p"], ["h"])]
    outputs = ["n", "l", WORDS]
    if "transB" in form:
        held |= {"shape": np.array([-1, WIDTH])} | ({"w2": table.copy()} if "copy" in form else {})
        nodes += [N("Reshape", ["h", "shape"], ["flat"])]
        nodes += [N("Gemm", ["flat", "w2" if "copy" in form else "w"], ["y"], transB=1, name="out")]
        outputs = ["rows", WORDS]
    elif form == "two tables":
        held |= {"w2": table.copy()}
        nodes += [N("Gather", ["w2", "t"], ["e2"], name="again"), N("Add", ["e2", "h"], ["y"])]
        outputs = ["n", "l", WIDTH]
    elif form == "Transpose":
        nodes += [N("Transpose", ["w"], ["wt"], perm=[1, 0]), N("MatMul", ["h", "wt"], ["y"], name="out")]
    else:
        held |= {"wt": np.ascontiguousarray(table.T)}
        nodes += [N("MatMul", ["h", "wt"], ["y"], name="out")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("t", TensorProto.INT64, ["n", "l"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SAMPLES = {"t": np.random.default_rng(1).integers(0, WORDS, (16, 7))}


@pytest.mark.parametrize("form", FORMS)
def test_what_reads_a_copy_of_a_table_reads_the_table(form: str) -> None:
    model = tied(form)
    net = normalise(load(model))
    large = [v for v in net.graph.initializers.values() if v.const_value.size >= WORDS * WIDTH]
    assert [v.name for v in large] == ["w"]
    before, after = (Session(m).run_list(SAMPLES)[0] for m in (model.SerializeToString(), net.ir_model))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    if form != "two tables":
        (out,) = [node for node in net.graph if node.name == "out"]
        assert (out.op_type, attribute(out, "transB", 0), out.inputs[1].name) == ("Gemm", 1, "w")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("bits", "least"), [(8, 30.0), (4, 15.0)])
@pytest.mark.parametrize("activations", [None, "dynamic", 8])
def test_a_tied_table_is_stored_once_in_the_bits_that_are_asked_for(
    form: str, bits: int, least: float, activations: object
) -> None:
    model, data = tied(form), None if activations is None else SAMPLES
    result = qgraph.quantize(model, data, weights=bits, activations=activations, measure=False)
    one = WORDS * WIDTH * bits // 8
    large = [v.const_value for v in result.model.graph.initializers.values() if v.const_value.nbytes >= one]
    assert [(held.nbytes, held.dtype.name) for held in large] == [(one, "INT8" if bits == 8 else "UINT8")]
    assert {quant.weight.bits for quant in result.plan.layers if quant.name in ("words", "out", "again")} == {bits}
    want, have = (Session(m).run_list(SAMPLES)[0] for m in (model.SerializeToString(), result.model))
    assert 10 * np.log10(np.square(want).sum() / np.square(want - have).sum()) > least


def test_bits_for_the_last_layer_hold_where_they_are_asked_for() -> None:
    plan = qgraph.quantize(tied("Transpose"), weights=4, edge_bits=8, activations=None, measure=False).plan
    assert {quant.name: quant.weight.bits for quant in plan.layers}["out"] == 8


def test_a_matrix_that_differs_from_the_table_is_left() -> None:
    model = tied("stored transposed")
    other = next(tensor for tensor in model.graph.initializer if tensor.name == "wt")
    changed = numpy_helper.to_array(other).copy()
    changed[0, 0] += 1
    other.CopyFrom(numpy_helper.from_array(changed, "wt"))
    net = normalise(load(model))
    assert "wt" in net.graph.initializers
    assert next(node for node in net.graph if node.name == "out").op_type == "MatMul"
