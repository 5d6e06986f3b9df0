"""What can go wrong when a graph is differentiated."""

from __future__ import annotations

from qgraph.errors import QGraphError


class GradientError(QGraphError):
    """The gradient asked for does not exist or cannot be built; the message says where and what to do."""


class MissingRuleError(GradientError):
    """A node on the way from the loss to a requested tensor has an operator without a gradient rule."""
