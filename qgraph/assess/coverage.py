"""Gaps in the samples: inputs that never change, branches never taken, narrow ranges, raw pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from qgraph.assess.layers_in_file import InFile
from qgraph.errors import ModelError
from qgraph.observe.propagation import Moments
from qgraph.observe.statistics import MAX_BATCH, Observations
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import Session
from qgraph.running.wording import images_normalised
from qgraph.samples.dataset import Dataset

LOOKED_AT = 64  # samples, at most
BEYOND = 1.0  # how far outside the calibrated range values must lie, in widths of that range
ENOUGH = 256  # the fewest values that define a range
_PIXELS = (30.0, 255.0)  # the largest value of samples that look like bytes
_SHARES = (0.5, 1.0)  # the same for bytes divided by 255
_BLANK = 0.01  # variance of images in 0..1 that hardly show anything
_QUIETER = 3.0  # ratio of variances: what BatchNormalization expects to observed
_LOUDER = 4.0  # ratio of root mean squares: observed to what BatchNormalization expects


def unseen(net: Model, samples: Dataset, moments: Callable[[], Mapping[str, Moments]]) -> list[str]:
    """Warnings about the samples that calibrate `net`; `moments` gives those of BatchNormalization."""
    few = samples.choose(range(min(samples.count, LOOKED_AT)))
    if few.count < 2:
        return []
    ranges = _ranges(few)
    constant = [name for name, (low, high, size) in ranges.items() if low == high and size > 1]
    said = [
        f"input '{name}' is {ranges[name][0]:g} throughout all samples, so that nothing that depends on it is "
        f"calibrated: give samples in which it changes as it will in use"
        for name in constant
        if name not in _changing(samples, constant)
    ]
    return [*said, *_branches(net, few), *_unnormalised(net, few, ranges, moments)]


def beyond(layers: Iterable[InFile], observed: Observations, samples: Dataset) -> list[str]:
    """A warning where values of held-out samples lie far outside the calibrated ranges."""
    reached = {layer.tensor: (layer.low, layer.high) for layer in layers}
    inputs = {name: (low, high) for name, (low, high, _) in _ranges(samples).items()}
    left: dict[str, float] = {}
    for tensor, (low, high) in {**reached, **inputs}.items():
        seen = observed.tensors.get(tensor)
        if seen is None or seen.count < ENOUGH or not seen.min < seen.max:
            continue
        left[tensor] = max(float(seen.min) - low, high - float(seen.max)) / float(seen.max - seen.min)
    far = sorted((t for t, spans in left.items() if spans > BEYOND), key=lambda t: -left[t])
    if not far:
        return []
    worst = far[0]
    low, high = {**reached, **inputs}[worst]
    own = [f"'{name}'" for name in inputs if name in far] or [f"'{name}'" for name in inputs]
    known = observed.tensors[worst]
    return [
        f"{len(far)} ranges do not hold for held-out samples: '{worst}' goes from {low:.4g} to {high:.4g} there, and "
        f"was calibrated on {float(known.min):.4g} to {float(known.max):.4g}; give more samples of the input "
        f"{', '.join(own)}, of every kind that the model will meet"
    ]


def _ranges(samples: Dataset) -> dict[str, tuple[float, float, int]]:
    """The lowest and highest value of every float input, and how many values it has per sample."""
    found: dict[str, tuple[float, float, int]] = {}
    for batch in samples.batches(MAX_BATCH):
        for name, array in batch.feeds.items():
            if array.dtype.kind == "f" and array.size:
                low, high = float(array.min()), float(array.max())
                known = found.get(name, (low, high, array.size // max(len(array) if array.ndim else 1, 1)))
                found[name] = (min(known[0], low), max(known[1], high), known[2])
    return found


def _changing(samples: Dataset, names: list[str]) -> set[str]:
    """The inputs, of those constant in the first samples, that change in the others."""
    if not names:
        return set()
    return {name for name, (low, high, _) in _ranges(samples).items() if name in names and low < high}


def _branches(net: Model, samples: Dataset) -> list[str]:
    deciding = {str(node.name): node.inputs[0] for node in net.graph if node.op_type == "If" and node.domain == ""}
    open_ones = {name: str(value.name) for name, value in deciding.items() if value is not None}
    inner = [t for t in open_ones.values() if t not in {str(v.name) for v in net.graph.inputs}]
    taken: dict[str, set[bool]] = {name: set() for name in open_ones}
    try:
        session = Session(net.ir_model, outputs=inner, threads=1) if inner else None
        for batch in samples.batches(1):
            seen = {**batch.feeds, **({} if session is None else session.run(batch.feeds))}
            for name, tensor in open_ones.items():
                taken[name] |= {bool(v) for v in np.ravel(seen[tensor])} if tensor in seen else {True, False}
    except (ModelError, KeyError):
        return []
    inputs = ", ".join(f"'{value.name}'" for value in net.input_values())
    return [
        f"the {'else' if next(iter(way)) else 'then'} branch of If '{name}' was never taken: nothing in it or behind "
        f"it was calibrated for that; give samples of {inputs} that take it"
        for name, way in taken.items()
        if len(way) == 1
    ]


def _unnormalised(
    net: Model,
    samples: Dataset,
    ranges: Mapping[str, tuple[float, float, int]],
    moments: Callable[[], Mapping[str, Moments]],
) -> list[str]:
    pixels = {n: (low, high) for n, (low, high, _) in ranges.items() if low >= 0 and _looks_like_pixels(high)}
    known = moments() if pixels else {}
    first = next((str(o.name) for node in net.graph for o in node.outputs if o.name in known), None)
    if first is None:
        return []
    try:
        session = Session(net.ir_model, outputs=[first], threads=1)
        results = [session.run_list(batch.feeds)[0].astype(np.float64) for batch in samples.batches(1)]
    except ModelError:
        return []
    name, (low, high) = next(iter(pixels.items()))
    blank = high <= 1 and np.mean([np.var(batch.feeds[name]) for batch in samples.batches(1)]) < _BLANK
    if blank:
        return []
    if high > 1:
        power = float(np.mean([np.mean(np.square(result)) for result in results]))
        off, what = np.sqrt(power / max(float(np.mean(known[first].power)), 1e-12)) / _LOUDER, "expects"
    else:
        off, what = _less_varied(results, known[first]) / _QUIETER, "expects them to vary"
    if off < 1:
        return []
    times = f"{off * _LOUDER:.1f} times less" if high > 1 else f"{off * _QUIETER:.0f} times more"
    return [
        f"the samples look unnormalised: input '{name}' goes from {low:g} to {high:g}, and the BatchNormalization of "
        f"'{first}' {what} {times}; give {images_normalised()} with images in uint8, or samples as the model was "
        f"trained on"
    ]


def _looks_like_pixels(high: float) -> bool:
    """Whether the largest value of samples is that of bytes, or of bytes divided by 255."""
    return _PIXELS[0] < high <= _PIXELS[1] or _SHARES[0] < high <= _SHARES[1]


def _less_varied(results: list[NDArray[np.float64]], expected: Moments) -> float:
    """How many times smaller the variance of a result's channels is than expected, in the median."""
    variance = np.hstack([np.moveaxis(result, 1, 0).reshape(result.shape[1], -1) for result in results]).var(axis=1)
    return float(np.median(expected.variance / np.maximum(variance, 1e-12)))
