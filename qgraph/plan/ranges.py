"""What a plan needs to know about the values of tensors."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from qgraph.errors import DataError


class Ranges(Protocol):
    """The observed ranges of tensors."""

    def range_of(self, tensor: str) -> tuple[float, float]:
        """The smallest and the largest observed value of a tensor."""


def span(observed: Ranges, value: ir.Value) -> float:
    """The width of the observed range of a tensor, extended to include 0; 0 for a tensor that was not observed."""
    try:
        low, high = observed.range_of(str(value.name))
    except (DataError, KeyError):
        return 0.0
    return max(high, 0.0) - min(low, 0.0)
