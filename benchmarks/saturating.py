"""A network of integer convolutions as x86-64 without VNNI computes it: pairs of products saturate 16 bits.

Reads a QDQ file, feeds each Conv and Gemm the codes that onnxruntime computed before it, and compares the codes behind
it. Products are added in the order of onnxruntime's kernels, tap by tap with the inputs innermost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import attribute
from qgraph.graph.tensors import fused_output
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session, evaluate_constants


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def saturating_sums(x: NDArray[np.uint8], w: NDArray[np.int8]) -> NDArray[np.int32]:
    """x w^T with two neighbouring products at a time added in 16 bits, which saturate: vpmaddubsw, then vpmaddwd."""
    result = np.zeros((len(x), len(w)), np.int32)
    products = x.shape[1]
    for row in range(len(x)):
        for channel in range(len(w)):
            total = np.int32(0)
            for k in range(0, products, 2):
                pair = np.int32(x[row, k]) * np.int32(w[channel, k])
                if k + 1 < products:
                    pair += np.int32(x[row, k + 1]) * np.int32(w[channel, k + 1])
                total += min(max(pair, np.int32(-32768)), np.int32(32767))
            result[row, channel] = total
    return result


def codes_by_emulation(path: Path, data: NDArray[np.float32], count: int) -> tuple[int, int]:
    """How many layers get the codes that onnxruntime computes, of how many, on the first `count` samples."""
    net = load(path)
    layers = [(node, result) for node in net.graph if (result := _quantizer(node)) is not None]
    wanted = {str(value.name) for node, q in layers for value in (_dequantizer(node, 0).inputs[0], q.outputs[0])}
    (given,) = net.input_values()
    samples = data.reshape(-1, *(int(d) for d in given.shape[1:]))[:count]  # type: ignore[index,arg-type]
    codes = Session(net.ir_model, outputs=sorted(wanted)).run({str(given.name): samples})
    equal = sum(
        np.array_equal(
            _emulated(net.ir_model, node, q, codes[_dequantizer(node, 0).inputs[0].name]), codes[q.outputs[0].name]
        )
        for node, q in layers
    )
    return equal, len(layers)


def _emulated(model: ir.Model, node: ir.Node, quantizer: ir.Node, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes behind a layer, from those before it."""
    read, weight = _dequantizer(node, 0), _dequantizer(node, 1)
    values = [*read.inputs[1:], *weight.inputs, *quantizer.inputs[1:]]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    known = evaluate_constants(model, [v for v in (*values, bias) if v is not None])
    sx, zx, w, sw, _, sy, zy = known[:7]
    step = np.float32(sx) * sw.reshape(-1).astype(np.float32)
    whole = np.zeros(1, np.int32) if bias is None else np.rint(known[7].reshape(-1) / step.astype(np.float64))
    shape: tuple[int, ...] = (len(x), -1)
    if node.op_type == "Conv":
        rows, shape = _windows(node, x, w, int(zx))
        filters = np.split(np.moveaxis(w, 1, -1).reshape(len(w), -1), len(rows))
    else:
        rows, filters = [x], [w if attribute(node, "transB", 0) else w.T]
    sums = np.concatenate([_sums(*both, int(zx)) for both in zip(rows, filters, strict=True)], axis=1)
    sums = sums + whole.astype(np.int64)
    scaled = sums.astype(np.float32) * (step / np.float32(sy)).astype(np.float32)
    codes = np.clip(np.rint(scaled) + int(zy), 0, 255).astype(np.uint8)
    return codes.reshape(shape) if len(shape) == 2 else np.moveaxis(codes.reshape(shape), -1, 1)


def _sums(x: NDArray[np.uint8], w: NDArray[np.int8], zero: int) -> NDArray[np.int32]:
    """The sums of one group, less the zero point; depthwise kernels, of one filter, add no pairs."""
    filters = w.astype(np.int32)
    plain = len(w) == 1
    sums = x.astype(np.int32) @ filters.T if plain else saturating_sums(x, np.ascontiguousarray(w))
    return np.asarray(sums - zero * filters.sum(axis=1))


def _windows(node: ir.Node, x: NDArray[np.uint8], w: NDArray[np.int8], zero: int) -> tuple[list[Any], tuple[int, ...]]:
    """For each group the codes under the kernel as rows of products, and the shape of the result, channels last."""
    groups, (top, left, bottom, right) = int(attribute(node, "group", 1)), attribute(node, "pads", (0, 0, 0, 0))
    stride = tuple(attribute(node, "strides", (1, 1)))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero)
    seen = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))[:, :, :: stride[0], :: stride[1]]
    n, _, height, width = seen.shape[:4]
    split = np.split(seen, groups, axis=1)
    rows = [np.ascontiguousarray(s.transpose(0, 2, 3, 4, 5, 1)).reshape(n * height * width, -1) for s in split]
    return rows, (n, height, width, len(w))


def _dequantizer(node: ir.Node, index: int) -> ir.Node:
    producer = node.inputs[index].producer()  # type: ignore[union-attr]
    assert producer is not None
    return producer


def _quantizer(node: ir.Node) -> ir.Node | None:
    """The node that quantizes the result of a layer on integers; None for any other node."""
    if node.op_type not in ("Conv", "Gemm"):
        return None
    sides = [node.inputs[i].producer() for i in (0, 1)]  # type: ignore[union-attr]
    readers = [use.node for use in fused_output(node.outputs[0]).uses()]
    dequantized = all(side is not None and side.op_type == "DequantizeLinear" for side in sides)
    return readers[0] if dequantized and [r.op_type for r in readers] == ["QuantizeLinear"] else None
