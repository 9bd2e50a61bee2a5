"""What is kept of pictures, the same for those of one prompt and those of a table: the PNG file, a shard's commit marker."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.checkpoints.lora_files import AdapterFile, Embedding, Lora
from jobs.batch_images.cells import ADAPTERS, AdapterColumn
from jobs.specs import PictureSpec
from orchestrator.exports.marks import marked
from orchestrator.exports.png_metadata import encode_png

if TYPE_CHECKING:
    import numpy as np

__all__ = ["adapter_words", "adapters_of", "commit_marker", "encode_picture", "picture_metadata", "pixels_of"]


def picture_metadata(spec: PictureSpec, *, prior_hash: str) -> dict[str, str]:
    """The settings that drew a picture, for the text chunks of its PNG file; the caller adds seed and index.

    Args:
        spec: its `init_image` and `mask` are sha256 of pixels.
    """
    edit = {"strength": spec.strength, "init_image_sha256": spec.init_image, "mask_sha256": spec.mask}
    return {
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt,
        "sampler": spec.sampler,
        **({} if spec.timestep_spacing is None else {"timestep_spacing": spec.timestep_spacing}),
        "steps": str(spec.num_steps),
        "guidance_scale": f"{spec.guidance_scale:g}",
        "guidance_rescale": f"{spec.guidance_rescale:g}",
        "guidance_interval": "{}-{}".format(*spec.guidance_interval),
        "prior_hash": prior_hash,
        **{name: str(value) for name, value in edit.items() if spec.init_image is not None and value is not None},
        **{name: value for name, value in adapter_words(spec).items() if value is not None},
    }


def adapter_words(spec: PictureSpec) -> dict[str, str | None]:
    """LoRAs and textual inversions as text chunks and columns have them: FILE:SCALE or FILE:WORD, and sha256.

    "; " stands between several; None for none.
    """
    words: dict[str, str | None] = {}
    for column, setting in ADAPTERS.items():
        files: tuple[AdapterFile, ...] = getattr(spec, setting)
        words[column] = "; ".join(map(str, files)) or None
        words[f"{column}_sha256"] = "; ".join(file.sha256 for file in files) or None
    return words


def pixels_of(png: bytes) -> np.ndarray:
    """The picture of a PNG file of ours, uint8 (H, W, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def adapters_of(png: bytes) -> dict[AdapterColumn, tuple[AdapterFile, ...]]:
    """The LoRAs and textual inversions that drew the picture of a PNG file of ours, by their names alone."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        text = getattr(image, "text", {})
    found: dict[AdapterColumn, tuple[AdapterFile, ...]] = {}
    for column in ADAPTERS:
        named, hashes = (text.get(key, "").split("; ") for key in (column, f"{column}_sha256"))
        read = [_named(column, name, sha256) for name, sha256 in zip(named, hashes, strict=True) if sha256]
        found[column] = tuple(read)
    return found


def _named(column: AdapterColumn, name: str, sha256: str) -> AdapterFile:
    file, _, said = name.rpartition(":")
    if column == "lora":
        return Lora(file, sha256, float(said))
    return Embedding(file, sha256, said, replaces=True) if file else Embedding(name, sha256, Path(name).stem)


def encode_picture(
    spec: PictureSpec,
    image: np.ndarray,
    *,
    prior_hash: str,
    index: int | None = None,
    camera: tuple[float, float] | None = None,
) -> bytes:
    """The PNG file of a picture, uint8 (H, W, 3), with everything that drew it in its text chunks.

    Args:
        index: of the picture, where pictures are numbered. camera: (azimuth, elevation) in degrees of a view.
    """
    metadata = {**picture_metadata(spec, prior_hash=prior_hash), "seed": str(spec.seed)}
    if index is not None:
        metadata["index"] = str(index)
    if camera is not None:
        metadata |= {"azimuth_degrees": f"{camera[0]:g}", "elevation_degrees": f"{camera[1]:g}"}
    height, width, _ = image.shape
    return encode_png(image, marked(metadata, size=(width, height)))


def commit_marker(
    shard: int,
    rows: range,
    *,
    num_failed: int,
    num_drawn: int,
    seconds: float,
    prior_hash: str,
) -> dict[str, Any]:
    """How every commit marker begins: which shard of which rows, what became of them, and how long it took."""
    return {
        "shard": shard,
        "first_index": rows.start,
        "num_rows": len(rows),
        "num_succeeded": len(rows) - num_failed,
        "num_failed": num_failed,
        "num_drawn_by_last_attempt": num_drawn,
        "seconds": round(seconds, 3),
        "images_per_second": round(num_drawn / seconds, 3) if seconds else None,
        "prior_hash": prior_hash,
    }
