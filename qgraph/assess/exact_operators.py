"""Operators between codes whose results do not depend on the order of float32 operations, proven from their grids.

* An Add between codes: all 65,536 pairs are visited, and none comes close to a rounding threshold (`qmath.add_margin`).
* A mean of codes: steps of few bits make every partial sum exact in float32, bits(P) + 8 + log2(count) <= 24, so that
  only the division rounds. GlobalAveragePool adds integers.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

import qmath
from qgraph.assess.fused import dequantizer
from qgraph.graph.layers import attribute
from qgraph.graph.tensors import fused_output
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model

_Grid = tuple[float, int]
_FLOAT_BITS, _CODE_BITS = 24, 8


def exact_operators(model: Model) -> Counter[str]:
    """How many operators of each type, as onnxruntime calls them, are proven to be exact; shapes must be inferred."""
    found: Counter[str] = Counter()
    for node in model.graph:
        if _is_exact_add(node):
            found["QLinearAdd"] += 1
        elif node.op_type == "AveragePool" and _means_exactly(node, _read(node.inputs[0])):
            found["QLinearAveragePool"] += 1
        elif node.op_type == "GlobalAveragePool" and _adds_whole_numbers(node, _read(node.inputs[0])):
            found["QLinearGlobalAveragePool"] += 1
    return found


def _is_exact_add(node: ir.Node) -> bool:
    if node.op_type == "QLinearAdd":
        return _adds_exactly([_grid(node, 1), _grid(node, 4)], _grid(node, 6))
    return node.op_type == "Add" and _adds_exactly([_read(v) for v in node.inputs], _written(node))


def _adds_exactly(read: list[_Grid | None], written: _Grid | None) -> bool:
    if len(read) != 2 or written is None or read[0] is None or read[1] is None:
        return False
    return qmath.add_margin(read[0], read[1], written).holds


def _means_exactly(node: ir.Node, read: _Grid | None) -> bool:
    if read is None:
        return False
    count = int(np.prod(attribute(node, "kernel_shape", (2**_FLOAT_BITS,))))
    return bool(qmath.significant_bits(read[0]) + _CODE_BITS + np.ceil(np.log2(count)) <= _FLOAT_BITS)


def _adds_whole_numbers(node: ir.Node, read: _Grid | None) -> bool:
    """Whether float32 holds the integer sum that is rescaled: the size of the map must be known."""
    value = node.inputs[0]
    shape = None if value is None or value.shape is None else value.shape[2:]
    if read is None or shape is None or not all(isinstance(d, int) for d in shape):
        return False
    return int(np.prod(np.asarray(shape, np.int64))) * 255 <= 2**_FLOAT_BITS


def _read(value: ir.Value | None) -> _Grid | None:
    """The grid of codes that a value was dequantized from."""
    node = dequantizer(value)
    return None if node is None else _grid(node, 1)


def _written(node: ir.Node) -> _Grid | None:
    """The grid that the result of a node is quantized to."""
    readers = [use.node for use in fused_output(node.outputs[0]).uses()]
    return _grid(readers[0], 1) if len(readers) == 1 and readers[0].op_type == "QuantizeLinear" else None


def _grid(node: ir.Node, place: int) -> _Grid | None:
    """The scale at this place of a node's inputs and the zero point behind it, as of uint8 codes."""
    scale = constant(node.inputs[place]) if len(node.inputs) > place else None
    if scale is None or scale.size != 1:
        return None
    zero = constant(node.inputs[place + 1]) if len(node.inputs) > place + 1 else None
    if zero is None:
        return float(scale.reshape(())), 0
    shift = 128 if zero.dtype == np.int8 else 0
    return (float(scale.reshape(())), int(zero.reshape(-1)[0]) + shift) if zero.dtype.itemsize == 1 else None
