"""LSQ+: scales, offsets and weights learned on the quantized network (Bhalgat et al., 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import InPaper, method

if TYPE_CHECKING:
    from qgraph.methods.lsqplus.config import LsqPlusConfig
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan

_START = {
    "weights": 4,
    "activations": 4,
    "symmetric": True,
    "clip": "max",
    "weight_clip": "max",
    "bias_correction": False,
}


_PAPER = (
    InPaper("edge_bits", "same", "the first and last layers hold few of the weights"),
    InPaper("per_channel", False, "a scale for each channel costs nothing at run time"),
    InPaper("lsqplus.configuration", 4, "a tensor that cannot be negative needs no offset, and no subtraction for it"),
    InPaper("lsqplus.linear", "symmetric", "an offset costs nothing there either"),
    InPaper(
        "lsqplus.label_weight",
        1.0,
        "half of the loss is the distance from the float model's outputs, which need no labels",
    ),
)


@method(
    "lsqplus",
    defaults=_START,
    trains=True,
    configs=["qgraph.methods.lsqplus.config:LsqPlusConfig"],
    paper=_PAPER,
)
def lsqplus(plan: QuantPlan, given: Material, *, config: LsqPlusConfig | None = None) -> QuantPlan:
    """Weights, scales and offsets trained together, 4 bits by default (Bhalgat et al., 2020)."""
    from qgraph.methods.lsqplus.initialise import initialise

    return initialise(plan, given.view, given.observed, config=config)
