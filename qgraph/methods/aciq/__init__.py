"""ACIQ: analytic clipping, bits per channel and bias correction (Banner et al., 2019), and the min-max baseline.

Both run the same code, controlled by the options of the recipe; they differ in the defaults of these options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import method

if TYPE_CHECKING:
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan

_FULL_RANGE = {
    "symmetric": True,
    "clip": "max",
    "weight_clip": "max",
    "bias_correction": False,
    "allocate_bits": "none",
}


@method("minmax", defaults=_FULL_RANGE, needs=["data"])
def minmax(plan: QuantPlan, given: Material) -> QuantPlan:
    """Ranges from the smallest to the largest observed value: the plain baseline."""
    return aciq(plan, given)


@method("aciq", needs=["data"])
def aciq(plan: QuantPlan, given: Material) -> QuantPlan:
    """Analytic clips, bits per channel below 8 bits, and norm and bias correction (Banner et al., 2019)."""
    from qgraph.methods.aciq.variants import refine

    return refine(plan, given)
