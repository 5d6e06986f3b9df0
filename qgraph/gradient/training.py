"""The backward graph that onnxruntime-training's GradientGraphBuilder makes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def is_available() -> bool:
    """Whether the installed onnxruntime is a build with training."""
    return False


def with_gradients(net: ir.Model, loss: ir.Value, wrt: Sequence[ir.Value]) -> ir.Model:
    raise NotImplementedError
