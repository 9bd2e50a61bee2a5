"""Three solid primitives under affine frames: the exact geometry behind every toybox object.

Each primitive is a row of six numbers in its local space, so that parts of many objects lie in plain arrays:

HEXAHEDRON (bx, bz, tx, tz, sx, sz): |y| <= 1, a rectangle of half extents (bx, bz) at y = -1 that changes linearly to
    (tx, tz) at y = 1, its centre moved there by (sx, sz): boxes, pyramids, prisms, wedges.
QUADRIC (a, b, c, y0, y1, 0): x^2 + z^2 <= a + b y + c y^2 and y0 <= y <= y1: balls, domes, tubes, cones, barrels.
TORUS (r, 0, 0, 0, 0, 0): a ring of radius 1 around the y axis, of thickness radius r < 1.

A frame (3, 4) takes local points to world points: world = frame[:, :3] @ local + frame[:, 3].
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

HEXAHEDRON, QUADRIC, TORUS = 0, 1, 2
NUM_PARAMS = 6
MAX_PARTS = 14


@dataclasses.dataclass(frozen=True)
class Parts:
    """P parts, whose union is an object (or many objects, in the renderer).

    shape: (P,) int64, one of HEXAHEDRON, QUADRIC, TORUS. params: (P, 6). frame: (P, 3, 4) local to world, metres.
    albedo: (P, 3) in [0, 1].
    """

    shape: Tensor
    params: Tensor
    frame: Tensor
    albedo: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index) -> Parts:
        return Parts(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    def to(self, device: torch.device | str) -> Parts:
        """A copy on the device, or this one where it is there already."""
        return Parts(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance bound (..., 3) -> (...), metres: negative inside; outside never more than the distance."""
        return signed_bounds(self, points).amin(-1)

    def occupancy(self, points: Tensor) -> Tensor:
        """(..., 3) world points -> (...) bool, true inside or on the surface."""
        return self.sdf(points) <= 0


def cat(parts: list[Parts]) -> Parts:
    """All parts of several objects as one, in order; on one device."""
    return Parts(*(torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Parts)))


def hexahedron_planes(params: Tensor) -> tuple[Tensor, Tensor]:
    """Six half-spaces normal . p <= offset of each hexahedron: normals (P, 6, 3), not unit; offsets (P, 6)."""
    bx, bz, tx, tz, sx, sz = params.unbind(-1)
    one, zero = torch.ones_like(bx), torch.zeros_like(bx)
    gx, gz, hx, hz = (sx + tx - bx) / 2, (sz + tz - bz) / 2, (sx - tx + bx) / 2, (sz - tz + bz) / 2
    rows = [
        (one, -gx, zero),
        (-one, hx, zero),
        (zero, one, zero),
        (zero, -one, zero),
        (zero, -gz, one),
        (zero, hz, -one),
    ]
    normals = torch.stack([torch.stack(r, -1) for r in rows], -2)
    return normals, torch.stack([bx + gx, bx - hx, one, one, bz + gz, bz - hz], -1)


def local_points(parts: Parts, points: Tensor) -> tuple[Tensor, Tensor]:
    """World points (..., 3) in every part's local space: (..., P, 3), and the inverse frames (P, 3, 3)."""
    inverse = torch.linalg.inv(parts.frame[:, :, :3])
    return torch.einsum("pij,...pj->...pi", inverse, points[..., None, :] - parts.frame[:, :, 3]), inverse


def signed_bounds(parts: Parts, points: Tensor) -> Tensor:
    """Signed distance bounds of each part, (..., 3) -> (..., P), metres."""
    local, inverse = local_points(parts, points)
    out = local.new_empty(local.shape[:-1])
    for shape, function in ((HEXAHEDRON, _hexahedron_bound), (QUADRIC, _quadric_bound), (TORUS, _torus_bound)):
        mine = parts.shape == shape
        if mine.any():
            out[..., mine] = function(local[..., mine, :], parts.params[mine], inverse[mine])
    return out


def _hexahedron_bound(local: Tensor, params: Tensor, inverse: Tensor) -> Tensor:
    normals, offsets = hexahedron_planes(params)
    world_norm = torch.einsum("pkj,pji->pki", normals, inverse).norm(dim=-1)
    return ((torch.einsum("pkj,...pj->...pk", normals, local) - offsets) / world_norm).amax(-1)


def _quadric_bound(local: Tensor, params: Tensor, inverse: Tensor) -> Tensor:
    """|q(p + d) - q(p)| <= |grad q| |d| + k |d|^2 with k half the largest curvature, solved for |d|."""
    a, b, c, y0, y1, _ = params.unbind(-1)
    x, y, z = local.unbind(-1)
    q = x * x + z * z - a - b * y - c * y * y
    gradient = torch.stack([2 * x, -b - 2 * c * y, 2 * z], -1)
    slope = torch.einsum("...pj,pji->...pi", gradient, inverse).norm(dim=-1)
    curvature = c.abs().clamp_min(1) * torch.linalg.matrix_norm(inverse, ord=2) ** 2
    side = q.sign() * 2 * q.abs() / (slope + (slope**2 + 4 * curvature * q.abs()).sqrt()).clamp_min(1e-12)
    cap = torch.maximum(y0 - y, y - y1) / inverse[:, 1].norm(dim=-1)
    return torch.maximum(side, cap)


