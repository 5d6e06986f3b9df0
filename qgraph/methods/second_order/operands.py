"""What the weights of a layer multiply, as rows: patches of convolutions, rows of matrix products.

A layer's H is an average over positions, so some positions of every sample are enough: patches are only formed there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.layers import Layer, attribute
from qgraph.onnxfile.edit import constant

Array = NDArray[np.floating]


def why_not(layer: Layer) -> str:
    """Why the rows of a layer's weight cannot be rounded by its operand ('' if they can)."""
    if layer.weight_only or layer.op == "ConvTranspose":
        return "its operand has no patches"
    if not layer.owns_weight:
        return "other layers read the same weight"
    bias = constant(layer.bias)
    if layer.bias is not None and (bias is None or bias.size != layer.weight_array().shape[layer.output_axis]):
        return "its bias is not one constant for each output"
    if layer.op == "Conv":
        return ""
    rank = len(layer.weight.shape or ())
    if rank != 2:
        return "its weight is not a matrix"
    plain = attribute(layer.node, "alpha", 1.0) == 1.0 and not attribute(layer.node, "transA", 0)
    return "" if plain else "it scales or transposes its operand"


def as_rows(layer: Layer, array: NDArray[Any]) -> NDArray[Any]:
    """An array of the weight's shape as outputs x products of one output."""
    return array.reshape(len(array), -1) if layer.output_axis == 0 else np.ascontiguousarray(array.T)


def from_rows(layer: Layer, rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of the weight's shape with these rows."""
    return rows.reshape(shape) if layer.output_axis == 0 else np.ascontiguousarray(rows.T)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Operands (groups, n, products) and results (n, outputs) at the same positions, and the weights of these (n,)."""

    operands: Array
    results: Array
    weights: Array | None


def rows(
    layer: Layer, operand: Array, result: Array, most: int, rng: np.random.Generator, weights: Array | None = None
) -> Rows:
    """At most `most` positions of an operand and of what the float layer computes there.

    `weights` are those of all positions: of the result's shape, with 1 along its channel axis.
    """
    if layer.op == "Conv":
        return _patches(layer, operand, result, most, rng, weights)
    along = layer.input_axis
    x, y = (np.moveaxis(a, along, -1).reshape(-1, a.shape[along]) for a in (operand, result))
    chosen = _chosen(len(x), most, rng)
    return Rows(
        operands=x[chosen][None], results=y[chosen], weights=None if weights is None else weights.reshape(-1)[chosen]
    )


def _chosen(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64] | slice:
    return slice(None) if count <= most else np.sort(rng.choice(count, most, replace=False))


def _patches(
    layer: Layer, operand: Array, result: Array, most: int, rng: np.random.Generator, weights: Array | None
) -> Rows:
    """The patches that some positions of the result are computed from; taps innermost, as in the weight."""
    kernel = layer.weight_array().shape[2:]
    rank = len(kernel)
    strides = list(attribute(layer.node, "strides", [1] * rank))
    dilations = list(attribute(layer.node, "dilations", [1] * rank))
    before = _pads_before(layer, operand.shape[2:], result.shape[2:], kernel, strides, dilations)
    size = [
        s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(strides, result.shape[2:], dilations, kernel, strict=True)
    ]
    after = [max(0, want - have - left) for want, have, left in zip(size, operand.shape[2:], before, strict=True)]
    padded = np.pad(operand, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    spots = (len(operand), *result.shape[2:])
    flat = np.arange(int(np.prod(spots)))
    chosen = flat[_chosen(flat.size, most, rng)]
    sample, *where = np.unravel_index(chosen, spots)
    shape = [1] * rank
    index = []
    for axis, (at, stride, gap, taps) in enumerate(zip(where, strides, dilations, kernel, strict=True)):
        tap = (gap * np.arange(taps)).reshape([*shape[:axis], -1, *shape[axis + 1 :]])
        index.append((at * stride).reshape(-1, *shape) + tap)
    patches = padded[(sample.reshape(-1, *shape), slice(None), *index)]  # n x taps x channels
    patches = np.moveaxis(patches, -1, 1).reshape(chosen.size, layer.groups, -1)
    results = np.moveaxis(result, 1, -1).reshape(-1, result.shape[1])[chosen]
    return Rows(
        operands=np.ascontiguousarray(patches.transpose(1, 0, 2)),
        results=results,
        weights=None if weights is None else weights.reshape(-1)[chosen],
    )


def _pads_before(
    layer: Layer,
    sizes: tuple[int, ...],
    results: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> list[int]:
    """The zeros before the operand along every axis."""
    mode = str(attribute(layer.node, "auto_pad", "NOTSET"))
    if mode == "NOTSET":
        return [int(p) for p in attribute(layer.node, "pads", [0] * len(kernel))[: len(kernel)]]
    if mode == "VALID":
        return [0] * len(kernel)
    total = [
        max(0, s * (n - 1) + d * (k - 1) + 1 - size)
        for s, n, d, k, size in zip(strides, results, dilations, kernel, sizes, strict=True)
    ]
    return [(t + 1) // 2 if mode == "SAME_LOWER" else t // 2 for t in total]
