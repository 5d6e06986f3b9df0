"""Calibration and evaluation data: arrays, npz, npy, folders of images, iterators of batches.

From any of these, `open_data` makes a `Dataset`, whose `batches` are dictionaries that onnxruntime accepts.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from qgraph.errors import DataError
from qgraph.onnxfile.model import Model
from qgraph.running.outputs import as_array
from qgraph.samples.batches import LABELS, as_labels
from qgraph.samples.images import image_size, read_image
from qgraph.samples.layout import check_tensors, place, shaped
from qgraph.samples.preprocessing import Preprocessing, check_shape, to_input
from qgraph.samples.read import Array, arranged, is_one_run, length, read_parts

DataLike: TypeAlias = "str | os.PathLike[str] | Array | Mapping[str, Array] | Iterable[Any] | Dataset"


class Reading(TypedDict, total=False):
    """How samples are read: the options of `open_data`, for every function that opens data."""

    preprocessing: Preprocessing | None
    limit: int | None
    batch: int | None
    batch_axes: Mapping[str, int] | None
    shapes: Mapping[str, Sequence[int]] | None
    labels: ArrayLike | None


def take_reading(options: dict[str, Any]) -> Reading:
    """Take the options of `open_data` out of others."""
    return Reading(**{name: options.pop(name) for name in Reading.__annotations__ if name in options})  # type: ignore[typeddict-item]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Feeds of one run: the first `count` samples are real, the rest pad a fixed batch to `padded_to`.

    `labels` are one number per sample; labels of any other shape are `targets`.
    """

    feeds: dict[str, Array]
    count: int
    labels: Array | None = None
    targets: Array | None = None
    padded_to: int | None = None

    def real(self, output: Any) -> Array:
        """An output of this run as an array, without the results of the padding."""
        array = as_array(output)
        padded = array.ndim and len(array) == self.padded_to
        return array[: self.count] if padded else array


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Dataset:
    """Samples that fit one model, read batch by batch; iterating again gives the same batches.

    `qgraph.open_data` makes one. `count` is the number of samples, `labelled` whether they have labels, and `batches`
    yields the feeds of each run.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> from qgraph.onnxfile.load import load
        >>> demo = files("qgraph") / "demo_assets"
        >>> data = qgraph.open_data(demo / "digits_test.npz", load(demo / "digits.onnx"), limit=40)
        >>> data.count, data.labelled, [batch.count for batch in data.batches(32)]
        (40, True, [32, 8])
    """

    description: str
    parts: Sequence[Mapping[str, Any]]
    """Either one part that holds all samples, or one part per given batch; see `is_one_run` for those kept whole."""
    inputs: tuple[ir.Value, ...]
    labels: Array | None = None
    targets: Array | None = None
    """Labels that are not one number per sample; only a user's metric and the verdict read them."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    limit: int | None = None
    layouts: Mapping[str, int | None] = field(default_factory=dict)
    """The axis of each input along which a batch runs, by default 0; None: one value for all samples."""
    batch: int | None = None
    """Samples per run, if the model takes no other number."""
    rows: tuple[int, ...] | None = None
    """Positions in `parts` of the samples of this dataset, ascending; None: all of them."""

    def __repr__(self) -> str:
        labels = "" if not self.labelled else " with labels" if self.labels is not None else " with targets"
        shapes = [f"{v.name} {self._shape(str(v.name))}" for v in self.inputs]
        return f"Dataset({self.count} samples{labels} of {', '.join(shapes)}, from {self.description})"

    def _shape(self, name: str) -> str:
        """The shape of the first part that is given for an input."""
        values = self.parts[0].get(name) if self.parts else None
        return "files" if values is None or isinstance(values, list) else str(np.shape(values))

    @property
    def count(self) -> int:
        """Number of samples."""
        total = sum(length(part) for part in self.parts) if self.rows is None else len(self.rows)
        return total if self.limit is None else min(total, self.limit)

    @property
    def labelled(self) -> bool:
        """Whether there are labels, of any shape."""
        return self.labels is not None or self.targets is not None

    def choose(self, positions: Iterable[int]) -> Dataset:
        """Return the samples at these positions only, in ascending order; nothing is copied.

        Example:
            >>> from importlib.resources import files
            >>> import qgraph
            >>> from qgraph.onnxfile.load import load
            >>> demo = files("qgraph") / "demo_assets"
            >>> data = qgraph.open_data(demo / "digits_calibration.npz", load(demo / "digits.onnx"))
            >>> data.choose([5, 0, 7]).count
            3
        """
        chosen = sorted(int(p) for p in positions)
        rows = tuple(chosen) if self.rows is None else tuple(self.rows[p] for p in chosen)
        return replace(self, rows=rows, limit=None)

    @property
    def digest(self) -> str:
        """Identifies the model's feeds and the labels; reads all samples."""
        found = sha256()
        for batch in self.batches():
            for name, array in sorted(batch.feeds.items()):
                found.update(f"{name} {array.dtype.str} {array.shape} {batch.count}".encode())
                found.update(
                    np.ascontiguousarray(array).data if array.dtype.kind != "O" else repr(array.tolist()).encode()
                )
            for labels in (batch.labels, batch.targets):
                found.update(b"" if labels is None else labels.tobytes())
        return found.hexdigest()

    def batches(self, size: int = 32) -> Iterator[Batch]:
        """Yield batches of `size` samples, or of the size that the model fixes.

        Raises:
            DataError: When samples do not fit the model's inputs, or hold NaN or infinite values.

        Example:
            >>> from importlib.resources import files
            >>> import qgraph
            >>> from qgraph.onnxfile.load import load
            >>> demo = files("qgraph") / "demo_assets"
            >>> data = qgraph.open_data(demo / "digits_calibration.npz", load(demo / "digits.onnx"), limit=40)
            >>> [batch.feeds["input"].shape for batch in data.batches(32)]
            [(32, 1, 8, 8), (8, 1, 8, 8)]
        """
        fixed = _fixed_batch(self.inputs, self.layouts)
        size = self.batch or size
        remaining, begin = self.count, 0
        for part in self.parts:
            places = self._places(begin, begin + length(part))[:remaining]
            if is_one_run(part):
                yield from self._whole(part, begin, len(places))
            else:
                for start in range(0, len(places), fixed or size):
                    chosen = places[start : start + (fixed or size)]
                    chunk = {name: _rows(values, [p - begin for p in chosen]) for name, values in part.items()}
                    yield from self._prepared(chunk, chosen, fixed)
            begin += length(part)
            remaining -= len(places)

    def _places(self, begin: int, end: int) -> Sequence[int]:
        """Positions of the samples of one part that belong to these data."""
        if self.rows is None:
            return range(begin, end)
        return self.rows[bisect_left(self.rows, begin) : bisect_left(self.rows, end)]

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the samples at these positions as one batch, in this order.

        Raises:
            DataError: When the samples differ in size, or are given as whole runs.
        """
        if any(is_one_run(part) for part in self.parts):
            raise DataError(f"{self.description}: inputs of whole runs cannot be drawn sample by sample")
        indices = indices if self.rows is None else [self.rows[i] for i in indices]
        ends = np.cumsum([length(part) for part in self.parts])
        places = [
            (int(p), int(i - (ends[p - 1] if p else 0))) for i in indices for p in [np.searchsorted(ends, i, "right")]
        ]
        chunk = {str(v.name): _gathered(self.parts, str(v.name), places) for v in self.inputs}
        batches = list(self._prepared(chunk, [int(i) for i in indices], None))
        if len(batches) != 1:
            raise DataError(f"{self.description}: samples of different sizes cannot form a batch")
        return batches[0]

    def _prepared(self, chunk: Mapping[str, Any], places: Sequence[int], fixed: int | None) -> Iterator[Batch]:
        arrays = {v.name: chunk[str(v.name)] for v in self.inputs}
        for start, stop in _equal_shapes(arrays):
            feeds = {}
            for value in self.inputs:
                samples = self._prepare(arrays[value.name][start:stop], value, places[start:stop])
                axis = self.layouts.get(str(value.name), 0)
                filled = _padded(samples, fixed)
                feeds[str(value.name)] = filled if axis == 0 else place(filled, axis, str(value.name))
            real = stop - start
            padded_to = fixed if fixed is not None and real < fixed else None
            labels, targets = (
                None if known is None else known[list(places[start:stop])] for known in (self.labels, self.targets)
            )
            yield Batch(feeds=feeds, count=real, labels=labels, targets=targets, padded_to=padded_to)

    def _whole(self, part: Mapping[str, Any], position: int, length: int) -> Iterator[Batch]:
        """The inputs of one run as they are, if the limit leaves room for it."""
        if length:
            feeds = {str(v.name): self._prepare(part[str(v.name)], v, [position]) for v in self.inputs}
            yield Batch(feeds=feeds, count=1)

    def _prepare(self, samples: Any, value: ir.Value, places: Sequence[int]) -> Array:
        if isinstance(samples, list):
            samples = np.stack([read_image(path, value) for path in samples])
        array = to_input(np.asarray(samples), value, self.preprocessing)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1))) if array.ndim else 0
            sample = places[min(bad, len(places) - 1)]
            raise DataError(
                f"{self.description}: sample {sample} of input '{value.name}' has NaN or infinite values; clean the "
                f"data first"
            )
        if self.layouts.get(str(value.name), 0) == 0:
            check_shape(array, value, self.description)
        return array


def open_data(
    source: DataLike,
    model: Model,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    batch: int | None = None,
    batch_axes: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    labels: ArrayLike | None = None,
) -> Dataset:
    """Open data for `model`: a path, an array, a mapping of arrays, or an iterable of batches (read once and kept).

    Batches are arrays, mappings or pairs `(x, y)` of samples and labels, as data loaders yield them; `(x, y)` may also
    be all the data. Anything that numpy reads is an array, such as a tensor of torch. An `.npz` holds an array named
    like the model's input, or else `images`, or else a single array, and optionally `labels`; a folder holds images. A
    `Dataset` is taken as it is, except that `limit`, `preprocessing` and `labels` apply if given.

    Args:
        source: where the samples are.
        model: the model that reads them, as `qgraph.onnxfile.load.load` returns it.
        preprocessing: the normalisation of images and float arrays.
        limit: use the first samples only.
        batch: the number of samples that the model takes at a time, if it takes no other.
        batch_axes: by input, the axis of the samples, where it cannot be told from the sizes.
        shapes: by input, the sizes that the model leaves open.
        labels: one number per sample for accuracy, or anything else that a metric of yours reads; these take
            precedence over labels in the source.

    Raises:
        DataError: When the source is missing or empty, or does not fit the model's inputs.
        UsageError: When `batch_axes` or `shapes` do not fit the model's inputs.

    Example:
        >>> from importlib.resources import files
        >>> import numpy as np
        >>> import qgraph
        >>> from qgraph.onnxfile.load import load
        >>> model = load(files("qgraph") / "demo_assets" / "digits.onnx")
        >>> data = qgraph.open_data(np.zeros((5, 8, 8, 1), np.uint8), model)
        >>> data.count, next(data.batches()).feeds["input"].shape
        (5, (5, 1, 8, 8))
        >>> pairs = ((np.zeros((2, 1, 8, 8), np.float32), np.array([3, 7])) for _ in range(3))
        >>> qgraph.open_data(pairs, model)
        Dataset(6 samples with labels of input (2, 1, 8, 8), from the given batches)
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, not {limit}")
    if isinstance(source, Dataset):
        fewer = source if limit is None else replace(source, limit=min(limit, source.count))
        fewer = fewer if preprocessing is None else replace(fewer, preprocessing=preprocessing)
        return fewer if labels is None else _with_labels(fewer, [labels], sum(map(length, fewer.parts)))
    inputs = shaped(model.input_values(), shapes or {}, batch_axes or {})
    check_tensors(inputs, model.source)
    parts, description = read_parts(source, inputs, limit, batch_axes or {})
    parts, layouts = arranged(parts, inputs, description, batch_axes or {})
    given = [part[LABELS] for part in parts if LABELS in part] if labels is None else [labels]
    parts = [{k: v for k, v in part.items() if k != LABELS} for part in parts]
    samples = sum(map(length, parts))
    if not samples:
        raise DataError(f"{description} holds no samples")
    if labels is None and given and len(given) != len(parts):
        raise DataError(f"{description}: some batches have labels and others do not")
    found = Dataset(
        description=description,
        parts=parts,
        inputs=inputs,
        preprocessing=preprocessing or Preprocessing(),
        limit=limit,
        layouts=layouts,
        batch=batch,
    )
    if labels is not None and limit is not None:
        held = as_labels(labels, description)
        given = [held[:samples] if np.ndim(held) else held]  # the reader took the first `limit` samples
    return _with_labels(found, given, samples)


