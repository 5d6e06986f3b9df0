"""A file that does not run is not written, and the message says whose fault that is."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import qgraph
from qgraph.errors import ModelError
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session


def test_a_float_model_that_does_not_run():
    kind = TensorProto.BFLOAT16
    weight = helper.make_tensor("w", kind, [64, 64], np.random.default_rng(0).normal(size=64 * 64).tolist())
    x, y = (helper.make_tensor_value_info(name, kind, ["n", 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        Session(load(model).ir_model)
    except ModelError:
        with pytest.raises(ModelError, match=r"<ModelProto> itself does not run.*onnxruntime's CPU provider"):
            qgraph.quantize(model, activations=None)
    else:
        pytest.skip("the installed onnxruntime multiplies bfloat16")


def test_a_quantized_model_that_does_not_run(digits, monkeypatch):
    def fails(quantized):
        raise ModelError("no")

    monkeypatch.setattr("qgraph.assess.verify.without_weights", fails)
    monkeypatch.setattr("qgraph.assess.verify.fits_one_file", lambda model: False)
    with pytest.raises(ModelError, match="the quantized model does not run: no; leave layers in floating point"):
        qgraph.quantize(digits, activations=None, measure=False)
