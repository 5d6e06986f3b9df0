"""Moves that add what can be quantized: convolutions and matrix products of every form."""

from __future__ import annotations

import numpy as np
from nets import FLOAT, Move, Net, move


@move
def convolution(net: Net) -> bool:
    x = net.pick(3, 4, 5)
    if x is None:
        return False
    batch, channels, *space = net.shapes[x]
    groups = int(net.rng.choice([g for g in (1, 1, 2, channels) if channels % g == 0]))
    outputs = groups * int(net.rng.choice([1, 2, 3]))
    kernel = int(net.rng.choice([1, 2, 3]))
    if kernel > min(space):
        return False
    weight = net.weight((outputs, channels // groups, *[kernel] * len(space)))
    inputs = [x, weight]
    if net.rng.random() < 0.6:
        inputs.append(net.weight((outputs,)) if net.rng.random() < 0.8 else "")
    stride = int(net.rng.choice([1, 1, 2]))
    if net.rng.random() < 0.2:
        padding, total = {"auto_pad": "SAME_UPPER"}, None
    else:
        pad = int(net.rng.integers(kernel))
        padding, total = {"pads": [pad, 0] * len(space)}, None
        ahead, behind = ([pad, 0] * len(space))[: len(space)], ([pad, 0] * len(space))[len(space) :]
        total = [a + b for a, b in zip(ahead, behind, strict=True)]
    after = [
        -(-s // stride) if total is None else (s + p - kernel) // stride + 1
        for s, p in zip(space, total or space, strict=True)
    ]
    net.add("Conv", inputs, (batch, outputs, *after), group=groups, strides=[stride] * len(space), **padding)
    return True


@move
def transposed_convolution(net: Net) -> bool:
    x = net.pick(3, 4)
    if x is None:
        return False
    batch, channels, *space = net.shapes[x]
    groups = int(net.rng.choice([g for g in (1, 2) if channels % g == 0]))
    per_group, kernel, stride = int(net.rng.choice([1, 2])), int(net.rng.choice([1, 2, 3])), int(net.rng.choice([1, 2]))
    if max(space) > 16:
        return False
    weight = net.weight((channels, per_group, *[kernel] * len(space)))
    inputs = [x, weight] + ([net.weight((groups * per_group,))] if net.rng.random() < 0.5 else [])
    after = [stride * (s - 1) + kernel for s in space]
    shape = (batch, groups * per_group, *after)
    net.add("ConvTranspose", inputs, shape, group=groups, strides=[stride] * len(space))
    return True


@move
def gemm(net: Net) -> bool:
    x = net.pick(2)
    if x is None:
        return False
    rows, inner = net.shapes[x]
    trans_a, trans_b = int(net.rng.random() < 0.15), int(net.rng.random() < 0.5)
    if trans_a:
        rows, inner = inner, rows
    outputs = int(net.rng.choice([1, 3, 8]))
    inputs = [x, net.weight((outputs, inner) if trans_b else (inner, outputs))]
    kind = net.rng.choice(["none", "vector", "matrix", "column"])
    bias = {"vector": (outputs,), "matrix": (1, outputs), "column": (rows, 1)}.get(str(kind))
    if bias is None and net.opset < 11:
        bias = (outputs,)
    if bias is not None:
        inputs.append(net.weight(bias))
    scaled = {"alpha": 0.5, "beta": 2.0} if net.rng.random() < 0.2 else {}
    net.add("Gemm", inputs, (rows, outputs), transA=trans_a, transB=trans_b, **scaled)
    return True


@move
def matmul(net: Net) -> bool:
    x = net.pick(2, 3, 4)
    if x is None:
        return False
    *ahead, rows, inner = net.shapes[x]
    outputs = int(net.rng.choice([1, 4, 6]))
    kind = net.rng.choice(["right", "left", "batched"])
    if kind == "left":
        net.add("MatMul", [net.weight((outputs, rows)), x], (*ahead, outputs, inner))
    elif kind == "batched" and ahead:
        net.add("MatMul", [x, net.weight((ahead[-1], inner, outputs))], (*ahead, rows, outputs))
    else:
        net.add("MatMul", [x, net.weight((inner, outputs))], (*ahead, rows, outputs))
    return True


@move
def computed_weight(net: Net) -> bool:
    """A weight behind Transpose, or stored in half precision behind Cast."""
    x = net.pick(2, 3)
    if x is None:
        return False
    *ahead, inner = net.shapes[x]
    outputs = int(net.rng.choice([3, 5]))
    if net.rng.random() < 0.5:
        weight = net.add("Transpose", [net.weight((outputs, inner))], None, perm=[1, 0])
    else:
        half = net.constant(net.rng.standard_normal((inner, outputs)) / 2, np.float16)
        weight = net.add("Cast", [half], None, to=FLOAT)
    net.add("MatMul", [x, weight], (*ahead, outputs))
    return True


@move
def two_layers_one_weight(net: Net) -> bool:
    """A tied weight: into a bottleneck and out of it again."""
    x = net.pick(2, 3)
    if x is None:
        return False
    *ahead, inner = net.shapes[x]
    weight = net.weight((inner, 3))
    small = net.add("MatMul", [x, weight], (*ahead, 3))
    back = net.add("Transpose", [weight], None, perm=[1, 0])
    net.add("MatMul", [small, back], (*ahead, inner))
    return True


@move
def one_tensor_ten_readers(net: Net) -> bool:
    x = net.pick(2)
    if x is None or net.shapes[x][1] < 2:
        return False
    rows, inner = net.shapes[x]
    parts = [net.add("MatMul", [x, net.weight((inner, 2))], None) for _ in range(10)]
    net.add("Concat", parts, (rows, 20), axis=1)
    return True


LAYERS: tuple[Move, ...] = (convolution, matmul, gemm)
