"""Inputs for a model of which only the interface is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.onnxfile.model import Model

TRIED_SIZES = (1, 2, 32, 128, 224)  # of dimensions that a model leaves open


def noise(model: Model, size: int, *, samples: int | None = None) -> dict[str, NDArray[Any]]:
    """Standard normal floats and zeros of other types, with `size` for dimensions that the model leaves open.

    An open first dimension is `samples`, by default one or two.
    """
    first = min(size, 2) if samples is None else samples
    generator = np.random.default_rng(0)
    feeds = {}
    for value in model.input_values():
        dims = [d if isinstance(d, int) else size if i else first for i, d in enumerate(value.shape or ())]
        kind = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        numbers = generator.standard_normal(dims) if kind.kind == "f" else np.zeros(dims)
        feeds[str(value.name)] = np.asarray(numbers, kind)
    return feeds
