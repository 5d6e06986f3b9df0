"""Moves that carry values to other places and shapes."""

from __future__ import annotations

import numpy as np
from nets import Net, move
from onnx import helper


@move
def pool(net: Net) -> bool:
    x = net.pick(3, 4)
    if x is None or min(net.shapes[x][2:]) < 2:
        return False
    batch, channels, *space = net.shapes[x]
    op = str(net.rng.choice(["MaxPool", "AveragePool"]))
    size = [2] * len(space)
    net.add(op, [x], (batch, channels, *[s // 2 for s in space]), kernel_shape=size, strides=size)
    return True


@move
def channels_last(net: Net) -> bool:
    """tf2onnx's manner: to NHWC, something per channel, and back."""
    x = net.pick(4)
    if x is None:
        return False
    batch, channels, height, width = net.shapes[x]
    last = net.add("Transpose", [x], (batch, height, width, channels), perm=[0, 2, 3, 1])
    if net.rng.random() < 0.5:
        last = net.add("Add", [last, net.weight((channels,))], None)
    net.add("Transpose", [last], net.shapes[x], perm=[0, 3, 1, 2])
    return True


@move
def flatten(net: Net) -> bool:
    x = net.pick(3, 4, 5)
    if x is None or int(np.prod(net.shapes[x][1:])) > 400:
        return False
    size = int(np.prod(net.shapes[x][1:]))
    if net.rng.random() < 0.5:
        net.add("Flatten", [x], (net.shapes[x][0], size), axis=1)
    else:
        net.add("Reshape", [x, net.constant([net.shapes[x][0], -1])], (net.shapes[x][0], size))
    return True


@move
def unsqueeze(net: Net) -> bool:
    x = net.pick(2, 3)
    if x is None:
        return False
    shape = (*net.shapes[x][:1], 1, *net.shapes[x][1:])
    if net.opset < 13:
        net.add("Unsqueeze", [x], shape, axes=[1])
    else:
        net.add("Unsqueeze", [x, net.constant([1])], shape)
    return True


@move
def cut(net: Net) -> bool:
    x = net.pick(3, 4)
    if x is None or net.shapes[x][2] < 3:
        return False
    shape = net.shapes[x]
    after = (*shape[:2], shape[2] - 2, *shape[3:])
    if net.opset < 10:
        net.add("Slice", [x], after, starts=[1], ends=[shape[2] - 1], axes=[2])
    else:
        where = [net.constant([v]) for v in (1, shape[2] - 1, 2)]
        net.add("Slice", [x, *where], after)
    return True


@move
def halves(net: Net) -> bool:
    x = net.pick(2, 3, 4)
    if x is None or net.shapes[x][1] % 2:
        return False
    shape = (net.shapes[x][0], net.shapes[x][1] // 2, *net.shapes[x][2:])
    outputs = [net.name(), net.name()]
    extra = {"num_outputs": 2} if net.opset >= 18 else {}
    net.nodes.append(helper.make_node("Split", [x], outputs, axis=1, **extra))
    net.shapes[outputs[0]] = net.shapes[outputs[1]] = shape
    return True


@move
def upsample(net: Net) -> bool:
    x = net.pick(4)
    if x is None or max(net.shapes[x][2:]) > 8:
        return False
    batch, channels, height, width = net.shapes[x]
    after = (batch, channels, 2 * height, 2 * width)
    scales = net.constant([1, 1, 2, 2], np.float32)
    mode = str(net.rng.choice(["nearest", "linear"]))
    if net.opset < 9:
        net.add("Upsample", [x], after, scales=[1.0, 1.0, 2.0, 2.0], mode=mode)
    elif net.opset < 10:
        net.add("Upsample", [x, scales], after, mode=mode)
    elif net.opset < 11:
        net.add("Resize", [x, scales], after, mode=mode)
    else:
        roi = net.constant([], np.float32) if net.opset < 13 else ""
        net.add("Resize", [x, roi, scales], after, mode=mode)
    return True


@move
def pad(net: Net) -> bool:
    x = net.pick(3, 4)
    if x is None:
        return False
    shape = net.shapes[x]
    pads = [0, 0, *[1] * (len(shape) - 2)] * 2
    mode = str(net.rng.choice(["constant", "edge"]))
    after = (*shape[:2], *[s + 2 for s in shape[2:]])
    if net.opset < 11:
        net.add("Pad", [x], after, pads=pads, mode=mode)
    else:
        fill = [net.constant(float(net.rng.choice([0, 1])), np.float32)] if net.rng.random() < 0.5 else []
        net.add("Pad", [x, net.constant(pads), *fill], after, mode=mode)
    return True


@move
def identity(net: Net) -> bool:
    x = net.pick(2, 3, 4, 5)
    if x is None:
        return False
    net.add(str(net.rng.choice(["Identity", "Dropout"])), [x], net.shapes[x])
    return True
