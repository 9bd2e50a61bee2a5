"""Pictures with the prompts that they were drawn for: read from run folders, or drawn now."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.requests import Guidance
from jobs.errors import InputError
from jobs.prior_client import GenerateRequest, PriorClient
from orchestrator.exports.png_metadata import read_png_metadata
from orchestrator.settings.compose import compose

__all__ = ["Picture", "as_tensor", "draw_pictures", "read_pictures"]

CHUNK_SIZE = 8
OVERVIEWS = ("grid.png", "preview.png", "report.png")
_NUMBERED = re.compile(r"\d{9}\.png")


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: (H, W, 3) uint8. prompt: what it was drawn for. name: a file, or where there is none the seed."""

    pixels: np.ndarray
    prompt: str
    name: str


def read_pictures(folder: Path) -> list[Picture]:
    """Every picture of a run of `dreamkiln images`, or of any folder of PNG files that carry a prompt in their text.

    Raises:
        InputError: there is no such folder, no such picture, or one that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give run folders of 'dreamkiln images'.")
    files = sorted(path for path in folder.glob("*.png") if path.name not in OVERVIEWS)
    files = [path for path in files if _NUMBERED.fullmatch(path.name)] or files
    pictures = [picture for path in files if (picture := _read(path)) is not None]
    if not pictures:
        raise InputError(f"{folder} holds no PNG with a prompt in its text chunks; give a run folder of 'dreamkiln images'.")
    return pictures


def draw_pictures(
    prior: PriorClient, prompts: Sequence[str], *, source: str = "toybox", seed: int = 0
) -> Iterator[list[Picture]]:
    """One picture a prompt, number n from seed + n, as `dreamkiln images --prior SOURCE` draws them; yields chunks.

    Args:
        source: what the prior was loaded from, whose owners' defaults are taken.
    """
    usual = compose(options={"prior.source": source}).image_job("any", seed=seed)
    for start in range(0, len(prompts), CHUNK_SIZE):
        chunk = tuple(prompts[start : start + CHUNK_SIZE])
        request = GenerateRequest(
            prompts=chunk,
            seeds=tuple(range(seed + start, seed + start + len(chunk))),
            num_steps=usual.num_steps,
            sampler=usual.sampler,
            timestep_spacing=usual.timestep_spacing,
            guidance=Guidance(scale=usual.guidance_scale, rescale=usual.guidance_rescale),
        )
        drawn = zip(prior.generate(request), chunk, request.seeds, strict=True)
        yield [Picture(pixels, prompt, f"seed {number}") for pixels, prompt, number in drawn]


def as_tensor(pictures: Sequence[Picture], size: int) -> Tensor:
    """(N, 3, size, size) float32 in [0, 1]; pictures of another size are resampled with antialiasing."""
    rows = []
    for picture in pictures:
        image = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)[None].float() / 255
        if image.shape[-2:] != (size, size):
            image = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
        rows.append(image)
    return torch.cat(rows)


def _read(path: Path) -> Picture | None:
    from PIL import Image

    try:
        prompt = read_png_metadata(path).get("prompt")
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"{path} is not a readable picture ({error}); draw it again.") from error
    return Picture(pixels, prompt, path.name) if prompt else None
