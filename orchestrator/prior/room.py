"""Whether pictures of a size, or a view of a 3D step, fit into what memory a device has free, asked before the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusion.checkpoints.footprint import activation_bytes, least_bytes
from diffusion.engine.memory import SURELY_FREE, free_bytes
from jobs.errors import InputError, PriorFailed

__all__ = ["check_fits", "check_view_fits"]


def check_fits(prior: Any, size: tuple[int, int], *, strict: bool = False) -> None:
    """Counts both halves of a guided picture of this (height, width), and its decoding, in strips where that may be.

    Args:
        strict: decoded as the prior's option says, and not as memory allows.

    Raises:
        InputError: they need more than is free, with both numbers.
    """
    if (known := _sizes(prior)) is None:
        return
    decoding = getattr(prior, "decoding", "auto")
    tiled = decoding == "tiled" or (decoding == "auto" and not strict)
    _, height, width = prior.latent_shape_of(size)
    config, widths, itemsizes = known
    needed = activation_bytes(config, widths, (height, width), rows=2, pictures=1, tiled=tiled, **itemsizes)
    if needed > SURELY_FREE * (free := free_bytes(prior.device)):
        way = "" if tiled else ", or add '?decode=tiled' to the prior, which needs less"
        raise InputError(
            f"A picture of {size[1]}x{size[0]} pixels needs about {needed / 1e9:.1f} GB beside the prior, and "
            f"{free / 1e9:.1f} GB are free on {prior.device}; take a smaller size{way}."
        )


def check_view_fits(prior: Any, form: str | Callable[..., Any]) -> None:
    """Counts a view of a 3D step: both halves of its guidance, and unless the form is "x0" its gradient with checkpoints.

    Raises:
        PriorFailed: it needs more than is free now, with both numbers.
    """
    if (known := _sizes(prior)) is None:
        return
    config, widths, itemsizes = known
    needed = least_bytes(config, widths, prior.latent_shape[1:], in_3d=form != "x0", **itemsizes)
    if needed > SURELY_FREE * (free := free_bytes(prior.device)):
        raise PriorFailed(
            f"A view of a 3D step needs about {needed / 1e9:.1f} GB beside the prior, and {free / 1e9:.1f} GB are free on "
            f"{prior.device}; free some of it, take a smaller prior, or this one in half precision with '?dtype=bfloat16'."
        )


def _sizes(prior: Any) -> tuple[Any, Any, dict[str, int]] | None:
    """Configuration of the network and widths of the autoencoder, and bytes of their numbers; None of what has neither."""
    unet, autoencoder = getattr(prior, "unet", None), getattr(prior, "autoencoder", None)
    if unet is None or autoencoder is None:
        return None
    itemsize, vae_itemsize = (next(part.parameters()).dtype.itemsize for part in (unet, autoencoder))
    return unet.config, autoencoder.config.decoder_widths, {"itemsize": itemsize, "vae_itemsize": vae_itemsize}
