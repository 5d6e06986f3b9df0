"""Weights as packed blocks of codes, in operators that onnxruntime fuses with the product into MatMulNBits:

    w = DequantizeLinear(codes, multiples x unit, zero points)        y = x w

Codes and zero points are UINT4 or UINT8, with blocks along the inputs. The steps are computed from whole multiples of a
unit per channel when the file is loaded, so that it holds a byte for each.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import PlanError
from qgraph.graph.layers import Layer, attribute
from qgraph.lowering.nodes import Nodes
from qgraph.onnxfile.lazy_array import Later
from qgraph.plan.blocks import BLOCK_OPSET, why_no_blocks, why_not_on_grid
from qgraph.plan.codes import kernel_scale
from qgraph.plan.plan import WeightQuant
from qgraph.running.wording import option


def blocks(nodes: Nodes, layer: Layer, grid: WeightQuant, codes: Later) -> ir.Value:
    """The weight of a MatMul or Gemm, inputs x outputs, behind a DequantizeLinear of blocks.

    A Gemm that reads its weight transposed reads it as it is from now on. Raises `PlanError` where the kernel cannot.
    """
    if why := why_no_blocks(layer) or why_not_on_grid(grid):
        raise PlanError(f"layer '{layer.name}' cannot run in blocks: {why}; let it run in floats")
    if nodes.graph.opset_imports.get("", 1) < BLOCK_OPSET:
        raise PlanError(
            f"layer '{layer.name}' runs in blocks, which need opset {BLOCK_OPSET}: raise it with {option('opset')}"
        )
    turned = layer.output_axis == 0
    kind = (ir.DataType.UINT4 if grid.bits == 4 else ir.DataType.UINT8).numpy().type
    stem, lowest = str(layer.weight.name), -(2 ** (grid.bits - 1))

    def laid(array: NDArray[np.integer] | NDArray[np.float32]) -> NDArray[np.generic]:
        return np.ascontiguousarray(array.T if turned else array)

    def stored(array: NDArray[np.integer]) -> NDArray[np.generic]:
        return laid((array.astype(np.int16) - lowest).astype(np.uint8)).astype(kind)

    shape = codes.shape[::-1] if turned else codes.shape
    zero = np.broadcast_to(
        np.reshape(grid.zero_point, grid.multiples.shape if any(grid.zero_point) else (1, 1)), grid.multiples.shape
    )
    multiples = nodes.constant(f"{stem}.m", laid(grid.multiples.astype(np.uint8)))
    unit = nodes.constant(f"{stem}.s", kernel_scale(grid)[None])
    step = nodes.op("Mul", nodes.op("Cast", multiples, to=ir.DataType.FLOAT), unit)
    parts = nodes.constant(f"{stem}.q", codes.map(stored, shape, kind)), step, nodes.constant(f"{stem}.z", stored(zero))
    if layer.op == "Gemm" and attribute(layer.node, "transB", 0):
        layer.node.attributes["transB"] = ir.AttrInt64("transB", 0)
    return nodes.op("DequantizeLinear", *parts, axis=0, block_size=grid.granularity.group)
