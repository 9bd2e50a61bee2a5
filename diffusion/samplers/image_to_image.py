"""Image to image and inpainting: SDEdit (2108.01073) between an autoencoder's two halves, kept pixels put back after it.

A network that sees the mask and the masked picture (Stable Diffusion's inpainting models) is shown both; for any other the
kept latents are put back at every step.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.errors import DiffusionError
from diffusion.requests import Condition, DecodeRequest, EncodeRequest, Request
from diffusion.samplers.chain import Sampler
from diffusion.samplers.sdedit import sdedit, timesteps_of_strength


def image_to_image(
    images: Tensor,
    *,
    sampler: Sampler,
    strength: float,
    start_noise: Tensor,
    timesteps: Tensor,
    condition: Condition,
    masks: Tensor | None = None,
    sees_mask: bool = False,
    **sampling: Any,
) -> Generator[Request, Any, Tensor]:
    """Draw each picture anew from the noise level of `strength` on; where a mask is 0, it stays as it is.

    Latents are repainted wherever they touch a pixel whose mask is above 0, and the decoded picture is blended with the
    given one by the mask: a pixel whose mask is 0 comes back unchanged, without a trace of the autoencoder. Replacement
    inpainting is biased even with an exact network (the repainted part never informs the kept one); only a network that
    sees the masked picture is not.

    Args:
        images: (B, 3, H, W) in [0, 1].
        sampler, strength, start_noise, timesteps: see `sdedit`. Strength 1 without masks is plain sampling from
            start_noise. A strength that leaves no timestep to run (0, or below 1 / N) returns `images` themselves.
        masks: (B, 1, H, W) in [0, 1], 1 where the picture is repainted, 0 where it is kept.
        sees_mask: whether the network takes mask and masked picture; see `with_mask`.
        sampling: schedule, guidance, noise and the sampler's own options.

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
    if sees_mask:
        condition = yield from with_mask(condition, images, masks)
    sampling["condition"] = condition
    if strength == 1 and (masks is None or sees_mask):
        latents = yield from sampler(start_noise, timesteps=timesteps, **sampling)
        return blended(images, (yield DecodeRequest(latents)), masks)
    reference = yield EncodeRequest(images)
    keep = None
    if masks is not None and not sees_mask:
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
    return blended(images, (yield DecodeRequest(latents)), masks)


def with_mask(condition: Condition, images: Tensor, masks: Tensor | None) -> Generator[EncodeRequest, Tensor, Condition]:
    """The condition of a network that sees a mask: its channels are the mask and the latents of the masked picture.

    As diffusers' inpainting pipeline: the mask is cut at one half and taken to the latents' size without interpolation, and
    what is masked in the picture is mid-grey.

    Args:
        images: (B, 3, H, W) in [0, 1]. masks: (B, 1, H, W), 1 where the picture is repainted; None repaints all of it.
    """
    hidden = torch.ones_like(images[:, :1]) if masks is None else (masks >= 0.5).to(images)
    latents = yield EncodeRequest(torch.where(hidden > 0, 0.5, images))
    return replace(condition, channels=torch.cat([F.interpolate(hidden, latents.shape[2:]).to(latents), latents], dim=1))


def blended(images: Tensor, drawn: Tensor, masks: Tensor | None) -> Tensor:
    """The drawn pictures where masks (B, 1, H, W) are 1 and the given ones where they are 0."""
    return drawn if masks is None else torch.lerp(images.to(drawn), drawn, masks.to(drawn))
