"""Calibration and evaluation data: arrays, npz, npy, folders of images, iterators of batches; and their preprocessing.

Whatever the source, `open_data` gives a `Dataset` whose `batches` are dictionaries that onnxruntime accepts. uint8
images in NHWC
become floats in NCHW divided by 255, then (x - mean) / std per channel; other arrays are fed as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any, TypeAlias
from zipfile import BadZipFile, ZipFile

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.model import Model

Array: TypeAlias = NDArray[Any]
DataLike: TypeAlias = "str | os.PathLike[str] | Array | Mapping[str, Array] | Iterable[Any] | Dataset"

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
LABELS = "labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """(x / 255 - mean) / std per channel for images, (x - mean) / std for float arrays; one number serves all."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(not s > 0 for s in self.std):
            raise DataError(f"std must be positive, not {self.std}")

    def normalise(self, images: Array, channel_axis: int) -> Array:
        channels = images.shape[channel_axis]
        shape = [1] * images.ndim
        shape[channel_axis] = -1
        for name, numbers, change in (("mean", self.mean, np.subtract), ("std", self.std, np.divide)):
            if numbers:
                if len(numbers) not in (1, channels):
                    raise DataError(f"{name} has {len(numbers)} values, the images have {channels} channels")
                images = change(images, np.asarray(numbers, np.float32).reshape(shape))
        return images


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
    """Either one part that holds all samples, or one part per given batch; see `_is_one_run` for those kept whole."""
    inputs: tuple[ir.Value, ...]
    labels: Array | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    limit: int | None = None

    @property
    def count(self) -> int:
        total = sum(_length(part) for part in self.parts)
        return total if self.limit is None else min(total, self.limit)

    def batches(self, size: int = 32) -> Iterator[Batch]:
        """Batches of `size` samples, or of the size that the model fixes; raises `DataError` on what does not fit."""
        fixed = _fixed_batch(self.inputs)
        remaining, position = self.count, 0
        for part in self.parts:
            length = min(_length(part), remaining)
            if _is_one_run(part):
                yield from self._whole(part, position, length)
                position += length
                remaining -= length
                continue
            for start in range(0, length, fixed or size):
                stop = min(start + (fixed or size), length)
                chunk = {name: values[start:stop] for name, values in part.items()}
                labels = None if self.labels is None else self.labels[position : position + stop - start]
                yield from self._prepared(chunk, position, labels, fixed)
                position += stop - start
            remaining -= length

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """The samples at these positions as one batch, in this order; they must be of one size."""
        if any(_is_one_run(part) for part in self.parts):
            raise DataError(f"{self.description}: inputs of whole runs cannot be drawn sample by sample")
        ends = np.cumsum([_length(part) for part in self.parts])
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
            samples = np.stack([_read_image(path, value) for path in samples])
        array = _to_input(np.asarray(samples), value, self.preprocessing)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1))) if array.ndim else 0
            raise DataError(
                f"{self.description}: sample {position + bad} of input '{value.name}' has NaN or infinite "
                f"values; clean the data first"
            )
        _check_shape(array, value, self.description)
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
    parts, description = _read(source, inputs, limit)
    labels = [part[LABELS] for part in parts if LABELS in part]
    parts = [{k: v for k, v in part.items() if k != LABELS} for part in parts]
    if not parts or not sum(_length(part) for part in parts):
        raise DataError(f"{description} holds no samples")
    if labels and len(labels) != len(parts):
        raise DataError(f"{description}: some batches have labels and others have not")
    joined = np.concatenate([np.asarray(x).reshape(-1) for x in labels]) if labels else None
    if joined is not None and len(joined) != sum(_length(part) for part in parts):
        raise DataError(f"{description}: {len(joined)} labels for {sum(_length(part) for part in parts)} samples")
    return Dataset(
        description=description,
        parts=parts,
        inputs=inputs,
        labels=joined,
        preprocessing=preprocessing or Preprocessing(),
        limit=limit,
    )


