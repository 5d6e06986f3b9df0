"""What the tests of the report show: an allocation with made-up sensitivities, so that no network has to run."""

from __future__ import annotations

import numpy as np

from qgraph.graph.sites import GraphView
from qgraph.jobs.result import Result
from qgraph.methods.zeroq.allocate import Allocation, frontier, within
from qgraph.methods.zeroq.sensitivity import LayerSensitivity, Sensitivity

BITS = (2, 3, 4, 6, 8)


def allocation(result: Result) -> Allocation:
    """Bits for the layers of a plan within five bits on average; Omega falls by about a factor of four a bit."""
    rng = np.random.default_rng(0)
    view = GraphView(result.net)
    sizes = {q.name: view.by_name[q.name].weight_array().size for q in result.plan.layers}
    table = Sensitivity(
        model=result.net.digest,
        data="made up",
        samples=1,
        outputs=(("logits", "kl"),),
        layers=tuple(
            LayerSensitivity(
                name=quant.name,
                op=quant.op,
                weights=sizes[quant.name],
                bits=BITS,
                nbytes=tuple(-(-k * sizes[quant.name] // 8) for k in BITS),
                measured=tuple(float(v) for v in np.exp(rng.normal(size=len(BITS))) / 4.0 ** np.array(BITS)),
                predicted=tuple(float(v) for v in 4.0 ** -np.array(BITS)),
            )
            for quant in result.plan.layers
        ),
    )
    front = frontier(table)
    chosen = within(front, table, 5 / 8 * sum(sizes.values()))
    return Allocation(sensitivity=table, frontier=front, chosen=chosen)
