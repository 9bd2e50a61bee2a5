"""What latents look like without a decoder: the affine map from their channels to colours, one pixel a latent.

An autoencoder of latent diffusion keeps a picture's layout and most of its colours linearly, so that a map with a few
numbers shows what a sampler is drawing, thousands of times faster than the decoder.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.seeding import normal_rows, stream

NUM_PICTURES = 16
SIDE = 8
"""Latents a side of the pictures that the map is fitted on."""


@dataclass(frozen=True, eq=False)
class LatentColours:
    """weight: (3, C). bias: (3,)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, encode: Callable[[Tensor], Tensor], *, factor: int, device: torch.device) -> "LatentColours":
        """Least squares over soft random pictures, which an autoencoder meets everywhere and which need no files.

        Args:
            encode: images (B, 3, H, W) in [0, 1] -> latents (B, C, H / factor, W / factor).
        """
        coarse = normal_rows((3, 3, 3), [stream(0, "latent colours", row) for row in range(NUM_PICTURES)], device=device)
        size = SIDE * factor
        pictures = F.interpolate(coarse, size=(size, size), mode="bicubic").sigmoid()
        latents = encode(pictures).double().permute(0, 2, 3, 1).flatten(0, 2)
        colours = F.avg_pool2d(pictures, factor).double().permute(0, 2, 3, 1).flatten(0, 2)
        inputs = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
        solution = torch.linalg.lstsq(inputs.cpu(), colours.cpu()).solution.float().to(device)
        return cls(solution[:-1].T.contiguous(), solution[-1])

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> colours (B, 3, h, w), clamped to [0, 1]."""
        mapped = F.conv2d(latents.to(self.weight.dtype), self.weight[:, :, None, None], self.bias)
        return mapped.clamp(0, 1)
