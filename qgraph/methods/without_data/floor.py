"""What weights of few bits can be expected to ruin, before any sample is seen.

The noises of all weights, relative to their signals, add up along a network. Measured on samples of real networks, the
outputs were 5 to 18 dB better than the sum says; below `LEAST_DB` they were at 11 dB or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from qgraph.graph.sites import GraphView
from qgraph.methods.without_data.expected import Expected
from qgraph.methods.without_data.widths import relative_noise
from qgraph.plan.plan import QuantPlan
from qgraph.running.wording import option

LEAST_DB = 4.0


def foretold_db(plan: QuantPlan, view: GraphView, expected: Mapping[str, Expected]) -> float:
    """The decibels of signal over the noise of all weights of a plan together."""
    noise = sum(relative_noise(quant, view.by_name[quant.name], expected.get(quant.name)) for quant in plan.layers)
    return -10 * math.log10(noise) if noise else math.inf


def too_few_bits(plan: QuantPlan, view: GraphView, expected: Mapping[str, Expected]) -> list[str]:
    """A warning where so few bits are likely to leave little of the outputs."""
    foretold = foretold_db(plan, view, expected)
    if foretold >= LEAST_DB:
        return []
    return [
        f"the errors of all weights together are foretold to leave {foretold:.0f} dB of the signal, and outputs that "
        f"differ from the float model's: give {option('weights', 4)} or more, or samples with {option('data')}"
    ]
