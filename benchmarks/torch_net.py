"""Run a network from an ONNX file eagerly in PyTorch, to compare gradients and times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

Tensors = dict[str, Any]


class TorchNet:
    """Runs the nodes of a normalised graph one by one."""

    def __init__(self, net: ir.Model) -> None:
        self.nodes = list(net.graph)
        self.constants = {
            name: torch.from_numpy(np.array(v.const_value.numpy())) for name, v in net.graph.initializers.items()
        }
        self.integers = {n: v.tolist() for n, v in self.constants.items() if v.dtype == torch.int64}

    def __call__(self, feeds: Tensors) -> Tensors:
        """Run the network and return every tensor of the graph by name."""
        values = {**self.constants, **feeds}
        for node in self.nodes:
            inputs = [None if v is None else values[v.name] for v in node.inputs]
            values[node.outputs[0].name] = _OPERATORS[node.op_type](self, node, inputs)
        return values

    def integer(self, node: ir.Node, index: int) -> Any:
        """A constant integer input as Python numbers."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None else self.integers[value.name]


def distillation_loss(values: Tensors, layers: list[tuple[str, Any, Any]]) -> Any:
    """Eq. 3 with the statistics of each image; `layers` are tensor, mean and standard deviation."""
    total = 0.0
    for name, mean, std in layers:
        x = values[name]
        off_mean = x.mean((2, 3)) - mean
        off_std = (x.var((2, 3), unbiased=False) + 1e-6).sqrt() - std
        total = total + ((off_mean**2).sum() + (off_std**2).sum()) / x.shape[0]
    return total


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    given = node.attributes.get(name)
    return default if given is None else given.value


def _window(node: ir.Node, spatial: int) -> tuple[list[int], list[int], list[int]]:
    pads = list(_attribute(node, "pads", [0] * 2 * spatial))
    if pads[:spatial] != pads[spatial:]:
        raise NotImplementedError(f"{node.name}: asymmetric pads")
    ones = [1] * spatial
    return list(_attribute(node, "strides", ones)), pads[:spatial], list(_attribute(node, "dilations", ones))


def _conv(net: TorchNet, node: ir.Node, x: list[Any]) -> Any:
    strides, pads, dilations = _window(node, x[1].ndim - 2)
    run = (F.conv1d, F.conv2d, F.conv3d)[x[1].ndim - 3]
    bias = x[2] if len(x) > 2 else None
    return run(x[0], x[1], bias, strides, pads, dilations, _attribute(node, "group", 1))


def _batch_norm(net: TorchNet, node: ir.Node, x: list[Any]) -> Any:
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], False, 0.0, _attribute(node, "epsilon", 1e-5))


def _average_pool(net: TorchNet, node: ir.Node, x: list[Any]) -> Any:
    strides, pads, _ = _window(node, 2)
    return F.avg_pool2d(x[0], list(_attribute(node, "kernel_shape", None)), strides, pads)


def _gemm(net: TorchNet, node: ir.Node, x: list[Any]) -> Any:
    return F.linear(x[0], x[1] if _attribute(node, "transB", 0) else x[1].T, x[2] if len(x) > 2 else None)


def _slice(net: TorchNet, node: ir.Node, x: list[Any]) -> Any:
    starts = net.integer(node, 1) or _attribute(node, "starts", None)  # attributes before opset 10
    ends = net.integer(node, 2) or _attribute(node, "ends", None)
    axes = net.integer(node, 3) or _attribute(node, "axes", list(range(len(starts))))
    steps = net.integer(node, 4) or [1] * len(starts)
    index = [slice(None)] * x[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, None if end > 2**31 else end, step)
    return x[0][tuple(index)]


def _pad(net: TorchNet, node: ir.Node, x: list[Any]) -> Any:
    pads, ndim = net.integer(node, 1), x[0].ndim
    return F.pad(x[0], [pads[a + side * ndim] for a in reversed(range(ndim)) for side in (0, 1)])


def _clip(net: TorchNet, node: ir.Node, x: list[Any]) -> Any:
    return torch.clamp(x[0], x[1], x[2])


_OPERATORS: dict[str, Callable[[TorchNet, ir.Node, list[Any]], Any]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "AveragePool": _average_pool,
    "Gemm": _gemm,
    "Slice": _slice,
    "Pad": _pad,
    "Clip": _clip,
    "Relu": lambda net, node, x: torch.relu(x[0]),
    "Sigmoid": lambda net, node, x: torch.sigmoid(x[0]),
    "Exp": lambda net, node, x: torch.exp(x[0]),
    "Add": lambda net, node, x: x[0] + x[1],
    "Sub": lambda net, node, x: x[0] - x[1],
    "Mul": lambda net, node, x: x[0] * x[1],
    "Div": lambda net, node, x: x[0] / x[1],
    "GlobalAveragePool": lambda net, node, x: x[0].mean((2, 3), keepdim=True),
    "Flatten": lambda net, node, x: x[0].flatten(1),
    "Transpose": lambda net, node, x: x[0].permute(_attribute(node, "perm", None)),
    "Reshape": lambda net, node, x: x[0].reshape([x[0].shape[i] if d == 0 else d for i, d in enumerate(x[1].tolist())]),
    "Concat": lambda net, node, x: torch.cat(x, _attribute(node, "axis", 0)),
    "Softmax": lambda net, node, x: torch.softmax(x[0], _attribute(node, "axis", -1)),
    "Shape": lambda net, node, x: torch.tensor(x[0].shape),
    "Gather": lambda net, node, x: x[0].select(_attribute(node, "axis", 0), int(x[1])),
    "Unsqueeze": lambda net, node, x: x[0].unsqueeze((net.integer(node, 1) or _attribute(node, "axes", None))[0]),
    "Identity": lambda net, node, x: x[0],
}