def _torus_bound(local: Tensor, params: Tensor, inverse: Tensor) -> Tensor:
    return torus_distance(local, params[:, 0]) / torch.linalg.matrix_norm(inverse, ord=2)


def torus_distance(local: Tensor, thickness: Tensor) -> Tensor:
    """Exact signed distance in local space, (..., 3) -> (...)."""
    x, y, z = local.unbind(-1)
    return (((x * x + z * z).sqrt() - 1) ** 2 + y * y).sqrt() - thickness


def local_normals(shape: Tensor, params: Tensor, local: Tensor) -> Tensor:
    """Outward local normals, not unit, at M surface points. shape (M,), params (M, 6), local (M, 3) -> (M, 3)."""
    out = torch.empty_like(local)
    hexa, quad, ring = (torch.nonzero(shape == s).squeeze(-1) for s in (HEXAHEDRON, QUADRIC, TORUS))
    if len(hexa):
        normals, offsets = hexahedron_planes(params[hexa])
        excess = ((normals * local[hexa, None]).sum(-1) - offsets) / normals.norm(dim=-1)
        out[hexa] = normals[torch.arange(len(hexa), device=hexa.device), excess.argmax(-1)]
    if len(quad):
        a, b, c, y0, y1, _ = params[quad].unbind(-1)
        x, y, z = local[quad].unbind(-1)
        gradient = torch.stack([2 * x, -b - 2 * c * y, 2 * z], -1)
        q = x * x + z * z - a - b * y - c * y * y
        side = q / gradient.norm(dim=-1).clamp_min(1e-6)
        cap = torch.maximum(y0 - y, y - y1)
        flat = torch.zeros_like(gradient)
        flat[:, 1] = torch.where(y > (y0 + y1) / 2, 1.0, -1.0)
        out[quad] = torch.where((cap > side)[:, None], flat, gradient)
    if len(ring):
        p = local[ring]
        rho = (p[:, 0] ** 2 + p[:, 2] ** 2).sqrt().clamp_min(1e-6)
        pull = 1 - 1 / rho
        out[ring] = torch.stack([p[:, 0] * pull, p[:, 1], p[:, 2] * pull], -1)
    return out


_RING = 12
_HEIGHTS = 7
NUM_HULL_POINTS = _RING * _HEIGHTS


def hull_points(shape: Tensor, params: Tensor) -> Tensor:
    """Local points whose convex hull holds each part, (P, 84, 3); exact for boxes, up to 8 % wide else."""
    device, dtype = params.device, params.dtype
    angle = torch.arange(_RING, device=device, dtype=dtype) * (2 * math.pi / _RING)
    level = torch.linspace(-math.pi / 2, math.pi / 2, _HEIGHTS, device=device, dtype=dtype).sin()
    a, b, c, y0, y1, _ = params.unbind(-1)
    y = (y0 + y1)[:, None] / 2 + (y1 - y0)[:, None] / 2 * level
    radius = (a[:, None] + b[:, None] * y + c[:, None] * y * y).clamp_min(0).sqrt() / math.cos(math.pi / _RING)
    y = y + torch.where((c < 0) | ((c == 0) & (b != 0)), 0.04, 0.0)[:, None] * (y1 - y0)[:, None] / 2 * level
    radius = radius * torch.where(c < 0, 1.04, 1.0)[:, None]
    torus = shape == TORUS
    thickness = params[:, :1]
    radius = torch.where(torus[:, None], (1 + thickness) / math.cos(math.pi / _RING), radius)
    y = torch.where(torus[:, None], thickness * level, y)
    x, z = radius[..., None] * angle.cos(), radius[..., None] * angle.sin()
    points = torch.stack([x, y[..., None].expand_as(x), z], -1).flatten(1, 2)
    hexa = torch.nonzero(shape == HEXAHEDRON).squeeze(-1)
    if len(hexa):
        points[hexa] = hexahedron_corners(params[hexa]).repeat(1, -(-NUM_HULL_POINTS // 8), 1)[:, :NUM_HULL_POINTS]
    return points


def hexahedron_corners(params: Tensor) -> Tensor:
    """The eight corners, (P, 8, 3)."""
    bx, bz, tx, tz, sx, sz = params.unbind(-1)
    one = torch.ones_like(bx)
    corners = []
    for u in (-1, 1):
        for v in (-1, 1):
            corners.append(torch.stack([u * bx, -one, v * bz], -1))
            corners.append(torch.stack([sx + u * tx, one, sz + v * tz], -1))
    return torch.stack(corners, -2)
