"""Analytic rendering of a batch of different toybox objects: nearest exact hit per ray, one light, one background.

Every part is projected, its screen rectangle is cut into square tiles, and all (part, tile) pairs of one primitive type
are intersected at once; the nearest part per ray is kept by one minimum over integers (depth bits, part index).
Nothing here has gradients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from nerf3d.cameras import Cameras
from nerf3d.toybox import primitives
from nerf3d.toybox.primitives import HEXAHEDRON, QUADRIC, TORUS, Parts

if TYPE_CHECKING:
    from nerf3d.toybox.items import Item

Shading = Literal["lambert", "albedo", "normal", "textureless"]
SHADINGS = ("lambert", "albedo", "normal", "textureless")

_TILE = 16
_TORUS_STEPS = 32
_CROSSING_SAMPLES = 96
_BISECTIONS = 16
_NO_HIT = torch.iinfo(torch.int64).max


@dataclasses.dataclass(frozen=True)
class Lighting:
    """V images' light. direction: (V, 3) unit, toward the light. ambient: (V,). background: (V, 3) in [0, 1]."""

    direction: Tensor
    ambient: Tensor
    background: Tensor

    def to(self, device: torch.device | str) -> Lighting:
        return Lighting(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))

    def __getitem__(self, index) -> Lighting:
        return Lighting(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))


