"""Pictures brought to a prior's own size, and gradients on them brought back, as two products with one matrix.

Products add in one order whatever runs beside them, which torch's backward pass of its interpolation does not do on CUDA, and
in float64 no fast mode of a device rounds them.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.seeding import sent


@functools.lru_cache(maxsize=32)
def bilinear(before: int, after: int, device: torch.device) -> Tensor:
    """(after, before) float64: a line of pixels resampled bilinearly, antialiased where it shrinks, as F.interpolate does."""
    line = torch.eye(before, dtype=torch.float64)[None, None]
    shrinks = before > after
    matrix = F.interpolate(line, size=(after, before), mode="bilinear", align_corners=False, antialias=shrinks)
    return sent(matrix[0, 0], device)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, *size)."""
    rows, columns = (bilinear(before, after, images.device) for before, after in zip(images.shape[-2:], size, strict=True))
    return (rows @ images.double() @ columns.T).to(images.dtype)


def pulled_back(gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """The vector-Jacobian product of `resized` for images of this (height, width): (B, C, h, w) to (B, C, *size)."""
    rows, columns = (bilinear(before, after, gradient.device) for before, after in zip(size, gradient.shape[-2:], strict=True))
    return (rows.T @ gradient.double() @ columns).to(gradient.dtype)
