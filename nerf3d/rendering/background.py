"""The background: one constant colour per view, from the distribution of the toybox's training pictures.

A background that the prior saw in training, and that changes at every step, is what keeps pale density from hiding
in it; a learned one would be a place for ghosts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerf3d.streams import uniform

MIN_DISTANCE = 0.15
"""Euclidean distance in [0, 1]^3 that the toybox keeps between a background and an object's colours."""

_TRIES = 12


def sample_backgrounds(num_views: int, *, generator: torch.Generator, avoid: Tensor | None = None) -> Tensor:
    """(num_views, 3) in [0, 1], on the generator's device: half greys, half hues, as in `nerf3d.toybox.items`.

    avoid: (N, 3) colours of the object. Each view gets the first of 12 draws that is MIN_DISTANCE away from nine tenths
    of them, or else the farthest; without them, or with N = 0, the first draw.
    """
    candidates = _draw(num_views * _TRIES, generator).view(num_views, _TRIES, 3)
    if avoid is None or not len(avoid):
        return candidates[:, 0]
    distances = torch.cdist(candidates, avoid.to(candidates)[None])
    gap = distances.quantile(0.1, dim=-1)
    # Any gap that is wide enough counts the same, and argmax takes the first of equals.
    return candidates[torch.arange(num_views), gap.clamp_max(MIN_DISTANCE).argmax(-1)]


def _draw(count: int, generator: torch.Generator) -> Tensor:
    is_grey = uniform((count, 1), generator) < 0.5
    grey = uniform((count, 1), generator, 0.04, 1.0).expand(-1, 3)
    hue = uniform((count,), generator)
    saturation = uniform((count,), generator, 0.2, 0.95)
    value = uniform((count,), generator, 0.3, 1.0)
    return torch.where(is_grey, grey, _hsv_to_rgb(hue, saturation, value))


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Each (N,) in [0, 1] -> (N, 3), the hexcone formula."""
    sector = (torch.tensor([5.0, 3.0, 1.0], device=hue.device) + 6 * hue[:, None]) % 6
    ramp = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * ramp)
