"""The background: one constant colour per view, from the distribution of the toybox's training pictures.

A background that the prior saw in training, and that changes at every step, is what keeps pale density from hiding
in it; a learned one would be a place for ghosts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerf3d.streams import uniform


def sample_backgrounds(num_views: int, *, generator: torch.Generator) -> Tensor:
    """(num_views, 3) in [0, 1], on the generator's device: half greys, half hues, as in `nerf3d.toybox.items`."""
    is_grey = uniform((num_views, 1), generator) < 0.5
    grey = uniform((num_views, 1), generator, 0.04, 1.0).expand(-1, 3)
    hue = uniform((num_views,), generator)
    saturation = uniform((num_views,), generator, 0.2, 0.95)
    value = uniform((num_views,), generator, 0.3, 1.0)
    return torch.where(is_grey, grey, _hsv_to_rgb(hue, saturation, value))


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Each (N,) in [0, 1] -> (N, 3), the hexcone formula."""
    sector = (torch.tensor([5.0, 3.0, 1.0], device=hue.device) + 6 * hue[:, None]) % 6
    ramp = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * ramp)
