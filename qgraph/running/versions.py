"""The IR version of a graph: the lowest that its opsets and types allow, so that old runtimes load the file."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx import helper

MIN_IR_VERSION = 4  # the first in which initializers need not be inputs
_FUNCTIONS = 8  # the first with functions in a model
_OF_TYPES = {
    "FLOAT8E4M3FN": 9,
    "FLOAT8E4M3FNUZ": 9,
    "FLOAT8E5M2": 9,
    "FLOAT8E5M2FNUZ": 9,
    "UINT4": 10,
    "INT4": 10,
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    "UINT2": 13,
    "INT2": 13,
    "FLOAT6E2M3": 14,
    "FLOAT6E3M2": 14,
}
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def needed_ir_version(model: ir.Model) -> int:
    """The model's IR version, lowered to what its opsets need and raised to what its types and functions need."""
    imports = [helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    of_opsets: int = helper.find_min_ir_version_for(imports, ignore_unknown=True)
    of_types = max((_OF_TYPES.get(kind.name, 0) for kind in _types(model)), default=0)
    of_functions = _FUNCTIONS if model.functions else 0
    return max(MIN_IR_VERSION, min(model.ir_version or of_opsets, of_opsets), of_types, of_functions)


def _types(model: ir.Model) -> Iterator[ir.DataType]:
    for graph in model.graphs():
        values = (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs))
        for value in values:
            kind = value.const_value.dtype if value.const_value is not None else value.dtype
            if kind is not None:
                yield kind
        for node in graph:
            for attribute in node.attributes.values():
                if isinstance(attribute, ir.Attr) and not attribute.is_ref():
                    if attribute.type == ir.AttributeType.TENSOR:
                        yield attribute.as_tensor().dtype
                    elif attribute.name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT:
                        yield ir.DataType(attribute.as_int())
