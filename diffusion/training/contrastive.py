"""Contrastive objective of the CLIP towers."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.text.clip import Clip, contrastive_loss
from diffusion.training.loop import Loss


def clip_loss(
    clip: Clip,
    images: Callable[[Tensor], Tensor],
    ids: Callable[[Tensor, torch.Generator], Tensor],
    distractors: Callable[[Tensor], Tensor] | None = None,
) -> Loss:
    """InfoNCE over the batch.

    Args:
        images: row indices -> pictures (B, 3, H, W) in [0, 1].
        ids: row indices and a random stream -> token ids (B, S).
        distractors: row indices -> token ids (B, S) of sentences that are nearly right, such as those with two words
            exchanged: towers that never meet them read sentences as bags of words (Yuksekgonul et al. 2022, 2210.01936).
    """

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        text = clip.encode_text(ids(rows, generator))
        image = clip.encode_image(images(rows))
        wrong = None if distractors is None else clip.encode_text(distractors(rows))
        value = contrastive_loss(image, text, clip.logit_scale, distractors_DE=wrong)
        hits = (image @ text.T).argmax(dim=-1) == torch.arange(len(rows), device=image.device)
        return value, {"top1": hits.float().mean().item(), "scale": clip.logit_scale.exp().item()}

    return loss
