"""Layers of which only the weight can be quantized.

They are recurrent layers, tables, layers that compute in 16-bit floats, and those in the bodies of If, Loop and Scan.
The operand of a layer in a body can be observed, so that it may run on integers, with a weight that no method but the
first plan and the last checks change.

Their weights are stored in few bits and converted to floats once, when the file is loaded, so that no step costs more.
A table, of which a Gather takes rows, stays int8 in memory, and its rows become floats when they are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qgraph.graph.layers import (
    LAYER_OPS,
    RECURRENT_OPS,
    RECURRENT_WEIGHTS,
    TABLE_OP,
    Layer,
    attribute,
    weight_index,
    why_not_quantized,
)
from qgraph.onnxfile.edit import constant
from qgraph.running.inner import bodies, branches

_OVERHEAD = 256  # bytes of the operators that make floats of a weight


def weight_only_layers(paths: Mapping[ir.Node, str], main: ir.Graph) -> tuple[list[Layer], dict[str, str]]:
    """These layers, and the reason for each that cannot be quantized; `paths` has the names of all nodes."""
    found, skipped = [], {}
    observed, once = bodies(main), branches(main)
    for node, path in paths.items():
        for layer, why in _candidates(node, path, main):
            why = why or _why_not_worth_it(layer)
            if why:
                skipped[layer.name] = why
            else:
                in_body = node.graph in observed and layer.op in LAYER_OPS and not layer.is_half
                in_steps = node.graph is not main and node.graph not in once
                found.append(replace(layer, in_body=in_body, in_steps=in_steps))
    return found, skipped


def _candidates(node: ir.Node, path: str, main: ir.Graph) -> list[tuple[Layer, str]]:
    """The layers that a node would make, each with the reason why its weight has no grid ('' if it can have one)."""
    if node.domain != "":
        return []
    if node.op_type in LAYER_OPS:
        index, why = weight_index(node)
        layer = Layer(name=path, op=node.op_type, node=node, weight_index=index, weight_only=True)
        inside = node.graph is not main
        return [(layer, why)] if inside or (not why and layer.is_half) else []
    if node.op_type == TABLE_OP and node.graph is main:
        table = Layer(name=path, op=node.op_type, node=node, weight_index=0, weight_only=True)
        return [(table, _why_no_table(table))] if _is_table(node) else []
    if node.op_type in RECURRENT_OPS:
        return [
            (
                Layer(name=f"{path}/{letter}", op=node.op_type, node=node, weight_index=index, weight_only=True),
                why_not_quantized(node.inputs[index] if index < len(node.inputs) else None),
            )
            for index, letter in RECURRENT_WEIGHTS.items()
        ]
    return []


def _is_table(node: ir.Node) -> bool:
    """Whether a Gather looks up rows of a constant matrix of floats."""
    rows = constant(node.inputs[0])
    return rows is not None and rows.ndim == 2 and rows.dtype == np.float32 and not attribute(node, "axis", 0)


def _why_no_table(table: Layer) -> str:
    others = {use.node.op_type for use in table.weight.uses()} - {TABLE_OP, "Gemm"}
    return f"{', '.join(sorted(others))} reads it too" if others else why_not_quantized(table.weight)


def _why_not_worth_it(layer: Layer) -> str:
    weight, held = layer.weight_array(), layer.weight.const_value
    saved = held.nbytes - weight.size - 4 * weight.shape[layer.output_axis] - _OVERHEAD if held is not None else 0
    return "" if saved > 0 else "its weight is so small that scales and operators would take more than it saves"
