"""Contrastive objective of the CLIP towers."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.text.clip import Clip, contrastive_loss
from diffusion.training.loop import Loss


def clip_loss(clip: Clip, images: Callable[[Tensor], Tensor], ids: Callable[[Tensor, torch.Generator], Tensor]) -> Loss:
    """InfoNCE over the batch.

    Args:
        images: row indices -> pictures (B, 3, H, W) in [0, 1].
        ids: row indices and a random stream -> token ids (B, S).
    """

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        text = clip.encode_text(ids(rows, generator))
        image = clip.encode_image(images(rows))
        value = contrastive_loss(image, text, clip.logit_scale)
        hits = (image @ text.T).argmax(dim=-1) == torch.arange(len(rows), device=image.device)
        return value, {"top1": hits.float().mean().item(), "scale": clip.logit_scale.exp().item()}

    return loss
