"""Opsets and IR versions: as new as the installed onnxruntime loads, written as old as the graph allows."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.errors import ModelError, UsageError
from qgraph.onnxfile.load import load
from qgraph.onnxfile.opset import prepare
from qgraph.running import sessions as runtime
from qgraph.running.versions import needed_ir_version

RNG = np.random.default_rng(0)


def product(**versions):
    weight = numpy_helper.from_array(RNG.normal(size=(16, 8)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [weight],
    )
    return helper.make_model(graph, **versions)


def of_opset(opset, ir_version):
    return product(opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def test_what_onnx_writes_by_default(tmp_path):
    model = product()
    if model.opset_import[0].version > runtime.latest_opset():
        pytest.skip("the installed onnxruntime is older than the installed onnx")
    result = qgraph.quantize(model, RNG.normal(size=(32, 16)).astype(np.float32))
    result.save(tmp_path / "out.onnx")
    wanted = min(model.opset_import[0].version, runtime.latest_quantized_opset())
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == wanted
    assert runtime.Session(tmp_path / "out.onnx").output_names == ["y"]


def test_the_limit_is_the_one_of_onnxruntime():
    latest = runtime.latest_opset()
    options = runtime.ort.SessionOptions()
    options.log_severity_level = 4
    for opset, loads in ((latest, True), (latest + 1, False)):
        given = of_opset(opset, 8).SerializeToString()
        try:
            runtime.ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception:
            assert not loads
        else:
            assert loads


def test_an_opset_beyond_it_is_refused(tmp_path):
    model = of_opset(runtime.latest_opset() + 1, 8)
    onnx.save(model, tmp_path / "m.onnx")
    for given in (model, tmp_path / "m.onnx"):
        with pytest.raises(ModelError, match="; supported are") as error:
            load(given)
        assert f"7 to {runtime.latest_opset()}, the newest that onnxruntime {runtime.version} loads" in str(error.value)
    with pytest.raises(UsageError, match="can be raised up to"):
        prepare(of_opset(17, 8), opset=runtime.latest_opset() + 1)


def test_a_refusal_without_a_number_leaves_what_is_known(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(runtime.ort, "InferenceSession", refuse)
    assert runtime.latest_opset.__wrapped__() == runtime.KNOWN_OPSET


@pytest.mark.parametrize(
    ("opset", "given", "weights", "wanted"), [(17, 14, 8, 8), (17, 8, 8, 8), (13, 4, 8, 4), (21, 14, 4, 10)]
)
def test_written_ir_version(tmp_path, opset, given, weights, wanted):
    result = qgraph.quantize(of_opset(opset, given), method="minmax", activations=None, weights=weights)
    result.save(tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").ir_version == wanted


@pytest.mark.parametrize(("kind", "wanted"), [("INT8", 8), ("INT4", 10), ("INT2", 13)])
def test_types_raise_the_ir_version(kind, wanted):
    net = ir.from_proto(of_opset(17, 8))
    net.graph.append(ir.node("Cast", [net.graph.outputs[0]], {"to": ir.DataType[kind]}))
    assert needed_ir_version(net) == wanted


def test_onnxruntime_loads_the_ir_version_of_every_opset_that_it_takes():
    newest = max(int(release[1]) for release in helper.VERSION_TABLE)
    for opset in range(13, runtime.latest_opset() + 1):
        net = ir.from_proto(of_opset(opset, newest))
        assert runtime.Session(net).output_names == ["y"]
        assert needed_ir_version(net) == helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
