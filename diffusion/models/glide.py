"""GLIDE: pictures from a caption by a diffusion model in pixels (Nichol et al. 2021, arXiv:2112.10741).

    eps_hat = eps(x_t | empty) + s (eps(x_t | c) - eps(x_t | empty))        section 2.3, classifier-free guidance
    mu_hat = mu(x_t | c) + s Sigma(x_t | c) grad_{x_t} f(x_t) . g(c)        section 2.4, CLIP guidance

with f the noise-aware image tower and g the text tower of `noisy_clip`. `glide_upsampler` enlarges what this model draws;
`glide_inpainting` is told the known part of a picture.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest, described
from diffusion.models.glide_upsampler import GlideUpsampler
from diffusion.models.text_to_pixels import GUIDANCE_OPTIONS, PICTURE_OPTIONS, KnownPart, TextToPixels, split_options
from diffusion.seeding import stream

SAMPLER, NUM_STEPS = "ddpm", 100
"""Ancestral sampling over 100 of the 1000 steps, as the authors' notebooks."""

CASCADE_OPTIONS = {"upsampler": None, "upsampler_steps": None, "augmentation": 0.0}
"""A `GlideUpsampler` that enlarges the result, or None, the number of its steps, and its option "augmentation"."""


class Glide(TextToPixels):
    """The base model, which is told the caption alone."""

    name = "glide"
    num_extra_channels: ClassVar[int] = 0
    preview: ClassVar[Mapping[str, Any]] = {"guidance_scale": 3.0, "num_steps": 50}

    def training_extra(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """(B, 0, H, W)."""
        return batch.x[:, :0]

    def sample(self, request: SampleRequest) -> Tensor:
        """Pictures of the prompts, with guidance_scale for classifier-free guidance; see `TextToPixels.drawn`.

        Options, beside the sampler's: GUIDANCE_OPTIONS (CLIP guidance), CASCADE_OPTIONS (enlarge the result), and
        PICTURE_OPTIONS: the known pixels are written over each prediction. That is not exact: what is drawn beside them
        learns of them too late, for which section 2.5 trains `glide_inpainting`.
        """
        options, rest = split_options(request, {**GUIDANCE_OPTIONS, **PICTURE_OPTIONS, **CASCADE_OPTIONS})
        upsampler = options["upsampler"]
        if upsampler is not None and not isinstance(upsampler, GlideUpsampler):
            raise DiffusionError.explained(
                f"options.upsampler is {described(upsampler)}",
                expected="a glide_upsampler",
                fix="give the folder of one, trained with objective=glide_upsampler",
            )
        pictures = self.drawn(
            rest,
            extra=torch.zeros(len(request.seeds), 0, *self.shape[1:]),
            guidance=options,
            known=KnownPart.of(options, self.shape, len(request.seeds)),
            sampler=SAMPLER,
            num_steps=NUM_STEPS,
        )
        if upsampler is None:
            return pictures
        enlarging = {"low_res": pictures.cpu(), "augmentation": options["augmentation"]}
        # Streams of its own: its start noise must not begin with the base model's.
        seeds = tuple(int(torch.randint(2**62, (), generator=stream(seed, "upsampler"))) for seed in request.seeds)
        return upsampler.sample(
            SampleRequest(seeds, num_steps=options["upsampler_steps"], prompts=request.prompts, options=enlarging)
        )
