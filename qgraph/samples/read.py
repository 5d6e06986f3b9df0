"""Samples as they are given: a path, arrays, a mapping or batches become parts, dictionaries from input to array."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias
from zipfile import BadZipFile, ZipFile

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import DataError, DataNotFoundError, DataTypeError
from qgraph.running.wording import Blank, option
from qgraph.samples.batches import LABELS, by_name, is_labelled_pair
from qgraph.samples.images import IMAGE_SUFFIXES
from qgraph.samples.layout import arrange, check_axes

Array: TypeAlias = NDArray[Any]


def read_parts(
    source: Any, inputs: tuple[ir.Value, ...], limit: int | None, batch_axes: Mapping[str, int]
) -> tuple[list[dict[str, Any]], str]:
    """The arrays as they are given, by input, batch by batch; and a description of the source."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise DataNotFoundError(f"no such data file or folder: {path}")
        return [_read_path(path, inputs, None if batch_axes else limit)], str(path)
    if isinstance(source, Mapping) or hasattr(source, "__array__") or is_labelled_pair(source, inputs):
        where = "the given mapping" if isinstance(source, Mapping) else "the given array"
        where = "the given arrays" if isinstance(source, tuple) else where
        return [_assign(by_name(source, inputs, where), inputs, where)], where
    if isinstance(source, Iterable) or hasattr(source, "__getitem__"):  # the latter: a Dataset of torch
        return _read_batches(source, inputs, limit, batch_axes), "the given batches"
    raise DataTypeError(f"data must be a path, arrays or an iterable of batches, not {type(source).__name__}")


def _read_path(path: Path, inputs: tuple[ir.Value, ...], limit: int | None) -> dict[str, Any]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        if len(inputs) != 1:
            raise DataError(
                f"a folder of images feeds one input, but the model has {len(inputs)}: use an .npz with one array each"
            )
        return {str(inputs[0].name): files}
    try:
        if path.suffix == ".npy":
            return _assign({"data": np.load(path, mmap_mode="r", allow_pickle=False)}, inputs, str(path))
        return _assign(_read_npz(path, limit if _samples_first(inputs) else None), inputs, str(path))
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"cannot read {path} as .npz or .npy: {error}") from error
    except BadZipFile as error:
        raise DataError(f"cannot read {path}: it is not a valid .npz archive") from error


def _samples_first(inputs: tuple[ir.Value, ...]) -> bool:
    """Whether samples can only run along the first axis: a single input, with no other axis that is open or 1."""
    shape = inputs[0].shape if len(inputs) == 1 else None
    others_fixed = shape is not None and all(isinstance(size, int) and size > 1 for size in shape[1:])
    return bool(shape) and others_fixed and not isinstance(shape[0] if shape else 1, int)


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
    """Assign an array to every input of the model: by name, or for a single input `images` or the only array."""
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
    return {**chosen, **labels}


def arranged(
    parts: list[dict[str, Any]], inputs: tuple[ir.Value, ...], where: str, batch_axes: Mapping[str, int]
) -> tuple[list[dict[str, Any]], dict[str, int | None]]:
    """The parts with their samples first, and the batch axis of every input (None: the same for all samples).

    Parts that are one run each, whose inputs do not share their samples, stay as they are.
    """
    check_axes(batch_axes, inputs)
    found = [arrange(part, inputs, batch_axes) for part in parts]
    known = [one for one in found if one is not None]
    if known and len(known) == len(parts) and all(layouts == known[0][1] for _, layouts in known):
        labels = [{LABELS: part[LABELS]} if LABELS in part else {} for part in parts]
        return [arrays | label for (arrays, _), label in zip(known, labels, strict=True)], known[0][1]
    for part in parts:
        chosen = {str(v.name): part[str(v.name)] for v in inputs}
        fits = all(_fits(np.shape(chosen[str(v.name)]), v) for v in inputs)
        if is_one_run(chosen) and (not fits or _share_a_batch(inputs)):
            lengths = {name: len(array) if np.ndim(array) else 0 for name, array in chosen.items()}
            raise DataError(
                f"{where}: the inputs have different numbers of samples: {lengths}; say with "
                f"{option('batch_axes', {Blank('NAME'): 1})} where samples do not run along axis 0"
            )
    return parts, {str(v.name): 0 for v in inputs}


def _read_batches(
    source: Iterable[Any], inputs: tuple[ir.Value, ...], limit: int | None, batch_axes: Mapping[str, int]
) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    seen = 0
    for index, batch in enumerate(source):
        part = _assign(by_name(batch, inputs, f"batch {index}"), inputs, f"batch {index}")
        found = arrange(part, inputs, batch_axes)
        count = length(part if found is None else found[0])
        if count:
            parts.append(part)
            seen += count
        if limit is not None and seen >= limit:
            break
    return parts


def is_one_run(part: Mapping[str, Any]) -> bool:
    """Whether the arrays are the inputs of one run, which cannot be divided into samples.

    That is so if they do not share a first dimension: scalars, parameters, or states beside a batch.
    """
    lengths = {len(v) if isinstance(v, list) or np.ndim(v) else None for k, v in part.items() if k != LABELS}
    return len(lengths) > 1 or None in lengths


def _fits(shape: tuple[int, ...], value: ir.Value) -> bool:
    """Whether an array of this shape fits the input, its first dimension included."""
    wanted = value.shape
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(
        not isinstance(w, int) or w == s for w, s in zip(wanted, shape, strict=True)
    )


def _share_a_batch(inputs: tuple[ir.Value, ...]) -> bool:
    """Whether the model says, by the name of their first dimension, that the inputs have equally many samples."""
    first = {str(v.shape[0]) if v.shape is not None and len(v.shape) else "None" for v in inputs}
    return len(inputs) > 1 and len(first) == 1 and first != {"None"}


def length(part: Mapping[str, Any]) -> int:
    if is_one_run(part):
        return 1
    return min((len(values) for values in part.values()), default=0)
