"""A model in memory, and where it came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import onnx
import onnx_ir as ir


class Quantized(Protocol):
    """The result of a job: whatever has a quantized `model`, such as `qgraph.Result`."""

    @property
    def model(self) -> ir.Model: ...


ModelLike: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model | Model | Quantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """A node that a rewrite of `normalise` looked for but left unchanged, and why."""

    name: str
    op: str
    rewrite: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Model:
    """A checked ONNX model: its graph, its source and its size in bytes there."""

    ir_model: ir.Model
    source: str
    nbytes: int
    digest: str = ""
    """SHA-256 of what a normalised model computes: nodes, attributes, weights and interface."""
    unchanged: tuple[Unchanged, ...] = ()
    """Nodes that the rewrites of `normalise` left unchanged."""
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict, hash=False)
    """Sizes of inputs that the model leaves open, by input, as the caller gave them; noise has these."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source}, opset {self.opset}, {self.nbytes:,} bytes)"

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[Any, ...]]:
        """Pickle as ONNX; the digest is kept, since nothing is recomputed."""
        written = ir.to_proto(self.ir_model).SerializeToString()
        return _unpickled, (written, self.source, self.nbytes, self.digest, self.unchanged, self.shapes)

    @property
    def opset(self) -> int:
        return self.ir_model.opset_imports.get("", 1)

    @property
    def graph(self) -> ir.Graph:
        return self.ir_model.graph

    @property
    def normalised(self) -> bool:
        return bool(self.digest)

    def input_values(self) -> list[ir.Value]:
        """The inputs that a caller feeds: graph inputs that are not initializers."""
        return [v for v in self.graph.inputs if v.name not in self.graph.initializers]


def _unpickled(data: bytes, *others: Any) -> Model:
    names = ("source", "nbytes", "digest", "unchanged", "shapes")
    net = ir.from_proto(onnx.ModelProto.FromString(data))
    return Model(ir_model=net, **dict(zip(names, others, strict=True)))
