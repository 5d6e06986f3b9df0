"""Image files as samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


def read_image(path: Path, value: ir.Value) -> NDArray[np.uint8]:
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


def image_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with _readable_image(path), Image.open(path) as image:
        return image.size


@contextmanager
def _readable_image(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # UnidentifiedImageError is one too
        raise DataError(f"cannot read the image {path}: {error}") from error
