"""What a layer is: a Conv, ConvTranspose, Gemm or MatMul with a constant weight.

Its *operand* is the tensor that is multiplied by the weight. An LSTM, GRU or RNN counts as two layers, one for each of
its weights: W, which multiplies its input, and R, which multiplies its own result of the step before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import ModelError
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.folding import output_axis

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER_OPS = ("Conv", "Gemm", "MatMul")  # onnxruntime has integer kernels for these on the CPU
RECURRENT_OPS = ("LSTM", "GRU", "RNN")
TABLE_OP = "Gather"  # of rows of a constant matrix
RECURRENT_WEIGHTS = {1: "W", 2: "R"}  # by their place among the inputs
HALF: frozenset[ir.DataType | None] = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layer:
    """One quantizable layer: its node, its weight and the axes of its channels.

    Only the weight of a `weight_only` layer can be quantized: it is recurrent, a table, or in a body of control flow.
    Methods treat a layer `in_body` in the same way, but its operand can be observed, and it can run on integers. One
    `in_steps` is in the body of a Loop or Scan, where a product on a static grid is slower than one in floats.
    """

    name: str
    op: str
    node: ir.Node
    weight_index: int = 1
    weight_only: bool = False
    in_body: bool = False
    in_steps: bool = False

    @property
    def weight(self) -> ir.Value:
        return present(self.node.inputs[self.weight_index])

    @property
    def owns_weight(self) -> bool:
        """Whether no other node reads its weight; one with several readers is stored once, on one grid."""
        return len(list(self.weight.uses())) == 1

    @property
    def is_observed(self) -> bool:
        """Whether its operand can be observed: in the main graph, and in the bodies of If, Loop and Scan."""
        return self.in_body or not self.weight_only

    @property
    def is_tied(self) -> bool:
        """Whether its weight is a table as well, and keeps a table's bits."""
        return any(use.node.op_type == TABLE_OP and use.idx == 0 for use in self.weight.uses())

    @property
    def shares_with_its_kind(self) -> bool:
        """Whether all nodes that read its weight are of its operator, and read it in its place."""
        return all((use.node.op_type, use.idx) == (self.op, self.weight_index) for use in self.weight.uses())

    @property
    def input(self) -> ir.Value:
        return present(self.node.inputs[0 if self.weight_index else 1])

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def bias(self) -> ir.Value | None:
        """The bias of a Conv, ConvTranspose or Gemm; None if there is none."""
        has_one = len(self.node.inputs) > 2 and self.op not in (*RECURRENT_OPS, TABLE_OP)
        return self.node.inputs[2] if has_one else None

    @property
    def bias_factor(self) -> float:
        """The factor of the bias: beta of Gemm, otherwise 1."""
        return float(attribute(self.node, "beta", 1.0)) if self.op == "Gemm" else 1.0

    def weight_array(self) -> NDArray[np.float32]:
        array = constant(self.weight)
        if array is None:
            raise ValueError(f"the weight of '{self.name}' is not a constant")
        return array.astype(np.float32, copy=False)

    @property
    def output_axis(self) -> int:
        """The axis of the weight for output channels (per group for ConvTranspose), non-negative."""
        rank = len(present(self.weight.shape))
        if self.op == "MatMul" and self.weight_index == 0:
            return rank - 2
        if self.op == TABLE_OP:
            return 0  # every row is looked up by itself
        return 1 if self.op in RECURRENT_OPS else output_axis(self.node) % rank  # W, R: directions x rows x columns

    @property
    def scale_axis(self) -> int | None:
        """The axis along which the weight may have a scale per channel; None if integer kernels need a single scale."""
        one = self.op == "MatMul" and (self.weight_index == 0 or len(present(self.weight.shape)) > 2)
        return None if one and not (self.weight_only and not self.has_integer_kernel) else self.output_axis

    @property
    def input_axis(self) -> int:
        """The axis of the operand that is summed over; may be negative."""
        if self.op in ("Conv", "ConvTranspose"):
            return 1
        if self.op == "Gemm":
            return 0 if attribute(self.node, "transA", 0) else 1
        return -2 if self.weight_index == 0 else -1

    @property
    def operand_channels(self) -> tuple[str, int]:
        """The operand's name and the axis that is summed over, non-negative if the rank is known.

        Layers may read one tensor along different axes: its statistics per channel are kept under such pairs.
        """
        shape, axis = self.input.shape, self.input_axis
        return str(self.input.name), axis % len(shape) if shape is not None and len(shape) else axis

    @property
    def result_axis(self) -> int:
        """The axis of the layer's result for output channels; may be negative."""
        if self.op == "MatMul":
            return -2 if self.weight_index == 0 else -1
        return 1

    def kernel_rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array of the weight's shape as output channels x products, in the order in which kernels add them.

        A convolution adds tap by tap with the inputs innermost, a matrix product along its inputs.
        """
        if self.op == "Conv":
            return np.moveaxis(array, 1, -1).reshape(len(array), -1)
        if self.op == "ConvTranspose":
            return np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)
        inner = array if self.output_axis == array.ndim - 2 else np.swapaxes(array, -1, -2)
        return inner.reshape(-1, inner.shape[-1])

    @property
    def input_channels(self) -> int:
        """The number of channels of the operand that are summed over, all groups together."""
        shape = self.weight_array().shape
        if self.op in ("Conv", "ConvTranspose"):
            return shape[1] * self.groups if self.op == "Conv" else shape[0]
        return shape[-1] if self.output_axis == len(shape) - 2 else shape[-2]

    @property
    def output_channels(self) -> int:
        """The number of channels of the result, all groups together; rows of a table."""
        channels: int = self.weight_array().shape[self.output_axis]
        return channels * self.groups if self.op == "ConvTranspose" else channels

    @property
    def groups(self) -> int:
        return int(attribute(self.node, "group", 1)) if self.op in ("Conv", "ConvTranspose") else 1

    @property
    def is_half(self) -> bool:
        """Whether the layer computes in 16-bit floats."""
        return self.weight.dtype in HALF

    @property
    def has_integer_kernel(self) -> bool:
        """Whether it may run on integers with a static grid for its operand."""
        return self.op in INTEGER_OPS and self.is_observed and (self.op == "Conv" or not self.in_steps)


def pads(layer: Layer) -> bool:
    """Whether the layer may sum over zeros that are not in its operand, so that no offset can be folded exactly."""
    if layer.op == "Conv":
        padding = attribute(layer.node, "pads", ())
        return any(padding) or attribute(layer.node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return layer.op not in ("Gemm", "MatMul") or len(layer.weight.shape or ()) != 2


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def weight_index(node: ir.Node) -> tuple[int, str]:
    """The index of the input that is the constant weight, and why the node cannot be quantized ('' if it can)."""
    if len(node.inputs) < 2 or None in node.inputs[:2]:
        return 1, "an operand is missing"
    candidates = (1, 0) if node.op_type == "MatMul" else (1,)
    for index in candidates:
        if constant(node.inputs[index]) is None:
            continue
        if constant(node.inputs[1 - index]) is not None:
            return index, "both operands are constants"
        return index, why_not_quantized(node.inputs[index])
    return 1, "its weight is not a constant"


def why_not_quantized(value: ir.Value | None) -> str:
    """Why a weight cannot be quantized ('' if it can)."""
    weight = constant(value)
    if weight is None:
        return "its weight is not a constant"
    if weight.dtype != np.float32 and value.dtype not in HALF:  # type: ignore[union-attr]
        return f"its weight is {weight.dtype}, and only those of float32, float16 and bfloat16 are quantized"
    if weight.ndim < 2 or weight.size == 0:
        return f"its weight has shape {list(weight.shape)}; at least two dimensions are needed"
    weight = weight.astype(np.float32, copy=False)
    if not np.isfinite([weight.min(), weight.max()]).all():
        return "its weight contains NaN or infinite values"
    return ""


def present(value: Any) -> Any:
    if value is None:
        raise ModelError("an operator lacks an input that it requires; export the model again")
    return value
