"""What is kept of pictures, the same for those of one prompt and those of a table: the PNG file, a shard's commit marker."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusion.checkpoints.lora_files import Lora
from jobs.specs import PictureSpec
from orchestrator.exports.marks import marked
from orchestrator.exports.png_metadata import encode_png

if TYPE_CHECKING:
    import numpy as np

__all__ = ["commit_marker", "encode_picture", "lora_words", "loras_of", "picture_metadata", "pixels_of"]


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
        **{name: value for name, value in lora_words(spec.loras).items() if value is not None},
    }


def lora_words(loras: Sequence[Lora]) -> dict[str, str | None]:
    """LoRAs as text chunks and columns have them: FILE:SCALE and sha256, with "; " between several; None for none."""
    return {"lora": "; ".join(map(str, loras)) or None, "lora_sha256": "; ".join(lora.sha256 for lora in loras) or None}


def pixels_of(png: bytes) -> np.ndarray:
    """The picture of a PNG file of ours, uint8 (H, W, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def loras_of(png: bytes) -> tuple[Lora, ...]:
    """The LoRAs that drew the picture of a PNG file of ours, by their names alone."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        text = getattr(image, "text", {})
    named, hashes = (text.get(key, "").split("; ") for key in ("lora", "lora_sha256"))
    found = [(*name.rpartition(":")[::2], sha256) for name, sha256 in zip(named, hashes, strict=True) if sha256]
    return tuple(Lora(file, sha256, float(scale)) for file, scale, sha256 in found)


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
