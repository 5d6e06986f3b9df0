"""The time of qmath's solvers: python -m benchmarks.solvers

Each row has a job, its median time and, if there is one, the target in milliseconds. Compilation is not counted (it is
cached on disk after the first call). The last line says how far the stepped frontier can be from the optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

import qmath
from benchmarks.common import arguments, in_turn, report

Job = Callable[[], Any]


def network(layers: int = 152, *, common_unit: bool = True) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Costs and sizes of 1 to 8 bits per layer: sensitivities that fall about fourfold per bit, and sizes in bytes.

    Without `common_unit`, sizes have no common divisor and layers are more alike, so that there are too many totals.
    """
    rng = np.random.default_rng(0)
    bits = np.arange(1, 9)
    spread, noise = (1.5, 0.3) if common_unit else (0.5, 0.1)
    sizes = rng.lognormal(11, 1, layers).astype(int)[:, None] * bits / 8
    costs = rng.lognormal(0, spread, (layers, 1)) * 4.0**-bits * rng.uniform(1 - noise, 1 + noise, (layers, 8))
    return costs, sizes if common_unit else np.sort(sizes * rng.uniform(0.9, 1.1, sizes.shape), axis=1)


def integer_programme(costs: NDArray[np.float64], sizes: NDArray[np.float64], budget: float) -> float:
    """The same optimum by scipy.optimize.milp."""
    solved = optimize.milp(
        costs.ravel(),
        integrality=np.ones(costs.size),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(np.kron(np.eye(len(costs)), np.ones(costs.shape[1])), 1, 1),
            optimize.LinearConstraint(sizes.ravel()[None], -np.inf, budget),
        ],
        options={"mip_rel_gap": 0},
    )
    return float(solved.fun)


def jobs() -> dict[str, tuple[Job, float | None]]:
    """Every job with its target in milliseconds."""
    rng = np.random.default_rng(0)
    scales, widths = rng.uniform(0.1, 2.0, (100_000, 1)), np.arange(2, 9)
    activations = qmath.Histogram.of(rng.laplace(size=500_000))
    weights = rng.standard_t(5, (256, 1152)).astype(np.float32)
    alpha = rng.lognormal(size=2048)
    costs, sizes = network()
    rough_costs, rough_sizes = network(common_unit=False)
    budget = float(sizes[:, 3].sum())
    rows: dict[str, tuple[Job, float | None]] = {
        "optimal clip, 100,000 channels x 2-8 bits, Laplace": (lambda: qmath.laplace_clip(scales, widths), 50),
        "optimal clip, 100,000 channels x 2-8 bits, Gaussian": (lambda: qmath.gauss_clip(scales, widths), 50),
        "frontier, 152 layers x 8, exact": (lambda: qmath.pareto_frontier(costs, sizes, steps=100_000), 1000),
        "frontier, 152 layers x 8, 100,000 steps": (lambda: qmath.pareto_frontier(rough_costs, rough_sizes), 1000),
        "knapsack, 152 layers x 8, one budget": (lambda: qmath.knapsack(costs, sizes, budget), None),
        "  the same by scipy.optimize.milp": (lambda: integer_programme(costs, sizes, budget), None),
        "bits of 2,048 channels": (lambda: qmath.allocate_bits(alpha, bits=4), None),
    }
    for bits in (4, 8):
        rows[f"least-squares clip, 256 x 1152 weights, {bits} bits"] = (
            lambda b=bits: qmath.weight_clip(weights, bits=b),
            100,
        )
    for method in qmath.clip_methods():
        rows[f"range by '{method}', histogram of 4,096 bins, 8 bits"] = (
            lambda m=method: qmath.clip_range(activations, method=m, bits=8),
            None,
        )
    return rows


def main() -> None:
    options = arguments(__doc__)
    table = jobs()
    seconds = in_turn({name: job for name, (job, _) in table.items()}, runs=5)
    rows = [
        {
            "solver": name,
            "ms": 1000 * seconds[name],
            "target ms": target,
            "times faster": None if not target else target / 1000 / seconds[name],
        }
        for name, (_, target) in table.items()
    ]
    frontier = qmath.pareto_frontier(*network(common_unit=False))
    gaps = frontier.gaps / frontier.costs
    rows.append(
        {
            "solver": f"relative gap on steps: median {np.median(gaps):.1e}, largest {gaps.max():.1e}",
            "ms": None,
            "target ms": None,
            "times faster": None,
        }
    )
    report("Solvers", rows, json_path=options.json)


if __name__ == "__main__":
    main()
