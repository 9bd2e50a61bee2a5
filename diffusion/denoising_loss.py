"""How likely a prior finds pictures under a text and a camera: its own denoising loss (Li et al. 2023, arXiv:2303.16203)."""

from collections.abc import Generator
from typing import Any

from torch import Tensor

from diffusion.distillation import encode_beside
from diffusion.parameterisation import per_row
from diffusion.process import Schedule
from diffusion.requests import Condition, DenoiseRequest, Guidance, Request


def denoising_losses(
    images: Tensor, *, condition: Condition, schedule: Schedule, t: Tensor, noise: Tensor
) -> Generator[Request, Any, Tensor]:
    """The squared error of the predicted v, in the mean over each picture's latents; the lower, the likelier.

    ||v_hat - v||^2 with v = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv:2202.00512), whatever the network predicts:
    of that error no noise level is without weight. Losses of one picture under several conditions can be compared where
    t and noise are the same.

    Args:
        images: (B, 3, H, W) in [0, 1]. condition: B rows; no guidance takes place. t: (B,) long.
        noise: (B, C, h, w) standard normal, in the latents' shape.

    Yields:
        EncodeRequest, DenoiseRequest.

    Returns:
        (B,) float32.

    Raises:
        DiffusionError: noise of another shape than the latents.
    """
    latents, t, noise = yield from encode_beside(images, t, noise)
    prediction = yield DenoiseRequest(schedule.add_noise(latents, noise, t), t, condition, Guidance(scale=1.0))
    alpha, sigma = per_row(schedule.alpha(t), latents), per_row(schedule.sigma(t), latents)
    error = alpha * (prediction.eps - noise) - sigma * (prediction.x0 - latents)
    return error.square().flatten(1).mean(dim=1).float()
