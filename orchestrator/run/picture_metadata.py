"""What is kept of pictures, the same for those of one prompt and those of a table: a PNG's text, a shard's counts."""

from __future__ import annotations

from typing import Any

from jobs.specs import ImagesSpec

__all__ = ["picture_metadata", "shard_counts"]


def picture_metadata(spec: ImagesSpec, *, prior_hash: str) -> dict[str, str]:
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
    }


def shard_counts(shard: int, rows: range, *, num_succeeded: int, num_failed: int, num_drawn: int) -> dict[str, Any]:
    """How a commit marker begins: which shard of which rows, and what became of them."""
    return {
        "shard": shard,
        "first_index": rows.start,
        "num_rows": len(rows),
        "num_succeeded": num_succeeded,
        "num_failed": num_failed,
        "num_drawn_by_last_attempt": num_drawn,
    }
