"""Many pictures on one page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from orchestrator.exports.png_metadata import write_png


def image_grid(
    images: np.ndarray,
    *,
    num_columns: int | None = None,
    padding: int = 4,
    background: tuple[int, int, int] = (255,) * 3,
) -> np.ndarray:
    """Lay N images (N, H, W, 3) uint8 out row by row on one page (rows, columns, 3) uint8.

    num_columns: the smallest near-square number when None. padding: pixels between and around the images.
    Raises ValueError without images.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"the images are {images.dtype} of shape {images.shape}; give uint8 (N, H, W, 3), N over 0.")
    num, height, width, _ = images.shape
    columns = min(num, num_columns or math.ceil(math.sqrt(num)))
    rows = math.ceil(num / columns)
    page = np.empty((rows * (height + padding) + padding, columns * (width + padding) + padding, 3), np.uint8)
    page[:] = background
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = padding + row * (height + padding), padding + column * (width + padding)
        page[top : top + height, left : left + width] = image
    return page


def write_image_grid(
    images: np.ndarray,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    num_columns: int | None = None,
) -> Path:
    """Write `image_grid(images)` as a PNG with text chunks; returns the path. Raises as `write_png` does."""
    return write_png(image_grid(images, num_columns=num_columns), path, metadata)
