"""Outlier channels of dynamic layers: moved from operands into weights, or multiplied apart."""
