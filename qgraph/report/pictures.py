"""Draw samples as one picture, a PNG in a data URI."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS, COUNT, SIDE, GAP = 8, 32, 64, 2


def contact_sheet(samples: NDArray[Any]) -> tuple[str, int] | None:
    """A data URI with at most 32 samples side by side, and their number; None if they are not images.

    Images are N x C x H x W or N x H x W x C, with one or three channels. Each is stretched to its own range of values,
    and its longer side is at most 64 pixels.
    """
    images = _channels_last(np.asarray(samples))
    if images is None:
        return None
    from PIL import Image

    images = images[:COUNT]
    height, width = images.shape[1:3]
    factor = SIDE / max(height, width)
    tile_height, tile_width = max(1, round(height * factor)), max(1, round(width * factor))
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    size = (columns * (tile_width + GAP) - GAP, rows * (tile_height + GAP) - GAP)
    sheet = Image.new("RGBA", size)
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    for index, image in enumerate(images):
        tile = Image.fromarray(_stretched(image)).resize((tile_width, tile_height), method)
        row, column = divmod(index, columns)
        sheet.paste(tile, (column * (tile_width + GAP), row * (tile_height + GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), len(images)


def _channels_last(samples: NDArray[Any]) -> NDArray[Any] | None:
    if samples.ndim != 4 or samples.dtype.kind not in "fiu" or not samples.size:
        return None
    if samples.shape[1] in (1, 3):
        return samples.transpose(0, 2, 3, 1)
    return samples if samples.shape[3] in (1, 3) else None


def _stretched(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The image with its 1st to 99th percentile stretched to 0..255."""
    values = np.nan_to_num(image.astype(np.float64))
    low, high = np.percentile(values, (1, 99))
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    pixels = np.rint(grey).astype(np.uint8)
    return pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)
