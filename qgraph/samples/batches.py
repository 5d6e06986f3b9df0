"""One batch of an iterable, in any form that data loaders hand out, as arrays by name.

A batch is an array, a mapping, or fields in the order of the model's inputs with labels after them: `(x, y)`,
`(x1, x2, y)`, `((x1, x2), y)` or `({"input": x}, y)`, as a tuple or, from torch's default collate function, a list.
Anything that numpy can read is an array: tensors of torch, tensorflow and jax, data frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qgraph.errors import DataError, DataTypeError

LABELS = "labels"


def by_name(batch: Any, inputs: Sequence[ir.Value], where: str) -> dict[str, Any]:
    """The arrays of a batch by name; one array alone is called `data`, labels are called `labels`.

    Raises:
        DataError: For more fields than the model has inputs, and one for labels.
        DataTypeError: For what numpy cannot read as an array, and for labels that are no numbers.
    """
    if isinstance(batch, Mapping):
        return {str(name): as_samples(values, f"{where}: '{name}'") for name, values in batch.items()}
    fields = _fields(batch, inputs)
    if fields is None:
        return {"data": as_samples(batch, where)}
    head, rest = fields[0], list(fields[1:])
    if isinstance(head, Mapping):
        arrays = by_name(head, inputs, where)
    elif isinstance(head, (tuple, list)) and len(inputs) > 1 and len(head) == len(inputs):
        arrays = _named(head, inputs, where)
    else:
        arrays, rest = _named(fields[: len(inputs)], inputs, where), list(fields[len(inputs) :])
    if len(rest) > 1 or len(arrays) < len(inputs):
        raise DataError(
            f"{where} has {len(fields)} fields: expected arrays for the model's inputs "
            f"({', '.join(str(v.name) for v in inputs)}), and labels after them or nothing"
        )
    return arrays | ({LABELS: as_labels(rest[0], where)} if rest else {})


def is_labelled_pair(source: Any, inputs: Sequence[ir.Value]) -> bool:
    """Whether a tuple is the whole data set as `(x, y)`, not a tuple of batches: only labels have another shape."""
    if not isinstance(source, tuple) or len(source) != len(inputs) + 1 or _fields(source, inputs) is None:
        return False
    if isinstance(source[0], Mapping):
        return not isinstance(source[1], Mapping)
    first, last = np.shape(source[0]), np.shape(source[-1])
    return len(last) < len(first) or (last[:1] == first[:1] and last[1:] != first[1:])


def as_samples(values: Any, where: str) -> Any:
    """Samples as an array; a list of files stays as it is."""
    if isinstance(values, list) and values and isinstance(values[0], Path):
        return values
    return _array(values, where)


def as_labels(values: Any, where: str) -> Any:
    """Labels as an array of numbers; raises `DataTypeError` for others."""
    labels = _array(values, f"{where}: its labels")
    if labels.dtype.kind not in "biuf":
        raise DataTypeError(
            f"{where}: labels must be numbers, not a {type(values).__name__} of others; where they are not needed, "
            f"give samples alone"
        )
    return labels


def _array(values: Any, where: str) -> Any:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of torch that records gradients
        ragged = "its rows differ in length" if "inhomogeneous" in str(error) else str(error)
        raise DataTypeError(f"{where} cannot be read as an array: {ragged}") from error
    if array.dtype == object and not array.ndim:
        kind = "None" if values is None else f"of type {type(values).__name__}"
        raise DataTypeError(f"{where} cannot be read as an array: it is {kind}")
    return array


def _named(arrays: Sequence[Any], inputs: Sequence[ir.Value], where: str) -> dict[str, Any]:
    """Arrays in the order of the inputs, by their names; one sample without its axis gets it."""
    found = {}
    for value, array in zip(inputs, arrays, strict=False):
        samples = as_samples(array, f"{where}: '{value.name}'")
        found[str(value.name)] = samples[np.newaxis] if _is_single(samples, value) else samples
    return found


def _fields(batch: Any, inputs: Sequence[ir.Value]) -> Sequence[Any] | None:
    """The fields of a batch; None where it is one array (a list of samples, for example)."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return batch if isinstance(batch, tuple) and batch else None
    head = batch[0]
    if isinstance(head, (Mapping, tuple)) or (isinstance(head, list) and len(inputs) > 1):
        return batch if not isinstance(head, list) or all(map(_is_array, head)) else None
    if not _is_array(head):
        return None
    alike = len({np.shape(field) for field in batch if _is_array(field)} | {() for f in batch if not _is_array(f)}) == 1
    return None if alike and len(inputs) == 1 and not _has_rank(head, inputs[0]) else batch


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "shape")


def _has_rank(array: Any, value: ir.Value) -> bool:
    return value.shape is None or np.ndim(array) == len(value.shape)


def _is_single(samples: Any, value: ir.Value) -> bool:
    """Whether this is one sample, without the axis of the batch."""
    return value.shape is not None and not isinstance(samples, list) and samples.ndim == len(value.shape) - 1
