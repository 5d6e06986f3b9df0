"""What is known of the values of tensors before there is a plan."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from qgraph.errors import DataError


class Ranges(Protocol):
    """What is known of the values of tensors."""

    def range_of(self, tensor: str) -> tuple[float, float]:
        """The least and the largest value of a tensor."""


def span(observed: Ranges, value: ir.Value) -> float:
    """How far a grid with zero on it reaches, over all that was observed of a tensor; 0 for one that was not."""
    try:
        low, high = observed.range_of(str(value.name))
    except (DataError, KeyError):
        return 0.0
    return max(high, 0.0) - min(low, 0.0)
