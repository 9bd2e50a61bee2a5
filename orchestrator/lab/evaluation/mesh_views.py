"""Photographs for the judge, of a mesh and of the true object: in the toybox's light, on a neutral ground."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, draw_mesh
from nerf3d.toybox.render import Shading, render_object
from nerf3d.toybox.truth import object_from_prompt
from orchestrator.exports.transform import fill_frame
from orchestrator.lab.evaluation.captions import is_toybox_prompt

__all__ = ["SHADINGS", "orbit", "photograph", "photograph_truth", "scattered", "toybox_lights"]

Shade = Literal["coloured", "textureless"]
SHADINGS: dict[Shade, Shading] = {"coloured": "lambert", "textureless": "textureless"}
"""What pictures are scored, and how the renderers call it."""

ELEVATION_DEGREES = 18.0
FRAME_RADIUS = 0.72
"""Bounding radius of the framed mesh, in scene units: the middle of the toybox's own objects."""

BACKGROUNDS = {"coloured": (0.72, 0.72, 0.72), "textureless": (0.35, 0.35, 0.35)}
"""Greys off the shades of the toybox's whites and greys; behind white clay a darker one, so that its shade stands out."""


def orbit(num_views: int) -> Cameras:
    """num_views cameras at equal distances around the object, the first at its front."""
    return Cameras.orbit([360 * view / num_views for view in range(num_views)], ELEVATION_DEGREES)


def scattered(num: int) -> Cameras:
    """num cameras of which no two stand alike: the golden angle from one to the next."""
    return Cameras.orbit([(137.508 * number + 30) % 360 for number in range(num)], ELEVATION_DEGREES)


def photograph(mesh: Mesh, *, num_views: int, size: int, shading: Shade = "coloured") -> Tensor:
    """(V, 3, size, size) in [0, 1]: the mesh, framed, from `orbit(num_views)`; lit white clay where "textureless"."""
    framed, cameras = fill_frame(mesh, radius=FRAME_RADIUS), orbit(num_views)
    views = [
        draw_mesh(
            framed,
            cameras[view],
            size,
            shading=SHADINGS[shading],
            background=BACKGROUNDS[shading],
            light=light,
        )[0]
        for view, light in enumerate(toybox_lights(cameras).tolist())
    ]
    return torch.cat(views)


def photograph_truth(prompt: str, cameras: Cameras, *, size: int, shading: Shade = "coloured") -> Tensor | None:
    """(V, 3, size, size): the object that a toybox prompt means, in its own size; None for any other sentence.

    What the judge makes of these pictures is the most that a mesh or a drawn picture can be expected to score.
    """
    truth = object_from_prompt(prompt) if is_toybox_prompt(prompt) else None
    if truth is None:
        return None
    return render_object(truth.parts, cameras, size, shading=SHADINGS[shading], background=BACKGROUNDS[shading])[0]


def toybox_lights(cameras: Cameras) -> Tensor:
    """(V, 3) unit, toward a light above and left of each camera, where `nerf3d.toybox.render.render_object` puts it."""
    axes = cameras.camera_to_world[:, :3, :3]
    return F.normalize(axes @ torch.tensor([-0.55, 0.0, 1.0]) + torch.tensor([0.0, 0.7, 0.0]), dim=-1)