def _read(source: Any, inputs: tuple[ir.Value, ...], limit: int | None) -> tuple[list[dict[str, Any]], str]:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise DataError(f"no such data file or folder: {path}")
        return [_read_path(path, inputs, limit)], str(path)
    if isinstance(source, np.ndarray):
        return [_assign({"data": source}, inputs, "the given array")], "the given array"
    if isinstance(source, Mapping):
        return [_assign(dict(source), inputs, "the given mapping")], "the given mapping"
    if isinstance(source, Iterable):
        return _read_batches(source, inputs, limit), "the given batches"
    raise DataError(f"data must be a path, arrays or an iterable of batches, not {type(source).__name__}")


def _read_path(path: Path, inputs: tuple[ir.Value, ...], limit: int | None) -> dict[str, Any]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        if len(inputs) != 1:
            raise DataError(
                f"a folder of images feeds one input, the model has {len(inputs)}: use an .npz with one array each"
            )
        return {str(inputs[0].name): files}
    try:
        if path.suffix == ".npy":
            return _assign({"data": np.load(path, mmap_mode="r", allow_pickle=False)}, inputs, str(path))
        return _assign(_read_npz(path, limit), inputs, str(path))
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"cannot read {path} as .npz or .npy: {error}") from error
    except BadZipFile as error:
        raise DataError(f"cannot read {path}: it is not a valid .npz archive") from error


def _read_npz(path: Path, limit: int | None) -> dict[str, Array]:
    """The first `limit` rows of every array, without unpacking the rest."""
    arrays = {}
    with ZipFile(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as file:
                arrays[entry.removesuffix(".npy")] = _read_rows(file, limit)
    return arrays


def _read_rows(file: IO[bytes], limit: int | None) -> Array:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    if fortran_order:
        whole = np.frombuffer(file.read(), dtype).reshape(shape[::-1]).T
        return whole[:limit] if shape else whole
    rows = (min(shape[0], limit or shape[0]), *shape[1:]) if shape else ()
    return np.frombuffer(file.read(math.prod(rows) * dtype.itemsize), dtype).reshape(rows)


def _assign(arrays: dict[str, Any], inputs: tuple[ir.Value, ...], where: str) -> dict[str, Any]:
    """Give every model input its array: by name, or for one input `images` or the only array."""
    names = [str(v.name) for v in inputs]
    labels = {LABELS: np.asarray(arrays[LABELS])} if LABELS in arrays and LABELS not in names else {}
    candidates = {k: v for k, v in arrays.items() if k not in labels}
    if all(name in candidates for name in names):
        chosen = {name: candidates[name] for name in names}
    elif len(names) == 1 and ("images" in candidates or len(candidates) == 1):
        chosen = {names[0]: candidates.get("images", next(iter(candidates.values())))}
    else:
        raise DataError(
            f"{where} has the arrays {', '.join(arrays) or '(none)'}; the model's inputs are {', '.join(names)}: "
            f"name the arrays like the inputs"
        )
    fits = all(_fits(np.shape(chosen[str(v.name)]), v) for v in inputs)
    if _is_one_run(chosen) and (not fits or _share_a_batch(inputs)):
        lengths = {name: len(array) if np.ndim(array) else 0 for name, array in chosen.items()}
        raise DataError(f"{where}: the inputs have different numbers of samples: {lengths}")
    return {**chosen, **labels}


def _read_batches(source: Iterable[Any], inputs: tuple[ir.Value, ...], limit: int | None) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    seen = 0
    for index, batch in enumerate(source):
        arrays = dict(batch) if isinstance(batch, Mapping) else {"data": np.asarray(batch)}
        part = _assign(arrays, inputs, f"batch {index}")
        if _length(part):
            parts.append(part)
            seen += _length(part)
        if limit is not None and seen >= limit:
            break
    return parts


def _to_input(array: Array, value: ir.Value, preprocessing: Preprocessing) -> Array:
    """The array in the type and layout of the model's input."""
    wanted = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    if array.dtype.kind not in "fiub":
        raise DataError(f"input '{value.name}' needs numbers, the data are of type {array.dtype}")
    shape = value.shape
    if array.dtype == np.uint8 and wanted.kind == "f" and array.ndim == 4:
        images = preprocessing.normalise(array.astype(np.float32) / np.float32(255), channel_axis=3)
        if shape is None or not _is_channels_last(shape, images.shape):
            images = images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images, dtype=wanted)
    if wanted.kind == "f" and array.ndim >= 2:
        array = preprocessing.normalise(array, channel_axis=1)
    if wanted.kind in "iu" and array.dtype.kind == "f":
        raise DataError(f"input '{value.name}' needs {wanted} values, the data are {array.dtype}")
    return np.require(array, dtype=wanted, requirements="C")


