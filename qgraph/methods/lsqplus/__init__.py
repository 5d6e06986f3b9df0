"""LSQ+: scales, offsets and weights learned on the quantized network (Bhalgat et al., 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import method

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


@method("lsqplus", defaults=_START, trains=True)
def lsqplus(plan: QuantPlan, given: Material, *, config: LsqPlusConfig | None = None) -> QuantPlan:
    """Weights, scales and offsets trained together, 4 bits by default (Bhalgat et al., 2020)."""
    from qgraph.methods.lsqplus.initialise import initialise

    return initialise(plan, given.view, given.observed, config=config)