def render_items(
    items: Sequence[Item],
    *,
    size: int = 64,
    supersample: int = 2,
    device: torch.device | str = "cpu",
    shading: Shading = "lambert",
    images_per_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Each item from its own camera, under its own light, on its own background.

    Returns rgb (N, 3, size, size) in [0, 1] over the background and alpha (N, 1, size, size), the share of the
    supersample^2 rays per pixel that hit. shading: "lambert"; "albedo" (unlit); "normal" (world normals, n / 2 + 1 / 2);
    "textureless" (white, lit). Raises ValueError for another shading.
    """
    cameras = Cameras.orbit([i.azimuth_degrees for i in items], [i.elevation_degrees for i in items], device=device)
    parts = primitives.cat([i.parts for i in items]).to(device)
    counts = torch.tensor([len(i.parts) for i in items], device=device)
    lighting = Lighting(
        torch.tensor([i.light for i in items]),
        torch.tensor([i.ambient for i in items]),
        torch.tensor([i.background for i in items]),
    ).to(device)
    return _render_chunks(parts, counts, cameras, lighting, size, supersample, shading, images_per_chunk)


def render_object(
    parts: Parts,
    cameras: Cameras,
    size: int,
    *,
    supersample: int = 2,
    shading: Shading = "lambert",
    background: Sequence[float] = (1.0, 1.0, 1.0),
    ambient: float = 0.5,
    light: Sequence[float] | None = None,
    images_per_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One object from V cameras, on the cameras' device: rgb (V, 3, size, size) and alpha, as in `render_items`.

    light: a world direction toward the light; without it each view is lit from above and left of its own camera.
    """
    device, num_views = cameras.camera_to_world.device, len(cameras)
    axes = cameras.camera_to_world[:, :3, :3]
    direction = axes @ torch.tensor([-0.55, 0.0, 1.0], device=device) + torch.tensor([0.0, 0.7, 0.0], device=device)
    if light is not None:
        direction = torch.tensor([light], device=device).expand(num_views, 3)
    lighting = Lighting(
        torch.nn.functional.normalize(direction, dim=-1),
        torch.full((num_views,), ambient, device=device),
        torch.tensor([background], device=device, dtype=torch.float32).expand(num_views, 3),
    )
    counts = torch.full((num_views,), len(parts), device=device)
    repeated = primitives.cat([parts.to(device)] * num_views)
    return _render_chunks(repeated, counts, cameras, lighting, size, supersample, shading, images_per_chunk)


def _render_chunks(parts, counts, cameras, lighting, size, supersample, shading, images_per_chunk):
    if shading not in SHADINGS:
        raise ValueError(f"shading is {shading!r}; choose one of {', '.join(SHADINGS)}, the only ones drawn here.")
    on_cpu = cameras.camera_to_world.device.type == "cpu"
    chunk = images_per_chunk or max(1, (32 if on_cpu else 1024) * 128**2 // (size * supersample) ** 2)
    ends = counts.cumsum(0).tolist()
    rgbs, alphas = [], []
    for start in range(0, len(counts), chunk):
        stop = min(start + chunk, len(counts))
        first = ends[start - 1] if start else 0
        image = torch.repeat_interleave(counts[start:stop])
        views = slice(start, stop)
        chunk_parts = parts[first : ends[stop - 1]]
        rgb, alpha = _render(chunk_parts, image, cameras[views], lighting[views], size, supersample, shading)
        rgbs.append(rgb)
        alphas.append(alpha)
    return torch.cat(rgbs), torch.cat(alphas)


@dataclasses.dataclass(frozen=True)
class _Rays:
    """Rays in local spaces: point = origin + depth * (right * px + up * py + ahead), one row per part.

    px and py are image-plane coordinates times tan(fov / 2); depth is the distance along the optical axis, metres.
    """

    origin: Tensor
    right: Tensor
    up: Tensor
    ahead: Tensor

    def __getitem__(self, index) -> _Rays:
        return _Rays(self.origin[index], self.right[index], self.up[index], self.ahead[index])


def _local_rays(parts: Parts, camera_to_world: Tensor) -> tuple[_Rays, Tensor]:
    """Rays of each part's image in the part's local space, and the inverse frames (P, 3, 3)."""
    inverse = torch.linalg.inv(parts.frame[:, :, :3])
    axes = inverse @ camera_to_world[:, :3, :3]
    origin = (inverse @ (camera_to_world[:, :3, 3] - parts.frame[:, :, 3])[..., None]).squeeze(-1)
    return _Rays(origin, axes[..., 0], axes[..., 1], -axes[..., 2]), inverse


def _render(parts: Parts, image: Tensor, cameras: Cameras, lighting: Lighting, size, supersample, shading):
    num_images, side = len(cameras), size * supersample
    tan_half = (cameras.fov_degrees.deg2rad() / 2).tan()
    camera_to_world = cameras.camera_to_world[image]
    rays, inverse = _local_rays(parts, camera_to_world)
    part_of_tile, column, row = _tiles(parts, camera_to_world, tan_half[image], side)
    keys = torch.full((num_images * side * side,), _NO_HIT, dtype=torch.int64, device=image.device)
    offsets = torch.arange(_TILE, device=image.device)
    shape_of_tile = parts.shape[part_of_tile]
    for shape, intersect in ((HEXAHEDRON, _hit_hexahedron), (QUADRIC, _hit_quadric), (TORUS, _hit_torus)):
        mine = torch.nonzero(shape_of_tile == shape).squeeze(-1)
        if not len(mine):
            continue
        part = part_of_tile[mine]
        pixel_x, pixel_y = column[mine][:, None] + offsets, row[mine][:, None] + offsets
        scale = tan_half[image[part]][:, None] / side
        px, py = (2 * pixel_x + 1 - side) * scale, (side - 1 - 2 * pixel_y) * scale
        depth, hit = intersect(parts.params[part], rays[part], px[:, None, :], py[:, :, None])
        hit &= ((pixel_x < side)[:, None, :]) & ((pixel_y < side)[:, :, None])
        where = torch.nonzero(hit.flatten()).squeeze(-1)
        tile = where // (_TILE * _TILE)
        within = where - tile * (_TILE * _TILE)
        corner = (image[part] * side + row[mine]) * side + column[mine]
        target = corner[tile] + (within // _TILE) * side + within % _TILE
        bits = depth.flatten()[where].view(torch.int32).to(torch.int64)
        keys.scatter_reduce_(0, target, (bits << 32) | part[tile], "amin")
    return _shade(keys, parts, image, inverse, rays, tan_half, lighting, num_images, size, supersample, shading)


def _tiles(parts: Parts, camera_to_world: Tensor, tan_half: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles that cover each part's screen rectangle: part index, first column and first row, each (T,)."""
    hull = primitives.hull_points(parts.shape, parts.params)
    hull = hull @ parts.frame[:, :, :3].transpose(1, 2) + (parts.frame[:, :, 3] - camera_to_world[:, :3, 3])[:, None]
    x, y, z = (hull @ camera_to_world[:, :3, :3]).unbind(-1)
    depth = (-z).clamp_min(1e-3) * tan_half[:, None]
    x, y = (x / depth + 1) * (side / 2), (1 - y / depth) * (side / 2)
    low_x, low_y = (v.amin(-1).sub(0.51).floor().clamp(0, side).long() for v in (x, y))
    high_x, high_y = (v.amax(-1).add(0.51).ceil().clamp(0, side).long() for v in (x, y))
    across = -((low_x - high_x) // _TILE)
    total = (across * -((low_y - high_y) // _TILE)).clamp_min(0)
    part = torch.repeat_interleave(total)
    ordinal = torch.arange(len(part), device=part.device) - (total.cumsum(0) - total)[part]
    across = across[part]
    return part, low_x[part] + ordinal % across * _TILE, low_y[part] + ordinal // across * _TILE


def _hit_hexahedron(params: Tensor, rays: _Rays, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Slab method. params (T, 6), px (T, 1, K), py (T, K, 1) -> depth (T, K, K) and hit, bool."""
    normals, offsets = primitives.hexahedron_planes(params)
    gap = offsets - (normals * rays.origin[:, None]).sum(-1)
    slope_x, slope_y, slope = ((normals * v[:, None]).sum(-1) for v in (rays.right, rays.up, rays.ahead))
    near, far = None, None
    for k in range(6):
        speed = slope_x[:, k, None, None] * px + (slope_y[:, k, None, None] * py + slope[:, k, None, None])
        depth = gap[:, k, None, None] / speed
        entering = speed < 0
        enter, leave = depth.masked_fill(~entering, 0.0), depth.masked_fill(entering, math.inf)
        near = enter if near is None else torch.maximum(near, enter, out=near)
        far = leave if far is None else torch.minimum(far, leave, out=far)
    return near, (near < far) & (near > 0)


def _directions(rays: _Rays, px: Tensor, py: Tensor) -> tuple[Tensor, ...]:
    """The three components of the local directions, each (T, K, K)."""
    pieces = zip(rays.right.unbind(-1), rays.up.unbind(-1), rays.ahead.unbind(-1), strict=True)
    return tuple(r[:, None, None] * px + (u[:, None, None] * py + a[:, None, None]) for r, u, a in pieces)


def _hit_quadric(params: Tensor, rays: _Rays, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of q(t) = A t^2 + 2 B t + C cut with the slab; where A < 0 the inside lies beyond the roots."""
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


def _hit_torus(params: Tensor, rays: _Rays, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Sphere tracing in local space, from the entry into the ring's bounding can, for the rays that enter it."""
    r = params[:, :1].squeeze(-1)
    can = torch.stack([(1 + r) ** 2, r * 0, r * 0, -r, r, r * 0], -1)
    start, near_can = _hit_quadric(can, rays, px, py)
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
    fraction = torch.linspace(0, 1, _CROSSING_SAMPLES, device=o.device)[:, None]
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


def _shade(keys, parts, image, inverse, rays, tan_half, lighting, num_images, size, supersample, shading):
    """Colours of the winners over the backgrounds, averaged over the supersamples."""
    side = size * supersample
    where = torch.nonzero(keys != _NO_HIT).squeeze(-1)
    winner = keys[where]
    part = winner & 0xFFFFFFFF
    depth = (winner >> 32).to(torch.int32).view(torch.float32)
    view = image[part]
    column, row = where % side, where // side % side
    scale = tan_half[view] / side
    px, py = ((2 * column + 1 - side) * scale)[:, None], ((side - 1 - 2 * row) * scale)[:, None]
    mine = rays[part]
    local = mine.origin + depth[:, None] * (mine.right * px + mine.up * py + mine.ahead)
    normal = primitives.local_normals(parts.shape[part], parts.params[part], local)
    normal = torch.nn.functional.normalize((normal[:, None] @ inverse[part]).squeeze(1), dim=-1)
    if shading == "normal":
        colour = normal / 2 + 0.5
    else:
        colour = torch.ones_like(normal) if shading == "textureless" else parts.albedo[part]
        if shading != "albedo":
            ambient = lighting.ambient[view]
            lambert = (normal * lighting.direction[view]).sum(-1).clamp_min(0)
            colour = colour * (ambient + (1 - ambient) * lambert)[:, None]
    canvas = torch.zeros((num_images * side * side, 4), device=keys.device)
    canvas[where] = torch.cat([colour, torch.ones_like(depth)[:, None]], -1)
    blocks = canvas.view(num_images, size, supersample, size, supersample, 4).mean((2, 4)).permute(0, 3, 1, 2)
    alpha = blocks[:, 3:]
    return blocks[:, :3] + (1 - alpha) * lighting.background[:, :, None, None], alpha.contiguous()
