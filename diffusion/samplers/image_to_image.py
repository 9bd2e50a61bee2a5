"""Image to image and inpainting: SDEdit (2108.01073) between an autoencoder's two halves, kept pixels put back after it."""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.errors import DiffusionError
from diffusion.requests import DecodeRequest, EncodeRequest, Request
from diffusion.samplers.chain import Sampler
from diffusion.samplers.sdedit import sdedit, timesteps_of_strength


def image_to_image(
    images: Tensor,
    *,
    sampler: Sampler,
    strength: float,
    start_noise: Tensor,
    timesteps: Tensor,
    masks: Tensor | None = None,
    **sampling: Any,
) -> Generator[Request, Any, Tensor]:
    """Draw each picture anew from the noise level of `strength` on; where a mask is 0, it stays as it is.

    Latents are repainted wherever they touch a pixel whose mask is above 0, and the decoded picture is blended with the
    given one by the mask: a pixel whose mask is 0 comes back unchanged, without a trace of the autoencoder. Replacement
    inpainting is biased even with an exact network (the repainted part never informs the kept one); only a model
    conditioned on the masked picture is not.

    Args:
        images: (B, 3, H, W) in [0, 1].
        sampler, strength, start_noise, timesteps: see `sdedit`. Strength 1 without masks is plain sampling from
            start_noise. A strength that leaves no timestep to run (0, or below 1 / N) returns `images` themselves.
        masks: (B, 1, H, W) in [0, 1], 1 where the picture is repainted, 0 where it is kept.
        sampling: schedule, condition, guidance, noise and the sampler's own options.

    Yields:
        EncodeRequest, the sampler's DenoiseRequests, DecodeRequest.

    Returns:
        (B, 3, H, W) in [0, 1].

    Raises:
        DiffusionError: masks that do not fit the pictures, and what `sdedit` raises.
    """
    if masks is not None and masks.shape != (len(images), 1, *images.shape[2:]):
        raise DiffusionError.explained(
            f"the masks have shape {tuple(masks.shape)}",
            expected=f"{(len(images), 1, *images.shape[2:])}, one value a pixel",
            fix="resize them to the pictures",
        )
    if len(timesteps_of_strength(timesteps, strength)) == 0:
        return images
    if strength == 1 and masks is None:
        latents = yield from sampler(start_noise, timesteps=timesteps, **sampling)
        return (yield DecodeRequest(latents))
    reference = yield EncodeRequest(images)
    keep = None
    if masks is not None:
        keep = (F.adaptive_max_pool2d(masks, reference.shape[2:]) == 0).to(reference)
    latents = yield from sdedit(
        reference,
        sampler=sampler,
        strength=strength,
        start_noise=start_noise,
        timesteps=timesteps,
        mask=keep,
        **sampling,
    )
    drawn = yield DecodeRequest(latents)
    if masks is None:
        return drawn
    return torch.lerp(images.to(drawn), drawn, masks.to(drawn))
