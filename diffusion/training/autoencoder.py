"""Reconstruction objective of the tiny autoencoder."""

from collections.abc import Callable

import kornia.metrics
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.seeding import normal
from diffusion.training.loop import Loss

LATENT_NOISE = 0.05
"""Noise on the latents in training: a diffusion model's latents are never exact, and the decoder must not mind."""


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences of (B, 3, H, W)."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def likeness(output: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR in decibels and mean SSIM (Wang et al. 2004, windows of 7 pixels) of (B, 3, H, W) pictures in [0, 1]."""
    with torch.autocast(output.device.type, enabled=False):
        psnr = kornia.metrics.psnr(output, target, max_val=1.0)
        ssim = kornia.metrics.ssim(output, target, window_size=7).mean()
    return {"psnr": psnr.item(), "ssim": ssim.item()}


def reconstruction_loss(autoencoder: AutoencoderTiny, images: Callable[[Tensor], Tensor]) -> Loss:
    """10 * squared error + absolute error + absolute error of the image differences, which keeps outlines sharp.

    Args:
        images: row indices -> pictures (B, 3, H, W) in [0, 1].
    """

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        target = images(rows)
        latents = autoencoder.encoder(target)
        noisy = latents + LATENT_NOISE * normal(latents.shape, generator, device=latents.device)
        output = autoencoder.decoder(torch.tanh(noisy / 3) * 3).float()
        squared = F.mse_loss(output, target)
        sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(target), strict=True))
        spread = latents.float().square().mean()
        value = 10 * squared + F.l1_loss(output, target) + sharp + 1e-3 * spread
        return value, {**likeness(output.detach(), target), "latent_rms": spread.sqrt().item()}

    return loss
