"""Whether pictures of a size fit into what memory a device has free, asked before anything of them is computed."""

from __future__ import annotations

from typing import Any

from diffusion.checkpoints.footprint import activation_bytes
from diffusion.engine.memory import SURELY_FREE, free_bytes
from jobs.errors import InputError

__all__ = ["check_fits"]


def check_fits(prior: Any, size: tuple[int, int], *, strict: bool = False) -> None:
    """Counts both halves of a guided picture of this (height, width), and its decoding, in strips where that may be.

    Args:
        strict: decoded as the prior's option says, and not as memory allows.

    Raises:
        InputError: they need more than is free, with both numbers.
    """
    unet, autoencoder = getattr(prior, "unet", None), getattr(prior, "autoencoder", None)
    if unet is None or autoencoder is None:
        return
    decoding = getattr(prior, "decoding", "auto")
    tiled = decoding == "tiled" or (decoding == "auto" and not strict)
    _, *latents = prior.latent_shape_of(size)
    widths = autoencoder.config.decoder_widths
    needed = activation_bytes(unet.config, widths, (latents[0], latents[1]), rows=2, pictures=1, tiled=tiled)
    if needed > SURELY_FREE * (free := free_bytes(prior.device)):
        way = "" if tiled else ", or add '?decode=tiled' to the prior, which needs less"
        raise InputError(
            f"A picture of {size[1]}x{size[0]} pixels needs about {needed / 1e9:.1f} GB beside the prior, and "
            f"{free / 1e9:.1f} GB are free on {prior.device}; take a smaller size{way}."
        )
