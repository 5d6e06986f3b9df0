"""Shapes behind sizes that are computed."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qgraph.onnxfile.shapes import infer_shapes


def reshaped_to_an_input(weight_shape):
    """A convolution and a ReLU behind a Reshape to sizes that nobody knows."""
    weight = np.zeros(weight_shape, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "sizes"], ["moved"]),
            helper.make_node("Conv", ["moved", "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Shape", ["r"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, [None]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [None])],
        [numpy_helper.from_array(weight, "w")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


@pytest.mark.parametrize("weight_shape", [(5, 3, 1, 1), (600, 3, 1)], ids=["small", "carried as an input"])
def test_what_follows_a_convolution_has_its_axes_and_channels(weight_shape):
    model = reshaped_to_an_input(weight_shape)
    infer_shapes(model)
    values = ir.convenience.create_value_mapping(model.graph)
    assert values["moved"].shape is None
    for name in ("c", "r"):
        shape = values[name].shape
        assert len(shape) == len(weight_shape)
        assert shape[1] == weight_shape[0]
