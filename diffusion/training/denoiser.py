"""Denoising objective of the latent UNet, with text dropout for classifier-free guidance.

The text tower learns with the UNet: what denoising needs to know of a sentence (how many legs, which part has which
colour) is more than what tells one caption from another. A contrastive term keeps the image tower at its side.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.unet import UNet2DCondition
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal
from diffusion.text.clip import Clip, contrastive_loss, end_of_text
from diffusion.training.figures import by_noise
from diffusion.training.loop import Loss

TEXT_DROPOUT = 0.1
"""Share of the prompts that training replaces by the empty one."""

LOGIT_MEAN, LOGIT_SPREAD = 0.25, 1.25
"""Timesteps are drawn where shape is decided; at uniform ones a quarter of the work would go into the last grain."""


def stratified_timesteps(batch: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """(B,) int64 timesteps, logit-normal over the schedule (Esser et al. 2024, arXiv:2403.03206, eq. 19).

    One falls into each of B parts of equal probability: the loss's variance falls, its mean stays.
    """
    u = (torch.arange(batch) + torch.empty(batch).uniform_(1e-4, 1 - 1e-4, generator=generator)) / batch
    share = torch.sigmoid(LOGIT_MEAN + LOGIT_SPREAD * torch.special.ndtri(u))
    return (share * num_timesteps).long().clamp(max=num_timesteps - 1)


class TextConditionedDenoiser(nn.Module):
    """A UNet and the towers whose text half conditions it, in training together."""

    def __init__(self, unet: UNet2DCondition, clip: Clip) -> None:
        super().__init__()
        self.unet, self.clip = unet, clip


def denoising_loss(
    denoiser: TextConditionedDenoiser,
    schedule: NoiseSchedule,
    *,
    latents: Callable[[Tensor], Tensor],
    ids: Callable[[Tensor], Tensor],
    empty_ids: Tensor,
    images: Callable[[Tensor], Tensor] | None = None,
    contrastive_weight: float = 0.1,
) -> Loss:
    """E || v - v_theta(x_t, t, text) ||^2 (Salimans and Ho 2022, arXiv:2202.00512), v = a eps - s x0.

    Gradients reach the text tower where its parameters require them.

    Args:
        latents: row indices -> scaled latents (B, C, H, W); ids: row indices -> token ids (B, S).
        empty_ids: token ids (S,) of the empty prompt, which replace 10 % of the prompts
            (Ho and Salimans 2022, arXiv:2207.12598, algorithm 1).
        images: row indices -> pictures (B, 3, h, w) in [0, 1]. If given, `contrastive_weight` times the InfoNCE loss of
            both towers over the batch is added.
    """

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0, tokens = latents(rows), ids(rows)
        dropped = torch.empty(len(rows)).uniform_(generator=generator) < TEXT_DROPOUT
        states = denoiser.clip.text(torch.cat((tokens, empty_ids[None])))
        written, empty = states[:-1], states[-1:]
        context = torch.where(dropped[:, None, None].to(states.device), empty, written)
        t = stratified_timesteps(len(rows), schedule.num_train_timesteps, generator).to(x0.device)
        eps = normal(x0.shape, generator, device=x0.device)
        alpha, sigma = (w.to(x0.dtype)[:, None, None, None] for w in (schedule.alpha(t), schedule.sigma(t)))
        output = denoiser.unet(alpha * x0 + sigma * eps, t, context).float()
        squared = F.mse_loss(output, alpha * eps - sigma * x0, reduction="none").mean(dim=(1, 2, 3))
        figures = by_noise(squared.detach(), t, schedule.num_train_timesteps)
        total = squared.mean()
        if images is not None:
            text = denoiser.clip.project_text(end_of_text(written, tokens))
            contrast = contrastive_loss(denoiser.clip.encode_image(images(rows)), text, denoiser.clip.logit_scale)
            figures |= {"denoising": total.item(), "contrast": contrast.item()}
            total = total + contrastive_weight * contrast
        return total, figures

    return loss
