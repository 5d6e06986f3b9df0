"""The normal form of a model, on which every method works, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from qgraph.errors import ModelError, QGraphError, first_line
from qgraph.onnxfile.axes import name_all_axes, pad_in_pools
from qgraph.onnxfile.bodies import lift_weights_out_of_bodies, set_bodies_apart
from qgraph.onnxfile.cost_limits import GROWING_OPS, check_bounds
from qgraph.onnxfile.edit import name_everything, rename_twins
from qgraph.onnxfile.einsum import einsums_to_products
from qgraph.onnxfile.folding import (
    Declined,
    bypass_identities,
    constant_nodes,
    fold_batch_normalization,
    fold_constants,
    fuse_matrix_product_bias,
)
from qgraph.onnxfile.model import Model, Unchanged
from qgraph.onnxfile.readable import TYPE_NOTE
from qgraph.onnxfile.shapes import infer_shapes
from qgraph.onnxfile.tied import tie_tables
from qgraph.running.versions import needed_ir_version


def normalise(model: Model, *, fold_bn: bool = True) -> Model:
    """Return the normal form of a model, which computes the same function; `model` itself is not changed.

    Functions are inlined, constants become initializers and are no longer inputs, what depends on constants alone is
    computed, every node has a name and tensors have shapes. With `fold_bn`, BatchNormalization in inference form is
    folded into the convolution or matrix product before it. Raises `ModelError` for a graph that is not valid.
    """
    if model.normalised:
        return model
    net = model.ir_model.clone()
    left: list[tuple[str, ir.Node, str]] = []

    def ours(rewrite: Callable[[ir.Model], Declined], title: str) -> Callable[[ir.Model], None]:
        return lambda net: left.extend((title, node, why) for node, why in rewrite(net))

    transforms: list[Callable[[ir.Model], object]] = [
        passes.InlinePass() if net.functions else lambda _: None,
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveInitializersFromInputsPass(),
        rename_twins,
        ours(bypass_identities, "bypass"),
        _check_constants,
        ours(fold_constants, "compute in advance"),
        einsums_to_products,
        *([ours(fold_batch_normalization, "fold into the layer before it")] if fold_bn else []),
        passes.RemoveUnusedNodesPass(),
        passes.TopologicalSortPass(),
        name_everything,
        _infer_shapes,
        ours(name_all_axes, "write for all axes"),
        ours(pad_in_pools, "merge into the pool after it"),
        ours(fuse_matrix_product_bias, "merge into the matrix product before it"),
        passes.RemoveUnusedNodesPass(),
        _drop_notes,
    ]
    try:
        for transform in transforms:
            transform(net)
        digest = content_digest(net)
        ours(lift_weights_out_of_bodies, "compute ahead")(net)
        set_bodies_apart(net)
        tie_tables(net)
    except QGraphError:
        raise
    except Exception as error:  # of any kind: the file contradicts itself
        raise ModelError(f"{model.source} is not a valid ONNX graph: {first_line(error)}") from error
    net.ir_version = needed_ir_version(net)
    return replace(model, ir_model=net, digest=digest, unchanged=_unchanged(left))


def _unchanged(left: Iterable[tuple[str, ir.Node, str]]) -> tuple[Unchanged, ...]:
    """The nodes that rewrites left unchanged and that are still there, one entry each."""
    found = {}
    for rewrite, node, why in left:
        if node.graph is not None:
            found[node] = Unchanged(name=str(node.name), op=node.op_type, rewrite=rewrite, why=why)
    return tuple(found.values())


def _drop_notes(net: ir.Model) -> None:
    """Remove the notes of exporters on nodes and tensors (source lines, stack traces); the model's own notes stay."""
    for node in ir.traversal.RecursiveGraphIterator(net.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            kept = value.metadata_props.get(TYPE_NOTE)
            value.metadata_props.clear()
            if kept is not None:
                value.metadata_props[TYPE_NOTE] = kept


def _infer_shapes(model: ir.Model) -> None:
    """Infer the shapes of inner tensors, none of them out of bounds; outputs stay as their author declared them."""
    declared = [(v.type, v.shape) for v in model.graph.outputs]
    infer_shapes(model)
    check_bounds(model)
    for output, (kind, shape) in zip(model.graph.outputs, declared, strict=True):
        output.type, output.shape = kind, shape


def _check_constants(model: ir.Model) -> None:
    """Check bounds before constants are computed, if they may be much larger than what they are computed from."""
    if any(node.op_type in GROWING_OPS for node in constant_nodes(model.graph)):
        _infer_shapes(model)


def content_digest(model: ir.Model) -> str:
    """SHA-256 of what a model computes: opsets, interface, weights and nodes; names of files do not count."""
    digest = hashlib.sha256()
    digest.update(repr(sorted(model.opset_imports.items())).encode())
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs):
            digest.update(f"{value.name} {value.type} {value.shape}\n".encode())
        for name in sorted(graph.initializers):
            tensor = graph.initializers[name].const_value
            if tensor is not None:
                digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
                digest.update(_content(tensor))
        for node in graph:
            proto = ir.to_proto(node)
            proto.ClearField("doc_string")
            proto.ClearField("metadata_props")
            digest.update(proto.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _content(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """The numbers of a tensor without a copy; for strings, their bytes and lengths."""
    if isinstance(tensor, ir.StringTensor):
        return repr(list(tensor.string_data())).encode()
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    return array.view(np.uint8).data if tensor.size else b""
