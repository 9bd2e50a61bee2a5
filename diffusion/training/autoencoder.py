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


OBJECT_WEIGHT = 8.0
"""How much more a pixel of the object counts than one of the background, which fills most of a picture."""


def decoder_loss(autoencoder: AutoencoderTiny, images: Callable[[Tensor], Tensor], masks: Callable[[Tensor], Tensor]) -> Loss:
    """`reconstruction_loss` with the encoder as it is, weighted to the object's pixels: for training the decoder on.

    Latents stay what they are, so a prior that was trained on them stays right.

    Args:
        images: row indices -> pictures (B, 3, H, W) in [0, 1].
        masks: row indices -> (B, 1, H, W) in {0, 1}, 1 where the object is.
    """

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        target, mask = images(rows), masks(rows)
        with torch.no_grad():
            latents = autoencoder.encoder(target)
        noisy = latents + LATENT_NOISE * normal(latents.shape, generator, device=latents.device)
        output = autoencoder.decoder(torch.tanh(noisy / 3) * 3).float()
        weight = 1 + (OBJECT_WEIGHT - 1) * mask
        weight = weight / weight.mean()
        squared = (output - target).square()
        sharp = sum(
            ((a - b).abs() * w).mean() for a, b, w in zip(edges(output), edges(target), _edge_weights(weight), strict=True)
        )
        value = 10 * (weight * squared).mean() + (weight * (output - target).abs()).mean() + sharp
        on_object = (squared.detach() * mask).sum() / (3 * mask.sum()).clamp_min(1)
        return value, {**likeness(output.detach(), target), "object_psnr": -10 * on_object.clamp_min(1e-10).log10().item()}

    return loss


def _edge_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of each difference the larger weight of its two pixels; in the order of `edges`."""
    return torch.maximum(weight[..., 1:], weight[..., :-1]), torch.maximum(weight[..., 1:, :], weight[..., :-1, :])


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
