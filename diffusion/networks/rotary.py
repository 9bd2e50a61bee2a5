"""Rotary positions (Su et al. 2021, arXiv:2104.09864): pairs of a head's numbers are turned by angles that grow with position.

Neighbouring numbers are a pair, and each axis of positions turns some of them, as the flow transformers have it.
"""

import functools

import torch
from torch import Tensor


@functools.cache
def rotation_table(dim: int, length: int, theta: float, *, rounds_angles: bool = True) -> Tensor:
    """Cosine and sine of an axis that turns `dim` numbers: (length, dim / 2, 2) float32.

    rounds_angles: to float32 before, as Z-Image has it, and FLUX.2 has it not.
    """
    frequencies = 1 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    angles = angles.float() if rounds_angles else angles
    return torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).float()


def rotated(x_BNLd: Tensor, rotations: Tensor) -> Tensor:
    """Heads (B, N, L, d) turned by `rotations` (B or 1, L, d / 2, 2), in float32 at least."""
    first, second = x_BNLd.to(torch.promote_types(x_BNLd.dtype, torch.float32)).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotations[:, None].unbind(-1)
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return turned.flatten(-2).to(x_BNLd.dtype)
