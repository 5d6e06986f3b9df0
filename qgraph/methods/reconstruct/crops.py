"""Cuts of large images: a convolution's weights see enough positions in a part of each image.

A block of convolutions, element-wise operators and pools is a function of images of any size. Trained on cuts, with the
float block run on the same cuts, it costs a fraction of the time. Errors near the edge of a cut do not count, as zeros
stand outside of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.blocks import Block
from qgraph.graph.layers import attribute

Arrays = dict[str, list[NDArray[np.floating]]]
_ANY_SIZE = frozenset(
    {"Conv", "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Add", "Mul"}
    | {"Sub", "Div", "Max", "Min", "AveragePool", "MaxPool", "BatchNormalization", "Identity", "Mish", "Softplus"}
    | {"GlobalAveragePool", "Gelu", "Erf"}
)


def croppable(block: Block, entering: Mapping[str, list[NDArray[np.floating]]], size: int) -> bool:
    """Whether one image enters the block, larger than `size` along a side, and all its operators take any size."""
    arrays = [held[0] for held in entering.values()]
    plain = all(node.op_type in _ANY_SIZE and node.domain == "" for node in block.nodes)
    return plain and len(arrays) == 1 and arrays[0].ndim == 4 and max(arrays[0].shape[2:]) > size


def margin(block: Block) -> int:
    """How far the edge of a part reaches into the results, in positions of what enters the block, at most."""
    reach, stride = 0, 1
    for node in block.nodes:
        kernel = attribute(node, "kernel_shape", ()) or (constant_shape(node)[2:] if node.op_type == "Conv" else ())
        if kernel:
            dilation = max(attribute(node, "dilations", (1,)))
            reach += stride * -(-dilation * (max(kernel) - 1) // 2)
            stride *= max(attribute(node, "strides", (1,)))
    return reach


def constant_shape(node: ir.Node) -> tuple[int, ...]:
    """The shape of a convolution's weight."""
    weight = node.inputs[1]
    return () if weight is None or weight.shape is None else tuple(int(size) for size in weight.shape)  # type: ignore[arg-type]


def cropped(
    quantized: Arrays, floats: Arrays, important: Arrays, size: int, *, edge: int = 0, times: int = 1, seed: int
) -> tuple[Arrays, Arrays, Arrays]:
    """The same random parts, up to `size` along each side, of every sample that enters in both networks.

    Of every sample, `times` parts are taken. The parts of `important`, of what leaves, begin at the same share of a
    side, and are 0 within `edge` positions of what enters from where the sample was cut: zeros stand outside.
    """
    rng = np.random.default_rng(seed)
    (name,) = quantized
    found: list[Arrays] = [{name: []}, {name: []}, {leaving: [] for leaving in important}]
    for _ in range(times):
        for index, (x, y) in enumerate(zip(quantized[name], floats[name], strict=True)):
            sides = x.shape[2:]
            starts = [rng.integers(0, side - min(size, side) + 1, len(x)) for side in sides]
            found[0][name].append(_parts(x, sides, starts, size)[0])
            found[1][name].append(_parts(y, sides, starts, size)[0])
            for leaving, arrays in important.items():
                part, (rows, columns) = _parts(arrays[index], sides, starts, size)
                inner = _inner(rows, arrays[index].shape[2], sides[0], edge)[:, None, :, None]
                inner = inner & _inner(columns, arrays[index].shape[3], sides[1], edge)[:, None, None, :]
                found[2][leaving].append(part * inner)
    return found[0], found[1], found[2]


def _parts(
    x: NDArray[np.floating], sides: Sequence[int], starts: Sequence[NDArray[np.int64]], size: int
) -> tuple[NDArray[np.floating], list[NDArray[np.int64]]]:
    """Of every map, what lies where a part of an image of these sides does; and the rows and columns there."""
    ranges = []
    for held, side, begin in zip(x.shape[2:], sides, starts, strict=True):
        length = -(-min(size, side) * held // side)
        ranges.append(np.minimum(begin * held // side, held - length)[:, None] + np.arange(length))
    rows, columns = ranges
    part = x[np.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(part), ranges


def _inner(places: NDArray[np.int64], held: int, side: int, edge: int) -> NDArray[np.bool_]:
    """Which rows (or columns) of a part lie away from where it was cut."""
    ring = -(-edge * held // side)
    first, last = places[:, :1], places[:, -1:]
    return ((places >= first + ring) | (first == 0)) & ((places <= last - ring) | (last == held - 1))
