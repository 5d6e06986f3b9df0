"""Moves that normalise, bend and combine tensors."""

from __future__ import annotations

import numpy as np
from nets import Net, move


@move
def batch_norm(net: Net) -> bool:
    x = net.pick(2, 3, 4)
    if x is None or (net.opset < 9 and len(net.shapes[x]) == 2):
        return False
    channels = net.shapes[x][1]
    parameters = [net.constant(net.rng.uniform(0.5, 1.5, channels), np.float32) for _ in range(4)]
    net.add("BatchNormalization", [x, *parameters], net.shapes[x])
    return True


@move
def layer_norm(net: Net) -> bool:
    x = net.pick(2, 3)
    if x is None or net.opset < 17 or net.shapes[x][-1] < 3:
        return False
    size = net.shapes[x][-1]
    net.add("LayerNormalization", [x, net.weight((size,)), net.weight((size,))], net.shapes[x], axis=-1)
    return True


@move
def activation(net: Net) -> bool:
    x = net.pick(2, 3, 4, 5)
    names = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Softplus", "HardSigmoid", "Softsign", "Selu"]
    names += ["HardSwish"] if net.opset >= 14 else []
    names += ["Mish"] if net.opset >= 18 else []
    names += ["Gelu"] if net.opset >= 20 else []
    if x is None:
        return False
    net.add(str(net.rng.choice(names)), [x], net.shapes[x])
    return True


@move
def clip(net: Net) -> bool:
    x = net.pick(2, 3, 4)
    if x is None:
        return False
    low, high = [(0.0, 6.0), (-1.0, 1.0), (0.0, 0.5)][int(net.rng.integers(3))]
    if net.opset < 11:
        net.add("Clip", [x], net.shapes[x], min=low, max=high)
    else:
        bounds = [net.constant(low, np.float32) if net.rng.random() < 0.8 else "", net.constant(high, np.float32)]
        net.add("Clip", [x, *bounds], net.shapes[x])
    return True


@move
def softmax(net: Net) -> bool:
    x = net.pick(2, 3)
    if x is None:
        return False
    net.add("Softmax", [x], net.shapes[x], axis=len(net.shapes[x]) - 1)
    return True


@move
def residual(net: Net) -> bool:
    x = net.pick(2, 3, 4, 5)
    same = [] if x is None else [n for n, s in net.shapes.items() if s == net.shapes[x]]
    if x is None:
        return False
    other = str(net.rng.choice(same))  # may be x itself
    net.add(str(net.rng.choice(["Add", "Mul", "Sub", "Max"])), [x, other], net.shapes[x])
    return True


@move
def constant_arithmetic(net: Net) -> bool:
    x = net.pick(2, 3, 4)
    if x is None:
        return False
    shape = net.shapes[x]
    other = [net.constant(1.5, np.float32), net.weight((shape[-1],)), net.weight((1,) * len(shape))]
    pair = [x, str(net.rng.choice(other))]
    net.add(str(net.rng.choice(["Add", "Mul", "Sub"])), pair[:: int(net.rng.choice([1, -1]))], shape)
    return True


@move
def concat(net: Net) -> bool:
    x = net.pick(2, 3, 4)
    if x is None:
        return False
    shape = net.shapes[x]
    same = [n for n, s in net.shapes.items() if len(s) == len(shape) and s[:1] + s[2:] == shape[:1] + shape[2:]]
    other = str(net.rng.choice(same))
    total = shape[1] + net.shapes[other][1]
    if total > 24:
        return False
    net.add("Concat", [x, other], (shape[0], total, *shape[2:]), axis=1)
    return True


@move
def gate(net: Net) -> bool:
    """Squeeze and excite: pooled, through two layers, times the tensor itself."""
    x = net.pick(4)
    if x is None:
        return False
    batch, channels, *_ = net.shapes[x]
    pooled = net.add("GlobalAveragePool", [x], None)
    small = net.add("Conv", [pooled, net.weight((2, channels, 1, 1))], None)
    wide = net.add("Conv", [net.add("Relu", [small], None), net.weight((channels, 2, 1, 1))], None)
    net.add("Mul", [x, net.add("Sigmoid", [wide], (batch, channels, 1, 1))], net.shapes[x])
    return True
