"""A few pictures of every shard on one small page, _grids/00007.png, for people to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.batch.records import Finished
from orchestrator.exports.image_grid import image_grid
from orchestrator.exports.png_metadata import encode_png

__all__ = ["FOLDER", "Preview", "grid_name", "tiles"]

FOLDER = "_grids"
MAX_TILES = 16
MAX_TILE_SIZE = 128
PADDING = 4


def grid_name(shard: int) -> str:
    """Below the job's folder."""
    return f"{FOLDER}/{shard:05d}.png"


class Preview:
    """Keeps up to 16 of a shard's pictures, evenly chosen, shrunk to at most 128 pixels per side."""

    def __init__(self, num_rows: int) -> None:
        num = min(num_rows, MAX_TILES)
        self._wanted = {position * num_rows // num for position in range(num)}
        self._tiles: list[np.ndarray] = []
        self.captions: list[dict[str, Any]] = []

    def offer(self, position: int, row: Finished) -> None:
        """Row `position` of the shard; positions come in order."""
        if position not in self._wanted or row.png is None:
            return
        self._tiles.append(_shrunk(row.png))
        self.captions.append({name: row.record[name] for name in ("index", "seed", "prompt")})

    def png(self) -> bytes | None:
        """The page, None without a picture."""
        return (
            encode_png(image_grid(self._tiles, num_columns=_columns(len(self._tiles)), padding=PADDING))
            if (self._tiles)
            else None
        )


def tiles(page: bytes, marker: Mapping[str, Any]) -> list[np.ndarray]:
    """The pictures of a shard's page, (H, W, 3) uint8 each, in the order of the marker's captions."""
    from PIL import Image

    with Image.open(io.BytesIO(page)) as file:
        pixels = np.asarray(file.convert("RGB"))
    num = len(marker["preview"])
    columns = _columns(num)
    width = (pixels.shape[1] - PADDING) // columns
    height = (pixels.shape[0] - PADDING) // -(-num // columns)
    corners = [(PADDING + number // columns * height, PADDING + number % columns * width) for number in range(num)]
    return [pixels[top : top + height - PADDING, left : left + width - PADDING] for top, left in corners]


def _columns(num: int) -> int:
    return min(num, 8)


def _shrunk(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as file:
        image = file.convert("RGB")
    image.thumbnail((MAX_TILE_SIZE, MAX_TILE_SIZE))
    return np.asarray(image)
