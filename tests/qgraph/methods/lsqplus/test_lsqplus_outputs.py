"""What is learned from: outputs that the network computes, not weights that it returns."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.errors import DataError
from qgraph.methods.lsqplus.loss import targets_of
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise

RNG = np.random.default_rng(0)


def tied(outputs):
    """Tokens are looked up in a table, and scored with the same table, which is an output as well."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["h"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["best"], axis=2),
    ]
    kinds = {"table": TensorProto.FLOAT, "y": TensorProto.FLOAT, "best": TensorProto.INT64}
    shapes = {"table": [50, 16], "y": ["n", 6, 50], "best": ["n", 6, 1]}
    weights = {"table": RNG.normal(size=(50, 16)), "w": RNG.normal(0, 0.3, size=(16, 16))}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 6])],
        [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in outputs],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # a little training does not help
def test_a_table_that_is_an_output():
    model = tied(["table", "y"])
    net = normalise(load(model))
    assert targets_of(net.ir_model, "tied").watched == ("y",)
    quick = qgraph.LsqPlusConfig(epochs=1, batch=8, shard=4)
    ids = RNG.integers(0, 50, (24, 6))
    trained = qgraph.finetune(model, {"ids": ids}, config=quick, activations=8, weights=8, measure=False)
    assert [value.name for value in trained.model.graph.outputs] == ["table", "y"]


def test_the_types_of_outputs_that_teach_nothing():
    net = normalise(load(tied(["table", "best"])))
    with pytest.raises(DataError, match=r"no output of type float32 to learn from .'table' is FLOAT, 'best' is INT64"):
        targets_of(net.ir_model, "tied")
