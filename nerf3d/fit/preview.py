"""How a fit under way looks from a few sides."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nerf3d.cameras import Cameras
from nerf3d.fit.state import FitState
from nerf3d.rendering import render_views

__all__ = ["look_around", "preview_views"]

ELEVATION_DEGREES = 15.0
BACKGROUND = 0.9


def look_around(state: FitState, *, num_views: int = 4, size: int = 96) -> tuple[Tensor, Cameras]:
    """(num_views, 3, size, size) in [0, 1]: the field from evenly spread sides, the front first, and where each was seen from.

    Draws no random numbers and changes nothing, so that a fit that was looked at ends as one that was not.
    """
    config, device = state.config, next(state.field.parameters()).device
    azimuth = torch.arange(num_views) * (360 / num_views)
    elevation = torch.full((num_views,), ELEVATION_DEGREES)
    cameras = Cameras.orbit(azimuth, elevation, radius=config.radius, fov_degrees=config.fov_degrees).to(device)
    with torch.no_grad():
        rgb, _ = render_views(
            state.field,
            state.occupancy,
            cameras,
            size,
            background=torch.full((3,), BACKGROUND, device=device),
            shading="albedo",
            num_samples=config.num_samples,
        )
    return rgb, cameras


def preview_views(state: FitState, *, num_views: int = 4, size: int = 96) -> np.ndarray:
    """uint8 (num_views, size, size, 3): `look_around`, before light grey."""
    rgb, _ = look_around(state, num_views=num_views, size=size)
    return (rgb.permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
