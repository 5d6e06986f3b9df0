"""ZeroQ: data distilled from the BatchNormalization statistics of a network, and bits per layer (Cai et al., 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import InPaper, method

if TYPE_CHECKING:
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan


_CONFIGS = ("qgraph.methods.zeroq.config:DistillConfig", "qgraph.methods.zeroq.config:MixConfig")
_QUICK = "60 steps with a falling rate give ranges of the same accuracy in an eighth of the time"
_CLIPS = "analytic ranges and grids of least squared error lose less below 8 bits"
_GROUPS = "a tenth of the measurements of Appendix A's numbers"
_PAPER = (
    InPaper("zeroq.steps", 500, _QUICK),
    InPaper("zeroq.rate", 0.5, _QUICK),
    InPaper("zeroq.decay", "plateau", _QUICK),
    InPaper("zeroq.settled", 0.0, "a batch is done when its ranges no longer move"),
    InPaper("zeroq.start", "uniform", "ranges are better from noise with the spectrum of images (the text: Gaussian)"),
    InPaper("zeroq.per", "image", "ranges are better where the statistics of the batch are matched"),
    InPaper("zeroq.pixels", False, "where mean and std of images are given, what no pixel can be is cut off"),
    InPaper("zeroq.laws", False, "BatchNormalization gives many ranges exactly, without samples"),
    InPaper("zeroq.count", 32, "128 where weights are rounded by them, fewer of large networks"),
    InPaper("clip", "max", _CLIPS),
    InPaper("weight_clip", "max", _CLIPS),
    InPaper("symmetric", False, "8-bit weights are symmetric: zero points would cost time, and gain nothing"),
    InPaper("bias_correction", False, "the expected shift of outputs is known without samples as well"),
    InPaper("rounding", "nearest", "below 8 bits, rounding to second order on the distilled samples loses less"),
    InPaper("allocate_bits", "none", "bits per channel are tried as well where bits per layer are fixed"),
    InPaper("group", "none", "inputs of matrices share a step in groups of 32 up to 4 bits"),
    InPaper("target_cpu", "vnni", "files must not saturate on CPUs without VNNI"),
    InPaper("bits", (2, 4, 8), "files hold every width from 2 to 8 bits in that many"),
    InPaper("search", "groups", "sums of sensitivities need no further runs of the network"),
    InPaper("zeroq.b", 5, _GROUPS),
    InPaper("zeroq.t1", 200, _GROUPS),
    InPaper("zeroq.t2", 5, _GROUPS),
)


@method("zeroq", after="aciq", configs=_CONFIGS, paper=_PAPER)
def zeroq(plan: QuantPlan, given: Material) -> QuantPlan:
    """Grids of ACIQ on samples that are distilled from the model where none are given (Cai et al., 2020)."""
    return plan
