"""Photographs of a mesh for the judge: from all around, in the toybox's light, on a neutral ground."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, draw_mesh
from orchestrator.exports.transform import fill_frame

__all__ = ["SHADINGS", "orbit", "photograph", "toybox_lights"]

Shade = Literal["coloured", "textureless"]
SHADINGS: tuple[Shade, ...] = ("coloured", "textureless")

ELEVATION_DEGREES = 18.0
FRAME_RADIUS = 0.72
"""Bounding radius of the framed mesh, in scene units: the middle of the toybox's own objects."""

BACKGROUNDS = {"coloured": (0.72, 0.72, 0.72), "textureless": (0.35, 0.35, 0.35)}
"""Greys off the shades of the toybox's whites and greys; behind white clay a darker one, so that its shade stands out."""


def orbit(num_views: int) -> Cameras:
    """num_views cameras at equal distances around the object, the first at its front."""
    return Cameras.orbit([360 * view / num_views for view in range(num_views)], ELEVATION_DEGREES)


def photograph(mesh: Mesh, *, num_views: int, size: int, shading: Shade = "coloured") -> Tensor:
    """(V, 3, size, size) in [0, 1]: the mesh, framed, from `orbit(num_views)`; lit white clay where "textureless"."""
    framed, cameras = fill_frame(mesh, radius=FRAME_RADIUS), orbit(num_views)
    background = BACKGROUNDS[shading]
    views = [
        draw_mesh(
            framed,
            cameras[view],
            size,
            shading="lambert" if shading == "coloured" else "textureless",
            background=background,
            light=light,
        )[0]
        for view, light in enumerate(toybox_lights(cameras).tolist())
    ]
    return torch.cat(views)


def toybox_lights(cameras: Cameras) -> Tensor:
    """(V, 3) unit, toward a light above and left of each camera, where `nerf3d.toybox.render.render_object` puts it."""
    axes = cameras.camera_to_world[:, :3, :3]
    return F.normalize(axes @ torch.tensor([-0.55, 0.0, 1.0]) + torch.tensor([0.0, 0.7, 0.0]), dim=-1)
