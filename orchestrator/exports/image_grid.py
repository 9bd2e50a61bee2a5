"""Many pictures on one page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from orchestrator.exports.png_metadata import write_png


def image_grid(
    images: np.ndarray | Sequence[np.ndarray],
    *,
    num_columns: int | None = None,
    padding: int = 4,
    background: tuple[int, int, int] = (255,) * 3,
) -> np.ndarray:
    """Lay N images (N, H, W, 3) uint8 out row by row on one page (rows, columns, 3) uint8.

    Images of different sizes, (H, W, 3) each, stand in the middle of cells that hold the largest height and width.
    num_columns: the smallest near-square number when None. padding: pixels between and around the images.
    Raises ValueError without images.
    """
    if not len(images):
        raise ValueError(f"the images have shape {np.shape(images)}; give uint8 (N, H, W, 3), N over 0.")
    for image in images:
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image is {image.dtype} of shape {image.shape}; give uint8 (H, W, 3).")
    num, height, width = len(images), max(len(image) for image in images), max(image.shape[1] for image in images)
    columns = min(num, num_columns or math.ceil(math.sqrt(num)))
    rows = math.ceil(num / columns)
    page = np.empty((rows * (height + padding) + padding, columns * (width + padding) + padding, 3), np.uint8)
    page[:] = background
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top = padding + row * (height + padding) + (height - image.shape[0]) // 2
        left = padding + column * (width + padding) + (width - image.shape[1]) // 2
        page[top : top + image.shape[0], left : left + image.shape[1]] = image
    return page


def write_image_grid(
    images: np.ndarray | Sequence[np.ndarray],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    num_columns: int | None = None,
) -> Path:
    """Write `image_grid(images)` as a PNG with text chunks; returns the path. Raises as `write_png` does."""
    return write_png(image_grid(images, num_columns=num_columns), path, metadata)
