"""A network under construction, and the moves that make it grow.

A move takes tensors that are there and appends nodes that make new ones; it returns False where nothing fits. `MOVES`
holds one function per idea: a grouped convolution, a weight that two layers share, a branch in an If.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
_AWKWARD = (
    "s0",
    "val_0",
    "uint8:0",
    "f32:1.0",
    "int8:0",
    "入力",
    "a b",
    "x/float",
    "w.q",
    "w.s",
    "Ünï",
    "%1",
    "s1",
    "val_1",
)

Move = Callable[["Net"], bool]
MOVES: dict[str, Move] = {}


def move(function: Move) -> Move:
    MOVES[function.__name__] = function
    return function


@dataclass(slots=True)
class Net:
    """A graph under construction. `shapes` are those of the float tensors that moves may read."""

    seed: int
    opset: int
    rng: np.random.Generator
    awkward: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    count: int = 0

    def name(self) -> str:
        """A fresh tensor name: plain, or one that somebody else might want."""
        self.count += 1
        if self.awkward and self.count <= len(_AWKWARD):
            return _AWKWARD[(self.count + self.seed) % len(_AWKWARD)]
        return f"t{self.count}"

    def pick(self, *ranks: int) -> str | None:
        """A tensor of one of these ranks; late ones more often."""
        fitting = [name for name, shape in self.shapes.items() if len(shape) in ranks]
        return fitting[-1 - int(self.rng.integers(min(3, len(fitting))))] if fitting else None

    def weight(self, shape: tuple[int, ...], scale: float = 1.0) -> str:
        """A new constant, or one of the same shape that another node reads already."""
        same = [name for name, w in self.weights.items() if w.shape == shape and w.dtype == np.float32]
        if same and self.rng.random() < 0.3:
            return str(self.rng.choice(same))
        name = self.name()
        fan = max(int(np.prod(shape[1:])), 1)
        self.weights[name] = (scale * self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        return name

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        name = self.name()
        self.weights[name] = np.asarray(array, dtype)
        return name

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...] | None, **attributes: Any) -> str:
        """Append a node; its output becomes a tensor to read where `shape` is given."""
        output = self.name()
        style = self.seed % 4
        name = {0: "", 1: f"node_{self.count}", 2: "twin", 3: f"/层/{op}_{self.count}"}[style]
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        if shape is not None:
            self.shapes[output] = shape
        return output
