"""A report as one page of pictures: what the judge saw, the rank under it, a green frame for a hit and a red one for a miss."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["GREEN", "RED", "Tile", "labelled_sheet", "ranked_tile"]

GREEN, RED, GRAY = (40, 150, 70), (205, 50, 45), (150, 150, 150)
MISS_INK = (170, 30, 30)
INK = (25, 25, 25)
PAPER = (255, 255, 255)

_FRAME, _GAP, _LINE = 3, 6, 13
_FONT_SIZE = 11
_PIXELS_PER_LETTER = 5.6
"""Mean width of Pillow's own font at _FONT_SIZE."""


@dataclass(frozen=True, eq=False)
class Tile:
    """image: (H, W, 3) uint8. lines: under it, wrapped. frame: its colour. ink: of the last line."""

    image: np.ndarray
    lines: tuple[str, ...]
    frame: tuple[int, int, int] = GRAY
    ink: tuple[int, int, int] = INK


def ranked_tile(images: Sequence[np.ndarray], prompt: str, rank: int, taken_for: str, *figures: str) -> Tile:
    """A tile of pictures side by side with its score."""
    hit = rank == 1
    score = " · ".join([f"rank {rank}", *figures])
    lines = (prompt, score) if hit else (prompt, score, f"taken for {taken_for}")
    return Tile(np.concatenate(list(images), 1), lines, GREEN if hit else RED, INK if hit else MISS_INK)


def labelled_sheet(tiles: Sequence[Tile], *, num_columns: int) -> np.ndarray:
    """Tiles row by row on one white page (rows, columns, 3) uint8; all images must have one size.

    Raises ValueError without tiles, or for images of unequal size.
    """
    from PIL import Image, ImageDraw, ImageFont

    sizes = {tile.image.shape for tile in tiles}
    if len(sizes) != 1:
        raise ValueError(f"the tiles have images of shapes {sorted(sizes)}; give at least one tile, all of one size.")
    height, width, _ = sizes.pop()
    labels = [_wrapped(tile.lines, width + 2 * _FRAME) for tile in tiles]
    columns = min(num_columns, len(tiles))
    across, down = width + 2 * _FRAME + _GAP, height + 2 * _FRAME + _LINE * max(map(len, labels)) + _GAP
    page = Image.new("RGB", (columns * across + _GAP, -(-len(tiles) // columns) * down + _GAP), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT_SIZE)
    for number, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        left, top = _GAP + number % columns * across, _GAP + number // columns * down
        pen.rectangle((left, top, left + width + 2 * _FRAME - 1, top + height + 2 * _FRAME - 1), fill=tile.frame)
        page.paste(Image.fromarray(tile.image), (left + _FRAME, top + _FRAME))
        for row, (text, is_last) in enumerate(label):
            place = (left, top + height + 2 * _FRAME + row * _LINE)
            pen.text(place, text, fill=tile.ink if is_last else INK, font=font)
    return np.asarray(page)


def enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 at another height, smoothly."""
    from PIL import Image

    height, width, _ = image.shape
    return np.asarray(Image.fromarray(image).resize((width * size // height, size), Image.Resampling.BICUBIC))


def _wrapped(lines: Sequence[str], width: int) -> list[tuple[str, bool]]:
    """(text, whether it belongs to the last of `lines`)."""
    letters = max(8, int(width / _PIXELS_PER_LETTER))
    rows = [
        (text, place == len(lines) - 1) for place, line in enumerate(lines) for text in textwrap.wrap(line, letters) or [""]
    ]
    return rows
