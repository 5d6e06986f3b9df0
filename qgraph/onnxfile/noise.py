"""Inputs for a model of which only the interface is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.onnxfile.model import Model

TRIED_SIZES = (1, 2, 32, 128, 224)  # of dimensions that a model leaves open


def noise(model: Model, size: int, *, samples: int | None = None) -> dict[str, NDArray[Any]]:
    """Standard normal floats, zeros of other types and empty strings, with `size` for dimensions that are open.

    An open first dimension is `samples`, by default one or two; others have the sizes that the caller gave, if any.
    """
    first = min(size, 2) if samples is None else samples
    generator = np.random.default_rng(0)
    feeds = {}
    for value in model.input_values():
        given = model.shapes.get(str(value.name), ())
        opened = [first, *(given[1:] or [size] * len(value.shape or ()))]
        dims = [d if isinstance(d, int) else o for d, o in zip(value.shape or (), opened, strict=False)]
        kind = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        numbers = generator.standard_normal(dims) if kind.kind == "f" else np.full(dims, "" if kind.kind == "O" else 0)
        feeds[str(value.name)] = np.asarray(numbers, kind)
    return feeds
