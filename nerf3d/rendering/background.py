"""The background: one colour a view, from the distribution of the toybox's training pictures, or one that is learned.

A background that the prior saw in training, and that changes at every step, is what keeps pale density from hiding
in it; in a learned one there is place for ghosts, but it is what a prior of photographs expects.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nerf3d.cameras import Cameras
from nerf3d.streams import global_stream, stream_seed, uniform

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


class LearnedBackground(nn.Module):
    """A colour for every direction: nine spherical harmonics and two hidden layers of 16, as threestudio's dreamfusion-sd."""

    def __init__(self, *, seed: int = 0):
        super().__init__()
        with global_stream(stream_seed(seed, "background")):
            self.layers = nn.Sequential(
                nn.Linear(9, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False)
            )

    def forward(self, cameras: Cameras, size: int) -> Tensor:
        """(V, 3, size, size) in [0, 1], what stands behind each pixel."""
        _, directions = cameras.rays(size, size)
        return self.layers(spherical_harmonics(directions)).sigmoid().permute(0, 3, 1, 2)


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Unit directions (..., 3) -> the nine real spherical harmonics of degrees 0 to 2, (..., 9), orthonormal on the sphere."""
    x, y, z = directions.unbind(-1)
    degrees = [
        torch.full_like(x, 0.28209479177387814),
        *(0.48860251190291987 * axis for axis in (y, z, x)),
        *(1.0925484305920792 * product for product in (x * y, y * z, x * z)),
        0.31539156525252005 * (3 * z * z - 1),
        0.5462742152960396 * (x * x - y * y),
    ]
    return torch.stack(degrees, dim=-1)


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