def _is_channels_last(shape: ir.Shape, image: tuple[int, ...]) -> bool:
    """Whether an input of this shape takes NHWC images: its last dimension is the channels, its second is not."""
    return len(shape) == 4 and shape[3] == image[3] and shape[1] != image[3]


def _check_shape(array: Array, value: ir.Value, description: str) -> None:
    if value.shape is None:
        return
    wanted = [d if isinstance(d, int) else None for d in value.shape]
    fits = array.ndim == len(wanted) and all(w in (None, a) for w, a in zip(wanted[1:], array.shape[1:], strict=True))
    if not fits:
        text = ", ".join("?" if w is None else str(w) for w in wanted)
        raise DataError(
            f"{description}: samples of shape {list(array.shape[1:])} do not fit input '{value.name}' of shape [{text}]"
        )


def _read_image(path: Path, value: ir.Value) -> Array:
    """One image as uint8 HWC, in the size and colours that the model's input fixes."""
    from PIL import Image

    shape = value.shape
    dims = [d if isinstance(d, int) else None for d in shape] if shape is not None and len(shape) == 4 else [None] * 4
    channels_last = dims[3] in (1, 3) and dims[1] not in (1, 3)
    channels, height, width = (dims[3], dims[1], dims[2]) if channels_last else (dims[1], dims[2], dims[3])
    with _readable_image(path), Image.open(path) as image:
        picture = image.convert("L" if channels == 1 else "RGB")
        if height and width:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, np.uint8)
    return pixels.reshape(*pixels.shape[:2], -1)


def _image_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with _readable_image(path), Image.open(path) as image:
        return image.size


@contextmanager
def _readable_image(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # UnidentifiedImageError is one too
        raise DataError(f"cannot read the image {path}: {error}") from error


def _equal_shapes(arrays: Mapping[Any, Any]) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive samples that fit one array (images in a folder may differ in size)."""
    first = next(iter(arrays.values()))
    if not isinstance(first, list):
        yield 0, len(first)
        return
    position = 0
    for _, group in groupby(first, key=_image_size):
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
    return samples if isinstance(samples[0], Path) else np.stack(samples)


def _is_one_run(part: Mapping[str, Any]) -> bool:
    """Whether the arrays are the inputs of one run, that cannot be cut into samples.

    They are where they do not share a first dimension: scalars, parameters, or states beside a batch.
    """
    lengths = {len(v) if isinstance(v, list) or np.ndim(v) else None for k, v in part.items() if k != LABELS}
    return len(lengths) > 1 or None in lengths


def _fits(shape: tuple[int, ...], value: ir.Value) -> bool:
    """Whether an array of this shape is what the input takes, its first dimension included."""
    wanted = value.shape
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(
        not isinstance(w, int) or w == s for w, s in zip(wanted, shape, strict=True)
    )


def _share_a_batch(inputs: tuple[ir.Value, ...]) -> bool:
    """Whether the model itself says, by the name of their first dimension, that the inputs have as many samples."""
    first = {str(v.shape[0]) if v.shape is not None and len(v.shape) else "None" for v in inputs}
    return len(inputs) > 1 and len(first) == 1 and first != {"None"}


def _length(part: Mapping[str, Any]) -> int:
    if _is_one_run(part):
        return 1
    return min((len(values) for values in part.values()), default=0)
