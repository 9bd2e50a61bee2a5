"""Shading of samples by one distant light per view: the toybox's formula, so that fits look like training pictures."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf3d.cameras import Cameras
from nerf3d.streams import uniform

Shading = Literal["albedo", "lambert", "textureless", "normal"]
SHADINGS: tuple[str, ...] = ("albedo", "lambert", "textureless", "normal")


@dataclasses.dataclass(frozen=True)
class Lights:
    """One light per view.

    Args:
        direction: (V, 3) unit vectors of the world, toward the light.
        ambient: (V,) in [0, 1], the share of light that comes from everywhere.
    """

    direction: Tensor
    ambient: Tensor

    def __getitem__(self, views) -> Lights:
        return Lights(self.direction[views], self.ambient[views])

    def to(self, device: torch.device | str) -> Lights:
        """A copy on the device, or this one where it is there already."""
        return Lights(self.direction.to(device), self.ambient.to(device))


def needs_normals(shading: Shading) -> bool:
    """Whether the shading asks the field for normals. Raises ValueError for one that is not among SHADINGS."""
    if shading not in SHADINGS:
        raise ValueError(f"shading is {shading!r}; choose one of {', '.join(SHADINGS)}.")
    return shading != "albedo"


def shade(albedo: Tensor, normals: Tensor | None, *, shading: Shading, direction: Tensor, ambient: Tensor) -> Tensor:
    """albedo * (ambient + (1 - ambient) * max(0, n . l)), as `nerf3d.toybox.render` (DreamFusion, section 3.1).

    albedo, normals, direction: (N, 3), ambient: (N,). "textureless" lights white, "normal" shows n / 2 + 1 / 2.
    Returns (N, 3) in [0, 1].
    """
    if not needs_normals(shading):
        return albedo
    assert normals is not None
    if shading == "normal":
        return normals / 2 + 0.5
    colour = torch.ones_like(albedo) if shading == "textureless" else albedo
    lambert = (normals * direction).sum(-1).clamp_min(0)
    return colour * (ambient + (1 - ambient) * lambert)[:, None]


def headlights(cameras: Cameras, *, ambient: float = 0.5) -> Lights:
    """A light to the upper left of each camera: the light of previews, as in `nerf3d.toybox.render_object`."""
    beside = torch.full_like(cameras.radius, -0.55)
    return _lights_beside(cameras, beside, torch.full_like(beside, 0.7), torch.full_like(beside, ambient))


def sample_lights(cameras: Cameras, *, generator: torch.Generator) -> Lights:
    """Random lights as in the toybox's training pictures (`nerf3d.toybox.items`), on the cameras' device.

    Directions are the camera's, moved to one side and upward; ambient is uniform in [0.35, 0.7).
    """
    shape = (len(cameras),)
    side = (uniform(shape, generator) < 0.5).float() * 2 - 1
    beside = side * uniform(shape, generator, 0.35, 1.1)
    return _lights_beside(cameras, beside, uniform(shape, generator, 0.2, 1.0), uniform(shape, generator, 0.35, 0.7))


def lights_around(cameras: Cameras, *, generator: torch.Generator) -> Lights:
    """Random lights as DreamFusion draws them (2209.14988, appendix A.2), on the cameras' device.

    They shine from where a standard normal step from the camera leads to; ambient is 0.1. threestudio's stand at a distance
    of 0.8 to 1.5 there, ours are as far as the sun.
    """
    places = cameras.camera_to_world[:, :3, 3]
    step = torch.empty(places.shape, device=generator.device).normal_(generator=generator).to(places)
    return Lights(F.normalize(places + step, dim=-1), torch.full_like(cameras.radius, 0.1))


def _lights_beside(cameras: Cameras, beside: Tensor, above: Tensor, ambient: Tensor) -> Lights:
    """Lights at each camera's place, moved along its right axis and world up, in units of its distance. Each (V,)."""
    axes = cameras.camera_to_world[:, :3, :3]
    device = axes.device
    up = torch.tensor([0.0, 1.0, 0.0], device=device)
    direction = axes[:, :, 2] + beside.to(device)[:, None] * axes[:, :, 0] + above.to(device)[:, None] * up
    return Lights(F.normalize(direction, dim=-1), ambient.to(device))
