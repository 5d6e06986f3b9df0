"""Analytic uniform quantization on NumPy, SciPy and Numba: closed forms, root finding, bit allocation and fast kernels.

Every public name is available as `qmath.NAME`; the module behind it is imported when the name is first used.

Example:
    >>> import numpy as np
    >>> import qmath
    >>> x = np.random.default_rng(0).laplace(size=10_000)
    >>> clip = qmath.prior_clip(qmath.fit_prior(x).prior, 4)
    >>> grid = qmath.Grid.symmetric(clip, bits=4)
    >>> round(float(qmath.sqnr_db(x, qmath.fake_quantize(x, grid))), 1)
    15.2
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "allocation": ("allocate_bits", "allocate_bits_rounded", "optimal_bins"),
    "balancing": ("Balance", "balance_channels"),
    "blockwise": ("GroupGrids", "group_grids"),
    "bias": ("BiasCorrection", "bias_correction", "output_shift"),
    "clipped": ("clipped_statistics",),
    "clipping": ("gauss_clip", "laplace_clip", "prior_clip"),
    "distributions": ("Gaussian", "Laplace", "Prior"),
    "divergence": ("cosine_similarity", "kl_divergence", "power_ratio_db", "sqnr_db"),
    "empirical_clipping": (
        "ClipRange",
        "clip_method",
        "clip_methods",
        "clip_range",
        "least_error",
        "weight_clip",
        "weight_range",
    ),
    "even": ("round_evenly",),
    "error": ("exact_error", "expected_error", "midrise_levels", "midtread_levels"),
    "confidence": ("drop_bound", "drop_confidence", "share_bound", "share_confidence"),
    "fitting": ("PriorFit", "fit_prior", "goodness_of_fit", "rectified_prior"),
    "granularity": ("Granularity",),
    "grouping": ("group_search",),
    "paired_rounding": ("round_pairs",),
    "rescaling": ("Margin", "add_margin", "odd_steps", "short_steps", "significant_bits"),
    "pareto": ("Frontier", "Selection", "knapsack", "pareto_frontier"),
    "grid": ("Grid", "Rounding", "dequantize", "fake_quantize", "quantize"),
    "histogram": ("BINS", "Histogram"),
    "lookups": ("lookup_bits", "lookup_probabilities"),
    "kernels.threads": ("get_threads", "set_threads"),
    "integer_range": ("pair_range", "sum_range"),
    "learned": (
        "LsqConfiguration",
        "LsqGradients",
        "folded_offset",
        "lsq_configuration",
        "lsq_gradient_scale",
        "lsq_gradients",
        "lsq_quantize",
        "lsq_scale",
        "lsqplus_weight_scale",
        "minmax_parameters",
    ),
    "learned_mse": ("mse_parameters",),
    "prior_clipping": ("PriorRanges", "prior_ranges"),
    "equalising": ("Equalised", "ReadingLayer", "equalise_channels"),
    "soft_rounding": ("soft_round",),
    "rounding": ("Exponent", "rounding_offset", "rounding_table"),
    "moments": ("Moments", "MomentsAccumulator"),
    "second_order": ("SecondOrderRounding", "aimed_weights", "neighbour_moments", "round_second_order"),
    "staircase": ("RoundingTable",),
    "statistics": ("Statistics", "StatisticsAccumulator"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'qmath' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"qmath.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    return __all__
