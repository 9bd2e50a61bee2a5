"""The models of the family: one paper, one file, one `diffusion.models.base.Model`.

Each is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING

from diffusion.errors import DiffusionError

if TYPE_CHECKING:
    from diffusion.models.base import Model

MODELS: dict[str, str] = {
    "denoising_score_matching": "diffusion.models.denoising_score_matching:DenoisingScoreMatching",
    "sliced_score_matching": "diffusion.models.sliced_score_matching:SlicedScoreMatching",
    "ncsn": "diffusion.models.ncsn:Ncsn",
    "bit_diffusion": "diffusion.models.bit_diffusion:BitDiffusion",
    "ddpm": "diffusion.models.ddpm:DDPM",
    "improved_ddpm": "diffusion.models.improved_ddpm:ImprovedDDPM",
    "rectified_flow": "diffusion.models.rectified_flow:RectifiedFlow",
    "glide": "diffusion.models.glide:Glide",
    "glide_inpainting": "diffusion.models.glide_inpainting:GlideInpainting",
    "glide_upsampler": "diffusion.models.glide_upsampler:GlideUpsampler",
    "noisy_classifier": "diffusion.models.noisy_classifier:NoisyClassifier",
    "noisy_clip": "diffusion.models.noisy_clip:NoisyClip",
}
"""Name on the command line -> "module:Class"."""


def model_class(name: str) -> "type[Model]":
    """The model of that name.

    Raises:
        DiffusionError: there is none.
    """
    if name not in MODELS:
        raise DiffusionError.explained(
            f"there is no model {name!r}", expected="one of " + ", ".join(map(repr, MODELS)), fix="use one of these"
        )
    module, _, cls = MODELS[name].partition(":")
    return getattr(importlib.import_module(module), cls)