def _with_labels(data: Dataset, labels: list[Any], samples: int) -> Dataset:
    """The data with these labels of its `samples`, part by part."""
    arrays = [as_labels(given, data.description) for given in labels]
    one_each, others = _joined(arrays, samples, data.description)
    return replace(data, labels=one_each, targets=others)


def _joined(arrays: list[Array], samples: int, description: str) -> tuple[Array | None, Array | None]:
    """(labels, targets): labels if they are one number per sample, otherwise targets."""
    if not arrays:
        return None, None
    if sum(x.size for x in arrays) == samples:
        return np.concatenate([x.reshape(-1) for x in arrays]), None
    count = sum(len(x) if x.ndim else 1 for x in arrays)
    if count != samples:
        raise DataError(f"{description}: {count} labels for {samples} samples")
    return None, np.concatenate(arrays)


def _equal_shapes(arrays: Mapping[Any, Any]) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive samples that fit in one array (images in a folder may differ in size)."""
    first = next(iter(arrays.values()))
    if not isinstance(first, list):
        yield 0, len(first)
        return
    position = 0
    for _, group in groupby(first, key=image_size):
        length = sum(1 for _ in group)
        yield position, position + length
        position += length


def _rows(values: Any, places: Sequence[int]) -> Any:
    """The samples at these positions: a view if they are adjacent."""
    if len(places) and places[-1] - places[0] == len(places) - 1:
        return values[places[0] : places[-1] + 1]
    return [values[p] for p in places] if isinstance(values, list) else values[list(places)]


def _padded(samples: Array, fixed: int | None) -> Array:
    if fixed is None or len(samples) == fixed:
        return samples
    return np.concatenate([samples, np.repeat(samples[-1:], fixed - len(samples), axis=0)])


def _fixed_batch(inputs: tuple[ir.Value, ...], layouts: Mapping[str, int | None]) -> int | None:
    if all(layouts.get(str(v.name), 0) is None for v in inputs):
        return 1
    axes = [(v, layouts.get(str(v.name), 0)) for v in inputs if v.shape is not None and len(v.shape) > 0]
    sizes = {v.shape[axis] for v, axis in axes if axis is not None and v.shape is not None}
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
