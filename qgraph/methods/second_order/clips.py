"""plan -> plan: grids of activations with the least error where the network's outputs depend on it.

Values that no output depends on may be large: corners of feature maps, positions that a mask removes. The clip of least
squared error makes room for them. With the importance w of every position (`qgraph.gradient.importance`), each grid
takes the multiple of its scale, zero point kept, that has the least E[w (Q(x) - x)^2] on the float network's values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qgraph.gradient.importance import counted
from qgraph.graph.sites import GraphView
from qgraph.plan.plan import MAX_BITS, ActivationQuant, QuantPlan
from qgraph.running.job import Job
from qgraph.running.sessions import Session, in_parallel
from qgraph.samples.dataset import Batch

Floats = NDArray[np.float32]
FACTORS = tuple(float(f) for f in np.exp2(np.arange(-8, 3) / 4))  # 0.25 .. 1.41
_VALUES = 2**16  # of every tensor and batch


def important_clips(
    plan: QuantPlan,
    view: GraphView,
    batches: Sequence[Batch],
    important: Mapping[str, NDArray[np.float32]],
    *,
    job: Job,
) -> QuantPlan:
    """The plan with scales below 8 bits chosen by weighted errors; others, and tensors without weights, stay."""
    grids = [a for a in plan.activations if _is_chosen(a) and a.tensor in important]
    names = list(dict.fromkeys(grid.tensor for grid in grids))
    if not grids:
        return plan
    session = Session(view.model.ir_model, outputs=names, threads=1)

    def one(index: int) -> list[NDArray[np.float64]]:
        values = dict(zip(names, session.run_list(batches[index].feeds), strict=True))
        weights = {name: counted(important[name], values[name]) for name in names}
        return [weighted_errors(values[grid.tensor], grid, weights[grid.tensor]) for grid in grids]

    errors = [sum(found) for found in zip(*in_parallel(one, range(len(batches)), workers=job.threads), strict=True)]
    factors = {id(grid): FACTORS[int(np.argmin(error))] for grid, error in zip(grids, errors, strict=True)}
    return plan.map_activations(lambda a: dataclasses.replace(a, scale=a.scale * factors.get(id(a), 1.0)))


def _is_chosen(grid: ActivationQuant) -> bool:
    return grid.bits < MAX_BITS and grid.rounding is None and not grid.offset


def weighted_errors(
    values: NDArray[np.float32], grid: ActivationQuant, weights: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """The sum of w (Q(x) - x)^2 over some of the values, with each of `FACTORS` times the scale."""
    rng = np.random.default_rng(0)
    chosen = np.unravel_index(rng.integers(0, values.size, min(values.size, _VALUES)), values.shape)
    x = values[chosen]
    w = np.broadcast_to(np.float32(1) if weights is None else weights, values.shape)[chosen]
    unit = np.float32(grid.scale) * (np.asarray(grid.channel_scale, np.float32)[chosen[1]] if grid.channel_scale else 1)
    qmax = np.asarray(grid.channel_qmax, np.float32)[chosen[1]] if grid.channel_bits else np.float32(grid.qmax)
    found = []
    for factor in FACTORS:
        step = unit * np.float32(factor)
        gap = np.clip(np.rint(x / step), -grid.zero_point, qmax - grid.zero_point) * step - x
        found.append(float(np.dot(np.square(gap), w)))
    return np.asarray(found)
