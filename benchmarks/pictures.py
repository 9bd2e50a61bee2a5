"""Small picture files for docs/."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_small_webp(image: np.ndarray, path: Path, *, max_bytes: int, max_width: int | None = None) -> Path:
    """An (H, W, 3) uint8 image as WebP of at most max_bytes: first at full quality, then less, then smaller.

    Raises ValueError where even 64 pixels of width are too many bytes.
    """
    from PIL import Image

    picture = Image.fromarray(image)
    width = min(picture.width, max_width or picture.width)
    while width >= 64:
        scaled = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        for quality in (90, 80, 70, 60):
            buffer = io.BytesIO()
            scaled.save(buffer, format="WEBP", quality=quality, method=6)
            if buffer.tell() <= max_bytes:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(buffer.getvalue())
                return path
        width = round(width * 0.8)
    raise ValueError(f"the picture cannot be made smaller than {max_bytes} bytes; allow more.")


def write_small_animation(frames: Sequence[np.ndarray], path: Path, *, max_bytes: int, frames_per_second: float = 10) -> Path:
    """(H, W, 3) uint8 frames as an endless animated WebP of at most max_bytes: first at good quality, then less.

    Raises ValueError where even the least quality takes too many bytes.
    """
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    for quality in (75, 60, 50, 40, 30, 15):
        buffer = io.BytesIO()
        duration = round(1000 / frames_per_second)
        first.save(buffer, format="WEBP", save_all=True, append_images=rest, duration=duration, loop=0, quality=quality)
        if buffer.tell() <= max_bytes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            return path
    raise ValueError(f"{len(frames)} frames cannot be made smaller than {max_bytes} bytes; allow more.")
