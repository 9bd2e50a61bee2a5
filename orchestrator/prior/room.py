"""Whether pictures of a size fit into what memory a device has free, asked before anything of them is computed."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from diffusion.checkpoints.footprint import activation_bytes
from jobs.errors import InputError

__all__ = ["check_fits", "free_bytes"]

LARGEST_MADE_SURE_OF = 0.95
"""Of what is free: the rest is for what the estimate leaves out."""


def check_fits(prior: Any, size: tuple[int, int]) -> None:
    """Counts both halves of a guided picture of this (height, width), and its decoding.

    Raises:
        InputError: they need more than is free, with both numbers.
    """
    unet, autoencoder = getattr(prior, "unet", None), getattr(prior, "autoencoder", None)
    if unet is None or autoencoder is None:
        return
    config = autoencoder.config
    widths = getattr(config, "block_out_channels", None) or config.decoder_block_out_channels
    _, *latents = prior.latent_shape_of(size)
    needed = activation_bytes(unet.config, widths, (latents[0], latents[1]), rows=2, pictures=1)
    if needed > LARGEST_MADE_SURE_OF * (free := free_bytes(prior.device)):
        raise InputError(
            f"A picture of {size[1]}x{size[0]} pixels needs about {needed / 1e9:.1f} GB beside the prior, and "
            f"{free / 1e9:.1f} GB are free on {prior.device}; take a smaller size."
        )


def free_bytes(device: torch.device) -> int:
    """Of the device that torch computes on, what it keeps for later use included."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available
