"""The starting plans of Q-Rater's paper, which are also what it compares itself with.

The paper's protocol: grids are symmetric, with one scale per layer; the weights and inputs of layers are quantized;
codes are signed even after a ReLU; the first layer stays in floating point; BatchNormalization is not folded; sums and
outputs are not quantized. All grids are clipped by the same method, and rounding is to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.errors import UsageError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView, choose_layers
from qgraph.graph.tensors import root
from qgraph.observe.statistics import Observations
from qgraph.plan.grids import weight_grid
from qgraph.plan.plan import ActivationQuant, KeptFloat, LayerQuant, QuantPlan
from qgraph.plan.recipe import Recipe
from qgraph.plan.words import SEARCHED
from qgraph.running.wording import Blank, option

HISTOGRAM = 201  # bins in the public code from which the paper takes its MSE baseline
KL_HISTOGRAM = 2001


def paper_plan(
    view: GraphView,
    observed: Observations | None,
    *,
    weights: int,
    activations: int | None,
    clip: str = "mse",
    first_layer_bits: int | None = None,
    keep: Mapping[str, str] | None = None,
) -> QuantPlan:
    """Symmetric grids for every layer and its input, clipped by mse, aciq, kl or max (Table 1, Clip + RTN).

    With `first_layer_bits`, layers that read the network's inputs are quantized too. `keep` are layers to leave in
    floating point, with the reason.
    """
    kept = dict(view.skipped if keep is None else keep)
    first = {layer.name for layer in view.layers if root(layer.input).is_graph_input()}
    if first_layer_bits is None:
        kept = dict.fromkeys(first, "first layer") | kept
    chosen = [layer for layer in view.layers if layer.name not in kept]
    sites: dict[str, ActivationQuant] = {}
    layers = []
    for layer in chosen:
        of_weight, of_input = (first_layer_bits,) * 2 if layer.name in first else (weights, activations)
        layers.append(_layer(layer, int(of_weight or weights), clip))
        if of_input is not None and observed is not None and layer.has_integer_kernel:
            name = str(root(layer.input).name)
            sites.setdefault(name, _activation(name, observed[name], of_input, clip))
    return QuantPlan(
        model=view.model.digest,
        recipe="qrater",
        layers=tuple(layers),
        activations=tuple(sites.values()),
        kept_float=tuple(KeptFloat(name=name, why=why) for name, why in sorted(kept.items())),
        fold_bn=False,
    )


def starting_in_paper(
    view: GraphView, observed: Observations | None, recipe: Recipe, *, first_layer_bits: int | None = None
) -> QuantPlan:
    """`paper_plan` with the bits, the clip and the layers to keep of a recipe; raises `UsageError` for mixed bits."""
    if not isinstance(recipe.weights, int):
        raise UsageError(f"the paper's protocol has weights of one width: give {option('weights', Blank('N'))}")
    return paper_plan(
        view,
        observed,
        weights=recipe.weights,
        activations=recipe.static_bits,
        clip="mse" if recipe.clip == SEARCHED else recipe.clip,
        first_layer_bits=first_layer_bits,
        keep=choose_layers(view, recipe.keep)[1],
    )


def clip_threshold(data: NDArray[np.floating] | qmath.Histogram, *, bits: int, method: str) -> float:
    """The symmetric clip of one tensor, in its units; `mse` and `kl` use histograms like those of the baselines."""
    if method == "mse":
        return _histogram_mse(data, bits)
    options = {"bins": KL_HISTOGRAM} if method == "kl" else {}
    return float(qmath.clip_range(data, method=method, bits=bits, symmetric=True, **options).high)


def _histogram_mse(data: NDArray[np.floating] | qmath.Histogram, bits: int) -> float:
    """The best of 0.01, 0.02, ..., 0.99 max|x|, by the squared error at the centres of 201 bins over +-max|x|."""
    points, counts = (data.centers, data.counts) if isinstance(data, qmath.Histogram) else (np.ravel(data), None)
    occupied = points if counts is None else points[counts > 0]
    limit = float(np.abs(occupied).max())
    mass, edges = np.histogram(points, bins=HISTOGRAM, range=(-limit, limit), weights=counts)
    centres = (edges[:-1] + edges[1:]) / 2
    clips = np.arange(1, 100) / 100 * limit
    rounded = qmath.fake_quantize(np.tile(centres, (clips.size, 1)), qmath.Grid.symmetric(clips, bits=bits, axis=0))
    return float(clips[int(((rounded - centres) ** 2 @ mass).argmin())])


def _layer(layer: Layer, bits: int, clip: str) -> LayerQuant:
    weight = layer.weight_array()
    limit = clip_threshold(weight, bits=bits, method=clip) if weight.any() else 1.0
    grid = weight_grid(-limit, limit, bits=bits, symmetric=True)
    return LayerQuant(name=layer.name, op=layer.op, weight=grid)


def _activation(tensor: str, statistics: qmath.Statistics, bits: int, clip: str) -> ActivationQuant:
    histogram = statistics.histogram
    usable = histogram is not None and statistics.count and (statistics.min or statistics.max)
    limit = clip_threshold(histogram, bits=bits, method=clip) if usable and histogram is not None else 1.0
    middle = 2 ** (bits - 1) - 1
    scale = float(np.float32(limit / middle))
    return ActivationQuant(tensor=tensor, bits=bits, scale=scale, zero_point=middle, role="operand", symmetric=True)
