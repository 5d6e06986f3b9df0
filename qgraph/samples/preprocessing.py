"""Samples in the type and layout of a model's input.

uint8 images in NHWC become floats in NCHW divided by 255, then (x - mean) / std per channel; other arrays keep their
layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qgraph.errors import DataError
from qgraph.samples.read import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Normalisation: (x / 255 - mean) / std per channel for images, (x - mean) / std for float arrays.

    `mean` and `std` hold one number per channel, or are one for all; empty means none. They are in the units of x / 255
    for uint8 images, otherwise of x.

    Raises:
        DataError: For a std that is not positive.

    Example:
        >>> import numpy as np
        >>> import qgraph
        >>> half = qgraph.Preprocessing(mean=(0.5,), std=(0.25,))
        >>> half.normalise(np.array([[0.5, 1.0]], np.float32), channel_axis=1).tolist()
        [[0.0, 2.0]]
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(getattr(self, name), name))
        if any(not s > 0 for s in self.std):
            raise DataError(f"std must be positive, not {self.std}")

    def normalise(self, images: Array, channel_axis: int) -> Array:
        """Return (images - mean) / std, with the channels of `images` along `channel_axis`.

        Raises:
            DataError: When mean or std have neither one value nor one per channel.

        Example:
            >>> import numpy as np
            >>> import qgraph
            >>> scaled = qgraph.Preprocessing(mean=(0.5,), std=(0.25,)).normalise(np.ones((1, 3, 2, 2)), channel_axis=1)
            >>> float(scaled.max())
            2.0
        """
        channels = images.shape[channel_axis]
        shape = [1] * images.ndim
        shape[channel_axis] = -1
        for name, numbers, change in (("mean", self.mean, np.subtract), ("std", self.std, np.divide)):
            if numbers:
                if len(numbers) not in (1, channels):
                    raise DataError(f"{name} has {len(numbers)} values, but the images have {channels} channels")
                images = change(images, np.asarray(numbers, np.float32).reshape(shape))
        return images

    def limits(self, shape: Sequence[int]) -> tuple[Array, Array] | None:
        """What pixels 0 and 255 become in an input of this shape, laid to broadcast along it.

        None where that is unknown: of inputs that hold no images, without a mean or a std, or with a mean that is not
        in units of x / 255.

        Example:
            >>> import qgraph
            >>> low, high = qgraph.Preprocessing(mean=(0.5,), std=(0.25,)).limits((8, 3, 32, 32))
            >>> float(low.min()), float(high.max())
            (-2.0, 2.0)
        """
        count = max(len(self.mean), len(self.std))  # 0: nothing is known
        axes = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in (1, 3, 4) and count in (1, shape[axis])]
        if not axes or any(not 0 <= m <= 1 for m in self.mean):
            return None
        ends = (np.full([n if i == axes[0] else 1 for i, n in enumerate(shape)], v, np.float32) for v in (0, 1))
        low, high = (self.normalise(end, channel_axis=axes[0]) for end in ends)
        return low, high


def to_input(array: Array, value: ir.Value, preprocessing: Preprocessing) -> Array:
    """The array in the type and layout of the model's input."""
    if value.dtype == ir.DataType.STRING:
        return _strings(array, value)
    wanted = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    if array.dtype.kind not in "fiub":
        raise DataError(f"input '{value.name}' needs numbers, but the data are of type {array.dtype}")
    shape = value.shape
    if array.dtype == np.uint8 and wanted.kind == "f" and array.ndim == 4:
        images = preprocessing.normalise(array.astype(np.float32) / np.float32(255), channel_axis=3)
        if shape is None or not _is_channels_last(shape, images.shape):
            images = images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images, dtype=wanted)
    if wanted.kind == "f" and array.ndim >= 2:
        array = preprocessing.normalise(array, channel_axis=1)
    if wanted.kind in "iu" and array.dtype.kind == "f":
        raise DataError(f"input '{value.name}' needs {wanted} values, but the data are {array.dtype}")
    return np.require(array, dtype=wanted, requirements="C")


def _strings(array: Array, value: ir.Value) -> Array:
    """The strings as Python objects, which onnxruntime takes."""
    if array.dtype.kind not in "UO":
        raise DataError(f"input '{value.name}' needs strings, but the data are of type {array.dtype}")
    return array.astype(object)


def _is_channels_last(shape: ir.Shape, image: tuple[int, ...]) -> bool:
    """Whether an input of this shape takes NHWC images: its last dimension is the channels, its second is not."""
    return len(shape) == 4 and shape[3] == image[3] and shape[1] != image[3]


def check_shape(array: Array, value: ir.Value, description: str) -> None:
    if value.shape is None:
        return
    wanted = [d if isinstance(d, int) else None for d in value.shape]
    fits = array.ndim == len(wanted) and all(w in (None, a) for w, a in zip(wanted[1:], array.shape[1:], strict=True))
    if not fits:
        text = ", ".join("?" if w is None else str(w) for w in wanted)
        raise DataError(
            f"{description}: samples of shape {list(array.shape[1:])} do not fit input '{value.name}' of shape [{text}]"
        )


def _numbers(values: object, name: str) -> tuple[float, ...]:
    """One number or several, as a tuple; raises `DataError` for anything else."""
    try:
        numbers = np.asarray(values, np.float64).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise DataError(f"{name} must hold numbers, one per channel or one for all, not {values!r}")
    return tuple(numbers.tolist())
