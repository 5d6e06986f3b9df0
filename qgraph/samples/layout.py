"""How arrays hold samples: along which axis of each input a batch runs, and which inputs are the same for all samples.

Arrays are brought to one form, samples first, without the batch axis of the graph. What all samples share is repeated
for each (a view, which takes no memory) and fed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import DataError, UsageError
from qgraph.onnxfile.readable import type_text
from qgraph.running.wording import option

Axes = Mapping[str, "int | None"]
FIRST: Axes = MappingProxyType({})
"""Every batch along axis 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One way to read an array: `count` samples (None: the same for all) of a batch along `axis` of the input."""

    count: int | None
    axis: int | None
    first: NDArray[Any]
    """The array with its samples first."""


def check_axes(batch_axes: Mapping[str, int], inputs: Sequence[ir.Value]) -> None:
    """Raise `UsageError` for a batch axis of an unknown input, or one that the input does not have."""
    ranks = {str(v.name): None if v.shape is None else len(v.shape) for v in inputs}
    for name, axis in batch_axes.items():
        if name not in ranks:
            raise UsageError(
                f"{option('batch_axes', {name: axis})}: the model has no such input; it has {', '.join(ranks)}"
            )
        rank = ranks[name]
        if rank is not None and not 0 <= axis < rank:
            raise UsageError(f"{option('batch_axes', {name: axis})}: input '{name}' has axes 0 to {rank - 1}")


def check_tensors(inputs: Sequence[ir.Value], where: str) -> None:
    """Raise `DataError` for an input that is no tensor: a sequence, or an optional one."""
    for value in inputs:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise DataError(
                f"{where}: input '{value.name}' is a {type_text(value)}, and samples are tensors: convert the model "
                f"with tensors as its inputs, or quantize weights alone, without data, by {option('activations', None)}"
            )


def arrange(
    arrays: Mapping[str, Any], inputs: Sequence[ir.Value], batch_axes: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, int | None]] | None:
    """The arrays with their samples first, and the batch axis of every input; None if no reading fits them all.

    Among all readings, the one is taken in which the most inputs agree on a number of samples; between equals, axis 0
    comes first.
    """
    first = {str(v.shape[0]) if v.shape is not None and len(v.shape) else "None" for v in inputs}
    together = len(inputs) > 1 and len(first) == 1 and first != {"None"}  # they share a batch by name
    said = {str(v.name): 0 for v in inputs} | dict(batch_axes) if together else batch_axes
    readings = {str(v.name): _readings(arrays[str(v.name)], v, said.get(str(v.name))) for v in inputs}
    counts = dict.fromkeys(r.count for found in readings.values() for r in found if r.count is not None)
    best: tuple[int, dict[str, _Reading]] | None = None
    for count in counts:
        chosen = {name: _pick(found, count) for name, found in readings.items()}
        complete = {name: reading for name, reading in chosen.items() if reading is not None}
        covered = sum(reading.count is not None for reading in complete.values())
        if len(complete) == len(chosen) and (best is None or covered > best[0]):
            best = covered, complete
            number = count
    if best is None:
        return None
    arranged = {
        name: r.first if r.count is not None else np.broadcast_to(r.first, (number, *r.first.shape))
        for name, r in best[1].items()
    }
    return arranged, {name: reading.axis for name, reading in best[1].items()}


def batch_axes(inputs: Sequence[ir.Value], said: Mapping[str, int]) -> dict[str, int | None]:
    """The axis of every input along which a batch runs, where there are no data to tell; None: there is none.

    It is the axis that is `said`, or one that is open; among fixed sizes, that of the size that most inputs share.
    """
    dims = {str(v.name): _sizes(v) for v in inputs}
    axes = {name: said.get(name, _order(sizes)[0] if sizes else None) for name, sizes in dims.items()}
    fixed = {n: dims[n] for n, axis in axes.items() if n not in said and axis is not None and dims[n][axis] is not None}
    heads = list(dict.fromkeys(sizes[0] for sizes in fixed.values()))
    batch = max(heads, key=lambda size: sum(size in sizes for sizes in fixed.values()), default=None)
    for name, sizes in fixed.items():
        axes[name] = sizes.index(batch) if batch in sizes else None
    return axes


def _sizes(value: ir.Value) -> list[int | None]:
    return [d if isinstance(d, int) else None for d in value.shape or ()]


def place(samples: NDArray[Any], axis: int | None, name: str) -> NDArray[Any]:
    """Samples in the layout of the input: along its batch axis, or one for all."""
    if axis is None:
        if (samples[1:] != samples[:1]).any():
            raise DataError(
                f"input '{name}' takes one value for a whole batch, but the samples differ: pass {option('batch', 1)}"
            )
        return np.array(samples[0])
    return np.ascontiguousarray(np.moveaxis(samples, 0, axis))


def shaped(
    inputs: Sequence[ir.Value], shapes: Mapping[str, Sequence[int]], said: Mapping[str, int]
) -> tuple[ir.Value, ...]:
    """The inputs with the given sizes for dimensions that the model leaves open; the axis of the batch stays open.

    `said` are the axes of batches that are not to be guessed.

    Raises `UsageError` for an unknown input, and for sizes that contradict the model.
    """
    known = {str(v.name): v for v in inputs}
    for name, sizes in shapes.items():
        if name not in known:
            raise UsageError(f"{option('shapes')}: {name}: the model has no such input; it has {', '.join(known)}")
        wanted = known[name].shape
        fits = wanted is None or _fits(sizes, _sizes(known[name]))
        if not fits or any(size < 1 for size in sizes):
            raise UsageError(f"{option('shapes', {name: tuple(sizes)})} does not fit the input's shape {wanted}")
    axes = batch_axes(inputs, said) if shapes else {}
    return tuple(_with_shape(v, shapes[str(v.name)], axes[str(v.name)]) if str(v.name) in shapes else v for v in inputs)


def _with_shape(value: ir.Value, given: Sequence[int], axis: int | None) -> ir.Value:
    axis = 0 if value.shape is None else axis
    opened = value.shape is None or (axis is not None and not isinstance(value.shape[axis], int))
    sizes = [None if opened and i == axis else size for i, size in enumerate(given)]
    return ir.Value(name=value.name, type=value.type, shape=ir.Shape(sizes))


def _pick(readings: Sequence[_Reading], count: int) -> _Reading | None:
    return next((r for r in readings if r.count == count), next((r for r in readings if r.count is None), None))


def _readings(array: Any, value: ir.Value, axis: int | None) -> list[_Reading]:
    """The ways to read an array, the most likely first."""
    if isinstance(array, list) or value.shape is None or _is_image(array, value):
        return [_Reading(count=len(array), axis=0, first=array)] if np.ndim(array) or isinstance(array, list) else []
    array = np.asarray(array)
    dims = _sizes(value)
    rank, found = len(dims), []
    if axis is None and rank == 1 and dims[0] not in (None, 1):  # a vector: no batch, every sample is a run of its own
        whole = array[np.newaxis] if array.ndim == 1 else array
        found = [_Reading(count=len(whole), axis=None, first=whole)] if _fits(whole.shape[1:], dims) else []
        return found + [_Reading(count=None, axis=None, first=array) for _ in found if array.ndim == 1]
    axes = [axis] if axis is not None else _order(dims)
    if array.ndim == rank:
        for a in axes:
            if _fits(_without(array.shape, a), _without(dims, a)):
                found.append(_Reading(count=array.shape[a], axis=a, first=np.moveaxis(array, a, 0)))
            if a and dims[a] in (None, 1) and _fits(array.shape[1:], _without(dims, a)):
                found.append(_Reading(count=array.shape[0], axis=a, first=array))
    elif array.ndim == rank + 1 and rank == 0:
        found.append(_Reading(count=array.shape[0], axis=None, first=array))
    elif array.ndim == rank + 1:
        for a in axes:
            if array.shape[a + 1] == 1 and _fits(array.shape[1:], dims):
                found.append(_Reading(count=array.shape[0], axis=a, first=np.squeeze(array, a + 1)))
    if axis is None and array.shape == tuple(dims):
        found.append(_Reading(count=None, axis=None, first=array))
    return found


def _order(dims: Sequence[int | None]) -> list[int]:
    """Axes along which a batch may run, the most likely first: 0, unless it is fixed and exactly one other is open."""
    opened = [a for a, d in enumerate(dims) if d is None]
    first = opened if len(opened) == 1 and dims[0] not in (None, 1) else []
    return list(dict.fromkeys([*first, *(a for a, d in enumerate(dims) if a == 0 or d in (None, 1))]))


def _is_image(array: Any, value: ir.Value) -> bool:
    """Whether the array holds uint8 images for a float input, which are transposed before they are fed."""
    floats = value.dtype is None or value.dtype.numpy().kind == "f"
    return floats and np.ndim(array) == 4 and np.asarray(array).dtype == np.uint8


def _fits(shape: Sequence[int], dims: Sequence[int | None]) -> bool:
    return len(shape) == len(dims) and all(d is None or d == s for s, d in zip(shape, dims, strict=True))


def _without(sizes: Sequence[Any], axis: int) -> list[Any]:
    return [size for a, size in enumerate(sizes) if a != axis]
