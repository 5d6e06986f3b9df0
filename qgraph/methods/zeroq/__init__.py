"""ZeroQ: data distilled from a network's own BatchNormalization statistics."""

from qgraph.methods.zeroq.distill import DistillConfig, Distilled, distill

__all__ = ["DistillConfig", "Distilled", "distill"]
