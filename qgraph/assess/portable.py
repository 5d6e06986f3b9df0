"""What holds for a quantized file on every processor, proven from its weights and the ranges of its codes.

A layer on integers computes the same codes everywhere if

* no sum can leave 32 bits (`qmath.sum_range`): integers wrap, so the order of addition does not matter;
* no pair of products saturates 16 bits where a processor adds them in pairs (`qmath.pair_range`; see
  `qgraph.plan.saturation` for which layers do);
* rescaling rounds once: float32 represents every sum within 2^24 exactly, and one product of float32 is the same by
  IEEE 754. A sum beyond is rounded twice, each time as IEEE 754 says, and is reported.

What is computed in floats may differ in the last bit between processors where many numbers are added or a function is
approximated, and that bit can push a code over a rounding step. Such operators are counted by type, as onnxruntime runs
them: an Add between codes, for example, becomes QLinearAdd, whose two products some processors fuse with the addition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.assess.exact_operators import exact_operators
from qgraph.assess.fused import INTEGER_KERNELS, inspect_fused, with_names
from qgraph.assess.integer_product import (
    LAYERS,
    Product,
    adds_pairs,
    as_read,
    code_range,
    is_signed,
    kernel_rows,
    length_of,
    product_of,
)
from qgraph.graph.walk import descendants, paths, with_bodies
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.shapes import infer_shapes
from qgraph.running.sessions import evaluate_constants
from qmath.integer_range import EXACT_IN_FLOAT, INT16, INT32, within

_UNPACKING = frozenset({"MatMulNBits"})  # multiplies floats with codes
_ROUNDED_ONCE = frozenset(  # element by element, one IEEE operation each, or no arithmetic
    {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Relu", "LeakyRelu", "PRelu", "Clip", "Min", "Max", "Floor"}
    | {"Ceil", "Round", "Sign", "Cast", "Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"}
    | {"Concat", "Split", "Gather", "GatherElements", "GatherND", "Expand", "Tile", "Pad", "MaxPool", "GlobalMaxPool"}
    | {"ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK", "Where", "Equal", "Greater", "Less", "GreaterOrEqual"}
    | {"LessOrEqual", "Not", "And", "Or", "Shape", "Size", "Constant", "ConstantOfShape", "Range", "NonZero", "Dropout"}
    | {"DepthToSpace", "SpaceToDepth", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "BitShift"}
    | {"BitwiseAnd", "BitwiseOr", "ScatterND", "ScatterElements", "NonMaxSuppression", "OneHot", "CumSum", "Mod"}
    | {"ReorderInput", "ReorderOutput", "QLinearConcat", "NhwcMaxPool"}
)
_ADD_FLOATS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableLayer:
    """What is proven for one layer; `why` names the first thing that is not, and is empty where codes are equal.

    `sums` is the range of its 32-bit sums, with bias; None for a layer in floats, and for one on integers whose range
    is not known. `saturating` of its channels can leave 16 bits in a pair of products. `rounds_once`: float32 holds
    every sum, so that rescaling is exact but for one rounding.
    """

    name: str
    op: str
    integer: bool = True
    sums: tuple[int, int] | None = None
    saturating: int = 0
    rounds_once: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """All layers of a file, and how many other operators may round differently elsewhere, by type."""

    layers: tuple[PortableLayer, ...]
    inexact: dict[str, int]

    @property
    def proven(self) -> bool:
        """Whether all of the file computes the same everywhere."""
        return not self.inexact and all(not layer.why for layer in self.layers)

    @property
    def sums_fit(self) -> bool:
        """Whether it is proven that no layer on integers can overflow 32 bits."""
        return all(_inside(layer.sums, INT32) for layer in self.layers if layer.integer)

    @property
    def pairs_fit(self) -> bool:
        """Whether it is proven that no layer on integers can saturate 16 bits."""
        return not any(layer.saturating for layer in self.layers)


def prove_portable(model: Model, *, threads: int | None = None) -> Portable:
    """Prove layer by layer what is the same on every processor; see the top of the module.

    Raises `ModelError` if onnxruntime cannot load the model.
    """
    model = _with_shapes(with_names(model))
    fused = inspect_fused(model, threads=threads)
    whole = INTEGER_KERNELS - _UNPACKING
    in_floats = {layer.name for layer in fused.layers if layer.kernel not in whole and layer.op in LAYERS}
    varying = descendants(v for v in model.graph.inputs if v.const_value is None)
    nodes = {n: name for n, name in paths(model.graph).items() if n in varying or n.graph is not model.graph}
    products = {n: found for n, name in nodes.items() if (found := product_of(n)) and name not in in_floats}
    known = _constants(model, products.values(), varying)
    shown = set(with_bodies(model.graph))
    layers = [_proven(found, known, nodes[n], shown=n.graph in shown) for n, found in products.items()]
    layers += [_in_floats(node, name) for node, name in nodes.items() if _is_layer(node) and node not in products]
    told = _ROUNDED_ONCE | _ADD_FLOATS | INTEGER_KERNELS
    left = Counter({op: n for op, n in fused.operators.items() if op not in told}) - exact_operators(model)
    left += Counter(n.op_type for n in nodes if n not in products and not _is_layer(n) and _hides_sums(n, model))
    return Portable(layers=tuple(layers), inexact=dict(left))


def _constants(
    model: Model, products: Iterable[Product], varying: Container[ir.Node]
) -> dict[ir.Value, NDArray[Any] | None]:
    """The codes, scales and zero points that do not depend on what is fed; of bodies those that are stored alone."""
    fixed = list(dict.fromkeys(v for product in products for v in product.values() if not _varies(v, varying)))
    known: dict[ir.Value, NDArray[Any] | None] = {value: constant(value) for value in fixed}
    wanted = [v for v in fixed if known[v] is None and v.graph is model.graph]
    return known | dict(zip(wanted, evaluate_constants(model.ir_model, wanted) if wanted else [], strict=True))


def _with_shapes(model: Model) -> Model:
    """A copy of the model with the shapes of its inner tensors."""
    net = model.ir_model.clone()
    infer_shapes(net)
    return replace(model, ir_model=net)


def _hides_sums(node: ir.Node, model: Model) -> bool:
    """Whether a node is a product that is not read as a layer, such as MatMulNBits, or a function of the file."""
    kernels = _ADD_FLOATS | INTEGER_KERNELS
    return node.op_type in kernels or node.op_identifier() in model.ir_model.functions


def _proven(
    product: Product, known: Mapping[ir.Value, NDArray[Any] | None], name: str, *, shown: bool
) -> PortableLayer:
    """What is proven for a layer on integers; `shown`: onnxruntime shows that it is one."""
    node = product.node
    op = node.op_type
    codes = known.get(product.weight)
    if codes is None:
        return _of_two_factors(product, known, name)
    codes = as_read(product, codes)
    if codes is None:
        return PortableLayer(name=name, op=op, why="its weight is moved between its codes and the product")
    if product.bias is not None and known.get(product.bias) is None:
        return PortableLayer(name=name, op=op, why="its bias is computed at run time")
    weight_zero = _whole(product.weight_zero, known)
    if weight_zero is None:
        return PortableLayer(name=name, op=op, why="the zero points of its weight are computed at run time")
    rows = kernel_rows(node, codes)
    centred = rows.astype(np.int64) - np.resize(weight_zero, len(rows)).reshape(-1, 1)
    sums = qmath.sum_range(
        centred, *_centred_range(product.operand, product.zero, known), bias=_bias(product, known, len(rows))
    )
    low, high = code_range(product.operand)
    shift = 128 if low < 0 else 0  # kernels make uint8 of int8 operands
    pairs = qmath.pair_range(rows, low + shift, high + shift)
    paired = rows.dtype == np.int8 and adds_pairs(node, codes, weight_zero)
    saturating = int((~within(pairs, INT16)).sum()) if paired else 0
    found = (int(sums[0].min(initial=0)), int(sums[1].max(initial=0)))
    return PortableLayer(
        name=name,
        op=op,
        sums=found,
        saturating=saturating,
        rounds_once=_inside(found, EXACT_IN_FLOAT),
        why=_why(found, saturating) or ("" if shown else "it is in a body, whose kernels onnxruntime does not show"),
    )


def _of_two_factors(product: Product, known: Mapping[ir.Value, NDArray[Any] | None], name: str) -> PortableLayer:
    """A product of two computed tensors: all codes meet all codes, over the length of the sums if shapes tell it."""
    length = length_of(product)
    left = _centred_range(product.operand, product.zero, known)
    right = _centred_range(product.weight, product.weight_zero, known)
    ends = [length * a * b for a in left for b in right]
    sums = (min(*ends, 0), max(*ends, 0)) if length and product.bias is None else None
    saturating = int(is_signed(product.weight))  # any two of its int8 codes may be neighbours
    if sums is None:
        why = "both factors are computed: the length of its sums is not known"
    elif saturating and _inside(sums, INT32):
        why = "both factors are computed: pairs of products can leave 16 bits, on x86-64 without VNNI"
    else:
        why = _why(sums, 0)
    rounds_once = _inside(sums, EXACT_IN_FLOAT)
    op = product.node.op_type
    return PortableLayer(name=name, op=op, sums=sums, saturating=saturating, rounds_once=rounds_once, why=why)


def _why(sums: tuple[int, int], saturating: int) -> str:
    if not _inside(sums, INT32):
        return f"its sums can leave 32 bits: they range from {sums[0]:,} to {sums[1]:,}"
    if saturating:
        return f"pairs of products can leave 16 bits in {saturating} channels, on x86-64 without VNNI"
    return ""


def _in_floats(node: ir.Node, name: str) -> PortableLayer:
    return PortableLayer(name=name, op=node.op_type, integer=False, why="it adds floats")


def _is_layer(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in (*LAYERS, "ConvTranspose")


def _inside(sums: tuple[int, int] | None, limits: tuple[int, int]) -> bool:
    return sums is not None and limits[0] <= sums[0] and sums[1] <= limits[1]


def _whole(value: ir.Value | None, known: Mapping[ir.Value, NDArray[Any] | None]) -> NDArray[np.int64] | None:
    """A zero point as whole numbers, 0 where it is left out; None if it is computed at run time."""
    if value is None:
        return np.zeros(1, np.int64)
    found = known.get(value)
    return None if found is None else found.astype(np.int64).reshape(-1)


def _centred_range(
    codes: ir.Value, point: ir.Value | None, known: Mapping[ir.Value, NDArray[Any] | None]
) -> tuple[int, int]:
    """The range of a tensor's codes less their zero point, which is any code where it is found in every run."""
    low, high = code_range(codes)
    zero = _whole(point, known)
    least, most = (low, high) if zero is None else (int(zero.min()), int(zero.max()))
    return low - most, high - least


def _bias(product: Product, known: Mapping[ir.Value, NDArray[Any] | None], outputs: int) -> NDArray[np.int64]:
    """The bias in steps of the sums; a float bias as onnxruntime rounds it."""
    bias = None if product.bias is None else known.get(product.bias)
    if bias is None:
        return np.zeros(outputs, np.int64)
    if bias.dtype.kind != "i":
        scale, step = (None if v is None else known.get(v) for v in (product.scale, product.weight_scale))
        if scale is None or step is None:
            return np.zeros(outputs, np.int64)
        bias = np.rint(bias.reshape(-1) / (scale.astype(np.float64).reshape(-1) * step.reshape(-1)))
    return np.resize(bias.reshape(-1), outputs).astype(np.int64)


def _varies(value: ir.Value, varying: Container[ir.Node]) -> bool:
    producer = value.producer()
    return (value.is_graph_input() and value.const_value is None) or (producer is not None and producer in varying)
