"""The judge: a CLIP of its own architecture and seed that lies beside a prior and never conditions or guides it.

A prior must not grade itself: distillation climbs its own text tower's preferences, right or wrong (the point of Park et al.
2021 and Dream Fields, section 4.1, who score with other towers than those that guided).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion.checkpoints.source import Source
from diffusion.prior import TOYBOX, hash_files
from diffusion.text.clip import Clip, load_clip
from diffusion.text.tokenizer import Tokenizer
from jobs.errors import InputError
from orchestrator.lab.evaluation.settings import EvaluationSettings
from orchestrator.runtimes.base import resolve_device

__all__ = ["Judge", "judge_folder", "judge_of", "load_judge"]

BATCH_SIZE = 64


class Judge:
    """Pictures and captions as unit vectors of one space.

    Args:
        clip: both towers. tokenizer: of its text tower.
        folder: where it was read. weights_hash: sha256 of its weights.
    """

    def __init__(self, clip: Clip, tokenizer: Tokenizer, *, folder: Path, weights_hash: str, device: str = "cpu") -> None:
        self._clip = clip.eval().requires_grad_(False).to(device)
        self._tokenizer = tokenizer
        self._device = device
        self.folder = folder
        self.weights_hash = weights_hash

    @property
    def image_size(self) -> int:
        """Side of the pictures that it was trained on, in pixels."""
        return self._clip.image_size

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> unit vectors (N, E) on the CPU. No gradients."""
        chunks = [self._clip.encode_image(chunk.to(self._device)).cpu() for chunk in images.split(BATCH_SIZE)]
        return torch.cat(chunks)

    @torch.no_grad()
    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """P captions -> unit vectors (P, E) on the CPU. No gradients."""
        ids = self._tokenizer(captions)
        return torch.cat([self._clip.encode_text(chunk.to(self._device)).cpu() for chunk in ids.split(BATCH_SIZE)])


def judge_folder(prior: str) -> Path:
    """Where a prior ("toybox" or a folder, with or without options) keeps its judge."""
    location = Source.parse(prior).location
    return (TOYBOX if location == "toybox" else Path(location)) / "judge"


def judge_of(settings: EvaluationSettings) -> Judge:
    """The judge that the settings name. Raises as `load_judge` does."""
    folder = Path(settings.judge) if settings.judge else judge_folder(settings.prior)
    return load_judge(folder, device=resolve_device(settings.device))


def load_judge(folder: Path, *, device: str = "cpu") -> Judge:
    """Reads what `diffusion.text.clip.save_clip(..., with_text=True)` wrote.

    Raises:
        InputError: the folder or one of its files is missing or damaged.
    """
    weights = folder / "clip.safetensors"
    for path in (folder, folder / "clip_config.json", weights, folder / "tokenizer"):
        if not path.exists():
            raise InputError(
                f"There is no judge to score with: {path} is missing; give judge=FOLDER with a clip_config.json, a "
                "clip.safetensors and a tokenizer/, or copy the prior again with all its files."
            )
    try:
        return Judge(
            load_clip(folder),
            Tokenizer.load(folder / "tokenizer"),
            folder=folder,
            weights_hash=hash_files([weights]),
            device=device,
        )
    except Exception as error:  # a damaged file can fail in any of its readers
        raise InputError(f"The judge in {folder} cannot be read ({type(error).__name__}: {error}); copy it again.") from error
