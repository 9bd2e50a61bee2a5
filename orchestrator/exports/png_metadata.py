"""PNG files that say how they were made."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from orchestrator.exports.marks import XMP_KEY
from orchestrator.host.atomic import write_bytes

KEYS = ("prompt", "seed", "sampler", "steps", "guidance_scale", "prior_hash")
"""What every picture of a run carries; more keys are allowed."""


def write_png(image: np.ndarray, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> Path:
    """Write `encode_png(image, metadata)` atomically; returns the path.

    Raises what `encode_png` raises, and OutputError for a path that cannot be written.
    """
    return write_bytes(path, encode_png(image, metadata))


def encode_png(image: np.ndarray, metadata: Mapping[str, str] | None = None) -> bytes:
    """An (H, W, 3) uint8 sRGB image as a PNG file's bytes, with one text chunk per entry of `metadata`.

    Plain ASCII text is stored as tEXt, everything else, and XMP, as iTXt (UTF-8). NUL, which PNG text cannot hold, is dropped.
    Raises ValueError for another kind of image or a key that PNG does not allow.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the image is {image.dtype} of shape {image.shape}; give uint8 of shape (H, W, 3).")
    chunks = PngInfo()
    for key, value in (metadata or {}).items():
        if not (key.isascii() and key.isprintable() and 1 <= len(key) <= 79 and key == key.strip()):
            raise ValueError(f"the metadata key {key!r} is not 1 to 79 printable ASCII characters, as PNG asks.")
        text = str(value).replace("\0", "").encode("utf-8", "replace").decode("utf-8")
        if text.isascii() and key != XMP_KEY:
            chunks.add_text(key, text)
        else:
            chunks.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_png_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text chunks of a PNG. Raises OSError when it is not a readable picture."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()  # text may follow the pixels
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}
