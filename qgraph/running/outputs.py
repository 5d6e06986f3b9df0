"""What onnxruntime returns as one array: outputs need not be tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def arrays_of(output: Any) -> list[NDArray[Any]]:
    """The arrays of a tensor that was asked for by name: one, or one for every step of the loop around it."""
    return list(output) if isinstance(output, list) else [output]


def as_array(output: Any) -> NDArray[Any]:
    """An output as one array: tensors as they are, a sequence stacked, a map as its values in the order of its keys.

    Parts of a sequence that differ in shape are put end to end; what is absent (an optional output) is empty.
    """
    if isinstance(output, np.ndarray):
        return output
    if isinstance(output, Mapping):
        return np.array([output[key] for key in sorted(output)])
    if not isinstance(output, list):
        return np.array([] if output is None else output)
    parts = [as_array(part) for part in output]
    if len({part.shape for part in parts}) == 1:
        return np.stack(parts)
    return np.concatenate([part.reshape(-1) for part in parts]) if parts else np.array([])
