"""Vertex colours: what a ray that meets the surface head-on would show."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

POINTS_PER_QUERY = 1 << 18


def query_in_chunks(function, points: Tensor) -> Tensor:
    """function(points (N, 3)) -> (N, ...), asked for at most POINTS_PER_QUERY points at a time, without gradients."""
    with torch.no_grad():
        return torch.cat([function(chunk) for chunk in points.split(POINTS_PER_QUERY)])


@torch.no_grad()
def prepared(field):
    """The field's query, its parameters worked out once for all that is asked (`nerf3d.fields.FieldQuery`), if it has one."""
    return field.query() if hasattr(field, "query") else field


def _density_and_colour(field):
    """A function of points (N, 3) that gives (N, 4): the density and the colour, of a query in one read."""

    def both(points: Tensor) -> Tensor:
        if hasattr(field, "samples"):
            density, colour, _ = field.samples(points)
        else:
            density, colour = field.density(points), field.colour(points)
        return torch.cat([density[:, None].to(colour.dtype), colour], 1)

    return both


def surface_colours(
    field,
    vertices: np.ndarray,
    normals: np.ndarray,
    *,
    step: float,
    num_steps: int = 10,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """(N, 3) float32 sRGB in [0, 1] from short rays that start at the surface and run inwards along the normal.

    step: distance between samples in scene units. Samples count as in volume rendering (Mildenhall et al. 2020, eq. 3),
    w_i = T_i (1 - exp(-sigma_i step)), so that the deep inside, which no picture ever showed, has no say. Each weight
    is multiplied by sigma_i: just under the surface the field is still thin and tinted by the background.
    """
    start = torch.as_tensor(vertices, device=device, dtype=torch.float32)
    inward = -torch.as_tensor(normals, device=device, dtype=torch.float32)
    depths = (torch.arange(num_steps, device=device) + 0.5) * step
    points = (start[:, None] + depths[None, :, None] * inward[:, None]).reshape(-1, 3).clamp(-1, 1)
    found = query_in_chunks(_density_and_colour(field), points).reshape(-1, num_steps, 4)
    optical, colours = (found[..., 0] * step).clamp(0, 1e4), found[..., 1:]
    passed = torch.cumsum(optical, 1) - optical
    weights = torch.exp(-passed) * (1 - torch.exp(-optical)) * optical + 1e-12
    mixed = (weights[..., None] * colours).sum(1) / weights.sum(1, keepdim=True)
    return mixed.clamp(0, 1).float().cpu().numpy()


def mend_colours(vertices: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, int]:
    """The colours (N, 3) with those that are not a number taken from the nearest vertex that has one, and how many these were.

    Where no vertex has a colour all become middle grey.
    """
    broken = ~np.isfinite(colours).all(1)
    if not broken.any():
        return colours, 0
    mended = colours.copy()
    if broken.all():
        mended[:] = 0.5
    else:
        from scipy.spatial import cKDTree

        _, nearest = cKDTree(vertices[~broken]).query(vertices[broken])
        mended[broken] = colours[~broken][nearest]
    return mended, int(broken.sum())
