"""ACIQ: analytic clipping, bits per channel and bias correction (Banner et al., 2019), and the min-max baseline.

Both run the same code, controlled by the options of the recipe; they differ in the defaults of these options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import InPaper, method

if TYPE_CHECKING:
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan

_FULL_RANGE = {
    "symmetric": True,
    "clip": "max",
    "weight_clip": "max",
    "rounding": "nearest",
    "bias_correction": False,
    "allocate_bits": "none",
}


_CONFIG = "qgraph.methods.aciq.config:AciqConfig"
_PAPER = (
    InPaper(
        "aciq.prior",
        "laplace",
        "no tensor is exactly Laplacian: the better of two laws is taken, and the range of least squared error where "
        "both are more than 0.25 dB from it; below 8 bits, the Laplace law stays where it measures better",
    ),
    InPaper("weight_clip", "max", "weights below 8 bits have 1.5 to 3 dB less error on a grid of least squared error"),
    InPaper("symmetric", False, "8-bit weights are symmetric: zero points would cost time, and gain nothing"),
    InPaper("aciq.means", "weights", "an integer file cannot add a fraction of a step; the expected input does more"),
    InPaper("rounding", "nearest", "below 8 bits, rounding to second order loses less, in seconds"),
    InPaper("allocate_bits", "both", "whose channels have bits of their own is decided by measuring: none may be best"),
    InPaper("aciq.quota", "bins", "a quota of bits takes the same memory; one of bins wastes some of it"),
    InPaper("group", "none", "inputs of matrices share a step in groups of 32 up to 4 bits"),
    InPaper("target_cpu", "vnni", "files must not saturate on CPUs without VNNI"),
    InPaper("format", "float", "a step for each channel of every activation has no integer kernel"),
)


@method("minmax", defaults=_FULL_RANGE, needs=["data"])
def minmax(plan: QuantPlan, given: Material) -> QuantPlan:
    """Ranges from the smallest to the largest observed value: the plain baseline."""
    return aciq(plan, given)


@method("aciq", needs=["data"], configs=[_CONFIG], paper=_PAPER)
def aciq(plan: QuantPlan, given: Material) -> QuantPlan:
    """Analytic clips, bits per channel below 8 bits, and norm and bias correction (Banner et al., 2019)."""
    from qgraph.methods.aciq.variants import refine

    return refine(plan, given)
