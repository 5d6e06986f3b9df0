"""Calibration and evaluation data: arrays, npz, npy, folders of images, iterators of batches.

Whatever the source, `open_data` gives a `Dataset` whose `batches` are dictionaries that onnxruntime accepts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.onnxfile.model import Model
from qgraph.samples.images import image_size, read_image
from qgraph.samples.preprocessing import Preprocessing, check_shape, to_input
from qgraph.samples.read import LABELS, Array, is_one_run, length, read_parts

DataLike: TypeAlias = "str | os.PathLike[str] | Array | Mapping[str, Array] | Iterable[Any] | Dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Feeds of one run; the first `count` samples are real, the rest fill a fixed batch up to `padded_to`."""

    feeds: dict[str, Array]
    count: int
    labels: Array | None = None
    padded_to: int | None = None

    def real(self, array: Array) -> Array:
        """An output of this run without what the padding computed."""
        return array[: self.count] if array.ndim and len(array) == self.padded_to else array


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Samples that fit one model, read batch by batch; iterating twice gives the same batches."""

    description: str
    parts: Sequence[Mapping[str, Any]]
    """Either one part that holds all samples, or one part per given batch; see `is_one_run` for those kept whole."""
    inputs: tuple[ir.Value, ...]
    labels: Array | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    limit: int | None = None

    @property
    def count(self) -> int:
        total = sum(length(part) for part in self.parts)
        return total if self.limit is None else min(total, self.limit)

    def batches(self, size: int = 32) -> Iterator[Batch]:
        """Batches of `size` samples, or of the size that the model fixes; raises `DataError` on what does not fit."""
        fixed = _fixed_batch(self.inputs)
        remaining, position = self.count, 0
        for part in self.parts:
            available = min(length(part), remaining)
            if is_one_run(part):
                yield from self._whole(part, position, available)
                position += available
                remaining -= available
                continue
            for start in range(0, available, fixed or size):
                stop = min(start + (fixed or size), available)
                chunk = {name: values[start:stop] for name, values in part.items()}
                labels = None if self.labels is None else self.labels[position : position + stop - start]
                yield from self._prepared(chunk, position, labels, fixed)
                position += stop - start
            remaining -= available

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """The samples at these positions as one batch, in this order; they must be of one size."""
        if any(is_one_run(part) for part in self.parts):
            raise DataError(f"{self.description}: inputs of whole runs cannot be drawn sample by sample")
        ends = np.cumsum([length(part) for part in self.parts])
        places = [
            (int(p), int(i - (ends[p - 1] if p else 0))) for i in indices for p in [np.searchsorted(ends, i, "right")]
        ]
        chunk = {str(v.name): _gathered(self.parts, str(v.name), places) for v in self.inputs}
        labels = None if self.labels is None else self.labels[np.asarray(indices)]
        batches = list(self._prepared(chunk, 0, labels, None))
        if len(batches) != 1:
            raise DataError(f"{self.description}: samples of different sizes cannot form a batch")
        return batches[0]

    def _prepared(
        self, chunk: Mapping[str, Any], position: int, labels: Array | None, fixed: int | None
    ) -> Iterator[Batch]:
        arrays = {v.name: chunk[str(v.name)] for v in self.inputs}
        for start, stop in _equal_shapes(arrays):
            feeds = {}
            for value in self.inputs:
                samples = self._prepare(arrays[value.name][start:stop], value, position + start)
                feeds[str(value.name)] = _padded(samples, fixed)
            real = stop - start
            padded_to = fixed if fixed is not None and real < fixed else None
            yield Batch(
                feeds=feeds, count=real, labels=None if labels is None else labels[start:stop], padded_to=padded_to
            )

    def _whole(self, part: Mapping[str, Any], position: int, length: int) -> Iterator[Batch]:
        """The inputs of one run as they are, where there is room for one more."""
        if length:
            feeds = {str(v.name): self._prepare(part[str(v.name)], v, position) for v in self.inputs}
            yield Batch(feeds=feeds, count=1)

    def _prepare(self, samples: Any, value: ir.Value, position: int) -> Array:
        if isinstance(samples, list):
            samples = np.stack([read_image(path, value) for path in samples])
        array = to_input(np.asarray(samples), value, self.preprocessing)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1))) if array.ndim else 0
            raise DataError(
                f"{self.description}: sample {position + bad} of input '{value.name}' has NaN or infinite "
                f"values; clean the data first"
            )
        check_shape(array, value, self.description)
        return array


def open_data(
    source: DataLike,
    model: Model,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> Dataset:
    """Data for `model` from a path, arrays, a mapping of arrays, or an iterable of batches (read once and kept).

    An `.npz` holds an array named like the model's input, else `images`, else the only array; and optionally `labels`.
    Raises `DataError` when the source is missing, empty, or does not fit the model's inputs.
    """
    if isinstance(source, Dataset):
        return source
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, not {limit}")
    inputs = tuple(model.input_values())
    parts, description = read_parts(source, inputs, limit)
    labels = [part[LABELS] for part in parts if LABELS in part]
    parts = [{k: v for k, v in part.items() if k != LABELS} for part in parts]
    if not parts or not sum(length(part) for part in parts):
        raise DataError(f"{description} holds no samples")
    if labels and len(labels) != len(parts):
        raise DataError(f"{description}: some batches have labels and others have not")
    joined = np.concatenate([np.asarray(x).reshape(-1) for x in labels]) if labels else None
    if joined is not None and len(joined) != sum(length(part) for part in parts):
        raise DataError(f"{description}: {len(joined)} labels for {sum(length(part) for part in parts)} samples")
    return Dataset(
        description=description,
        parts=parts,
        inputs=inputs,
        labels=joined,
        preprocessing=preprocessing or Preprocessing(),
        limit=limit,
    )


def _equal_shapes(arrays: Mapping[Any, Any]) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive samples that fit one array (images in a folder may differ in size)."""
    first = next(iter(arrays.values()))
    if not isinstance(first, list):
        yield 0, len(first)
        return
    position = 0
    for _, group in groupby(first, key=image_size):
        length = sum(1 for _ in group)
        yield position, position + length
        position += length


def _padded(samples: Array, fixed: int | None) -> Array:
    if fixed is None or len(samples) == fixed:
        return samples
    return np.concatenate([samples, np.repeat(samples[-1:], fixed - len(samples), axis=0)])


def _fixed_batch(inputs: tuple[ir.Value, ...]) -> int | None:
    sizes = {v.shape[0] for v in inputs if v.shape is not None and len(v.shape) > 0}
    fixed = {s for s in sizes if isinstance(s, int) and s > 0}
    return fixed.pop() if len(fixed) == 1 and len(sizes) == 1 else None


def _gathered(parts: Sequence[Mapping[str, Any]], name: str, places: list[tuple[int, int]]) -> Any:
    """The samples at (part, position): an array, or a list of files."""
    if len(parts) == 1 and isinstance(parts[0][name], np.ndarray):
        return parts[0][name][[position for _, position in places]]
    samples = [parts[part][name][position] for part, position in places]
    if isinstance(samples[0], Path):
        return samples
    if len({np.shape(sample) for sample in samples}) > 1:
        raise DataError(f"input '{name}': samples of different sizes cannot form a batch")
    return np.stack(samples)
