"""Analytic solids, as density fields and as meshes, whose volume, area and topology are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import trimesh
from torch import Tensor

from nerf3d.mesh import Mesh

Distance = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class SolidField:
    """Density 50 (1 - tanh(20 (d - shift))), with `shift` chosen so that it is `iso` where the distance d is 0."""

    distance: Distance
    iso: float = 5.0
    peak: float = 100.0
    paint: Callable[[Tensor], Tensor] | None = None

    def density(self, points: Tensor) -> Tensor:
        offset = torch.logit(torch.tensor(self.iso / self.peak))
        return self.peak * torch.sigmoid(offset - 40 * self.distance(points))

    def colour(self, points: Tensor) -> Tensor:
        return self.paint(points) if self.paint else torch.full_like(points, 0.5)


def ball(radius: float, centre=(0.0, 0.0, 0.0)) -> Distance:
    return lambda p: (p - torch.tensor(centre)).norm(dim=-1) - radius


def block(*half: float) -> Distance:
    def distance(p: Tensor) -> Tensor:
        q = p.abs() - torch.tensor(half)
        return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)

    return distance


def ring(major: float, minor: float) -> Distance:
    """A torus around +Y."""
    return lambda p: torch.stack([p[:, [0, 2]].norm(dim=-1) - major, p[:, 1]], -1).norm(dim=-1) - minor


def union(*parts: Distance) -> Distance:
    return lambda p: torch.stack([part(p) for part in parts]).amin(0)


def without(solid: Distance, hole: Distance) -> Distance:
    return lambda p: torch.maximum(solid(p), -hole(p))


def sphere_mesh(radius: float, centre=(0.0, 0.0, 0.0), colour=(0.5, 0.5, 0.5), subdivisions: int = 4) -> Mesh:
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    colours = torch.tensor(colour).expand(len(shape.vertices), 3).numpy()
    return Mesh(shape.vertices + centre, shape.faces, shape.vertices / radius, colours)
