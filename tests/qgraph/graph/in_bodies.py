"""What the tests of layers in bodies share: a network that needs the guard, and how exact a result is."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from qgraph.running.sessions import Session


def decibels(net: onnx.ModelProto, result, given) -> float:
    want, have = (Session(m).run_list(given)[0] for m in (net.SerializeToString(), result.model))
    return float(10 * np.log10(np.square(want).sum() / np.square(want - have).sum()))


def make_one_channel_loud(net: onnx.ModelProto) -> None:
    """One channel of what `w1` reads is a thousand times as large as the others, and then not read any more."""
    for tensor in net.graph.initializer:
        weight = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w0":
            weight[0] *= 2000
        if tensor.name == "w1":
            weight[:, 0] = 0
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
