"""What is computed of a finished picture and written beside its caption: a CLIP score, a hash that near-duplicates share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffusion.checkpoints.errors import PriorError
from jobs.batch_images import BatchImagesSpec
from jobs.errors import InputError
from orchestrator.prior.source import refusal, scored_by

__all__ = ["PictureScores", "perceptual_hash", "score_columns"]

DIGITS = 4
"""Of a score: a sum's last bits depend on how many threads add it up."""
HASH_SIZE, SIDE = 8, 32


def score_columns(spec: BatchImagesSpec) -> dict[str, str]:
    """Name -> type of the columns that the job asked for."""
    columns = {"clip_score": "float"} if spec.clip_hash else {}
    columns |= {"is_kept": "bool"} if spec.min_clip_score is not None else {}
    return columns | ({"phash": "text"} if spec.phash else {})


class PictureScores:
    """Computes `score_columns`. The CLIP is read when the first picture comes.

    Each picture is scored by itself, so that its figures do not depend on those beside it.
    """

    def __init__(self, spec: BatchImagesSpec) -> None:
        self._spec = spec
        self._clip: Any = None

    def of(self, image: np.ndarray, prompt: str) -> dict[str, Any]:
        """The columns of a picture, uint8 (H, W, 3), that was drawn from this prompt.

        Raises:
            InputError: the CLIP cannot be read, or is not the one that the job was begun with.
        """
        spec, found = self._spec, dict[str, Any]()
        if spec.clip_hash:
            found["clip_score"] = score = round(self._clip_score(image, prompt), DIGITS)
            if spec.min_clip_score is not None:
                found["is_kept"] = score >= spec.min_clip_score
        if spec.phash:
            found["phash"] = perceptual_hash(image)
        return found

    def _clip_score(self, image: np.ndarray, prompt: str) -> float:
        import torch

        from diffusion.text.image_text import ImageTextModel

        if self._clip is None:
            scored = scored_by(self._spec.clip)["clip_hash"]
            if scored != self._spec.clip_hash:
                raise InputError(
                    f"The CLIP in {self._spec.clip} has changed since the job was begun (sha256 {self._spec.clip_hash[:12]}, "
                    f"now {scored[:12]}); put the first one back, or give --overwrite."
                )
            try:
                self._clip = ImageTextModel.read(Path(self._spec.clip))
            except PriorError as error:
                raise refusal(error) from error
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        return self._clip.score(pixels, prompt)


def perceptual_hash(image: np.ndarray) -> str:
    """The 64-bit perceptual hash (pHash) of a picture, uint8 (H, W, 3), as 16 hexadecimal digits, equal to imagehash's `phash`.

    The picture in grey at 32x32 pixels, its two-dimensional cosine transform (DCT-II), of that the 8x8 lowest frequencies, each
    1 where it is above their median (Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions, 3.2.1).
    Pictures that were scaled, recompressed or slightly retouched differ in few bits, others in about half of them.
    """
    from PIL import Image
    from scipy.fft import dctn

    grey = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    lowest = dctn(np.asarray(grey, dtype=np.float64), type=2)[:HASH_SIZE, :HASH_SIZE]
    return np.packbits(lowest > np.median(lowest)).tobytes().hex()
