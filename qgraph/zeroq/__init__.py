"""ZeroQ: data distilled from a network's own BatchNormalization statistics."""

from qgraph.zeroq.distill import DistillConfig, Distilled, distill

__all__ = ["DistillConfig", "Distilled", "distill"]
