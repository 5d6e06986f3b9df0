"""Cuts of large images: a convolution's weights see enough positions in a part of each image.

A block of convolutions, element-wise operators and pools is a function of images of any size. Trained on cuts, with the
float block run on the same cuts, it costs a fraction of the time. The zeros that pad the edge of a cut weigh a little
more than those of a whole image.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.blocks import Block

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


def cropped(quantized: Arrays, floats: Arrays, size: int, *, seed: int) -> tuple[Arrays, Arrays]:
    """The same random part, up to `size` along each side, of every sample that enters in both networks."""
    rng = np.random.default_rng(seed)
    ((name, first),) = quantized.items()
    second = floats[name]
    found: tuple[list[NDArray[np.floating]], list[NDArray[np.floating]]] = ([], [])
    for x, y in zip(first, second, strict=True):
        height, width = (min(size, side) for side in x.shape[2:])
        tops = rng.integers(0, x.shape[2] - height + 1, len(x))
        lefts = rng.integers(0, x.shape[3] - width + 1, len(x))
        for held, array in zip(found, (x, y), strict=True):
            held.append(
                np.stack([a[:, t : t + height, s : s + width] for a, t, s in zip(array, tops, lefts, strict=True)])
            )
    return {name: found[0]}, {name: found[1]}
