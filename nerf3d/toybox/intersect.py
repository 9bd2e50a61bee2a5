"""Rays against many primitives of one type at once, in the primitives' local spaces.

Every function takes params (T, 6), T bundles of rays, and image-plane coordinates px (T, 1, K) and py (T, K, 1); it
returns the depth of the first hit (T, K, K), metres, and whether there is one, bool.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from nerf3d.toybox import primitives

_TORUS_STEPS = 32
_CROSSING_SAMPLES = 96
_BISECTIONS = 16


@dataclasses.dataclass(frozen=True)
class LocalRays:
    """Rays in local spaces: point = origin + depth * (right * px + up * py + ahead), one row per part.

    px and py are image-plane coordinates times tan(fov / 2); depth is the distance along the optical axis, metres.

    Args:
        origin, right, up, ahead: (T, 3) each, of T bundles of rays.
    """

    origin: Tensor
    right: Tensor
    up: Tensor
    ahead: Tensor

    def __getitem__(self, index) -> LocalRays:
        return LocalRays(self.origin[index], self.right[index], self.up[index], self.ahead[index])


def hit_hexahedron(params: Tensor, rays: LocalRays, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Slab method: behind the last plane entered, before the first one left.

    params (T, 6), px (T, 1, K) and py (T, K, 1) to depths and hits (T, K, K).
    """
    normals, offsets = primitives.hexahedron_planes(params)
    gap = offsets - (normals * rays.origin[:, None]).sum(-1)
    slope_x, slope_y, slope = ((normals * v[:, None]).sum(-1) for v in (rays.right, rays.up, rays.ahead))
    near = torch.zeros_like(px * py)
    far = torch.full_like(near, math.inf)
    for k in range(6):
        speed = slope_x[:, k, None, None] * px + (slope_y[:, k, None, None] * py + slope[:, k, None, None])
        depth = gap[:, k, None, None] / speed
        entering = speed < 0
        enter, leave = depth.masked_fill(~entering, 0.0), depth.masked_fill(entering, math.inf)
        torch.maximum(near, enter, out=near)
        torch.minimum(far, leave, out=far)
    return near, (near < far) & (near > 0)


def _directions(rays: LocalRays, px: Tensor, py: Tensor) -> tuple[Tensor, ...]:
    """The three components of the local directions, each (T, K, K)."""
    pieces = zip(rays.right.unbind(-1), rays.up.unbind(-1), rays.ahead.unbind(-1), strict=True)
    return tuple(r[:, None, None] * px + (u[:, None, None] * py + a[:, None, None]) for r, u, a in pieces)


def hit_quadric(params: Tensor, rays: LocalRays, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of q(t) = A t^2 + 2 B t + C cut with the slab; where A < 0 the inside lies beyond the roots.

    params (T, 6), px (T, 1, K) and py (T, K, 1) to depths and hits (T, K, K).
    """
    a, b, c, y0, y1, _ = (v[:, None, None] for v in params.unbind(-1))
    dx, dy, dz = _directions(rays, px, py)
    ox, oy, oz = (v[:, None, None] for v in rays.origin.unbind(-1))
    first, second = (y0 - oy) / dy, (y1 - oy) / dy
    near, far = torch.minimum(first, second).clamp_min_(0), torch.maximum(first, second)
    quadratic = dx * dx + dz * dz - c * (dy * dy)
    quadratic = torch.where(quadratic.abs() < 1e-6, 1e-6, quadratic)
    linear = ox * dx + oz * dz - (c * oy + b / 2) * dy
    constant = ox * ox + oz * oz - a - b * oy - c * oy * oy
    discriminant = linear * linear - quadratic * constant
    root = discriminant.clamp_min(0).sqrt_()
    one, two = (-linear - root) / quadratic, (root - linear) / quadratic
    low, high = torch.minimum(one, two), torch.maximum(one, two)
    convex, real = quadratic > 0, discriminant > 0
    inside_near, inside_far = torch.maximum(near, low), torch.minimum(far, high)
    beyond_near = torch.where(near < low, near, torch.maximum(near, high))
    use_slab = ~convex & ~real
    depth = torch.where(convex, inside_near, torch.where(use_slab, near, beyond_near))
    end = torch.where(convex, inside_far, far)
    return depth, (depth < end) & (depth > 0) & (real | ~convex)


def hit_torus(params: Tensor, rays: LocalRays, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Sphere tracing to (T, K, K) in local space, from the entry into the ring's bounding can, for the rays that enter it."""
    r = params[:, :1].squeeze(-1)
    can = torch.stack([(1 + r) ** 2, r * 0, r * 0, -r, r, r * 0], -1)
    start, near_can = hit_quadric(can, rays, px, py)
    depth, hit = torch.zeros_like(start), torch.zeros_like(near_can)
    active = torch.nonzero(near_can.flatten()).squeeze(-1)
    num_tile_rays = start.shape[1] * start.shape[2]
    tile = active // num_tile_rays
    d = torch.stack([v.flatten()[active] for v in _directions(rays, px, py)])
    o, r, t = rays.origin[tile].T, r[tile], start.flatten()[active]
    speed = d.norm(dim=0)
    last = t * speed + 2.5 * (1 + r)
    for step in range(_TORUS_STEPS):
        gap = primitives.torus_distance((o + t * d).T, r) / speed
        t = t + gap
        if step % 8 == 7:
            keep = (t * speed < last) & (gap.abs() > 2e-6)
            done = ~keep & (gap.abs() <= 2e-5)
            depth.view(-1)[active[done]], hit.view(-1)[active[done]] = t[done], True
            if not keep.any():
                return depth, hit
            active, d, o = active[keep], d[:, keep], o[:, keep]
            r, t, speed, last = r[keep], t[keep], speed[keep], last[keep]
    found, t = _first_crossing(o, d, r, t, last / speed)
    depth.view(-1)[active[found]], hit.view(-1)[active[found]] = t[found], True
    return depth, hit


def _first_crossing(o: Tensor, d: Tensor, r: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """For rays that glide along a torus, where sphere tracing crawls: the first sign change on samples, bisected.

    o, d: (3, M). r, start, end: (M,). Returns found (M,) bool and the depth (M,).
    """
    # Squared: the crossing is likely near, at the far end of the shallow stretch that the ray is crawling along.
    fraction = torch.linspace(0, 1, _CROSSING_SAMPLES, device=o.device)[:, None] ** 2
    t = start + fraction * (end - start)
    points = (o[:, None] + t * d[:, None]).permute(1, 2, 0)
    inside = primitives.torus_distance(points, r) < 0
    first = inside.to(torch.uint8).argmax(0)
    high = t.gather(0, first[None]).squeeze(0)
    low = t.gather(0, (first - 1).clamp_min(0)[None]).squeeze(0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        within = primitives.torus_distance((o + middle * d).T, r) < 0
        low, high = torch.where(within, low, middle), torch.where(within, middle, high)
    return inside.any(0), high
