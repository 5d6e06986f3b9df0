"""The form in which a model is differentiated: functions inlined, weights as initializers, recent opset, shapes.

Unlike `qgraph.onnxfile.normalise` it folds nothing, so that every tensor of the model can be differentiated with
respect to.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes import common as passes

from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import ModelLike
from qgraph.onnxfile.opset import raise_opset
from qgraph.onnxfile.shapes import infer_shapes

MIN_OPSET = 16  # scatter with addition


def prepared(model: ModelLike) -> ir.Model:
    """A copy of `model` that computes the same and that the rules can read."""
    loaded = load(model)
    net = loaded.ir_model.clone()
    if net.functions:
        passes.InlinePass()(net)
    passes.RemoveInitializersFromInputsPass()(net)
    net.ir_version = max(net.ir_version, 4)  # the first in which initializers need not be inputs
    if loaded.opset < MIN_OPSET:
        net = raise_opset(replace(loaded, ir_model=net), MIN_OPSET).ir_model
        net.ir_version = max(net.ir_version, 8)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(net)
    passes.TopologicalSortPass()(net)
    for node in net.graph:
        node.name = node.name or f"{node.op_type}/{node.outputs[0].name}"
    infer_shapes(net)
    return net
