"""Analytic rendering of a batch of different toybox objects: nearest exact hit per ray, one light, one background.

Every part is projected, its screen rectangle is cut into square tiles, and all (part, tile) pairs of one primitive type
are intersected at once; the nearest part per ray is kept by one minimum over integers (depth bits, part index).
Nothing here has gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from nerf3d.cameras import Cameras
from nerf3d.toybox import primitives
from nerf3d.toybox.intersect import LocalRays, hit_hexahedron, hit_quadric, hit_torus
from nerf3d.toybox.primitives import HEXAHEDRON, QUADRIC, TORUS, Parts

if TYPE_CHECKING:
    from nerf3d.toybox.items import Item

Shading = Literal["lambert", "albedo", "normal", "textureless"]
SHADINGS = ("lambert", "albedo", "normal", "textureless")

_TILE = 16
_NO_HIT = torch.iinfo(torch.int64).max


@dataclasses.dataclass(frozen=True)
class Lighting:
    """The light and the background of V images.

    Args:
        direction: (V, 3) unit vectors toward the light.
        ambient: (V,) in [0, 1]. background: (V, 3) in [0, 1].
    """

    direction: Tensor
    ambient: Tensor
    background: Tensor

    def to(self, device: torch.device | str) -> Lighting:
        """A copy on the device, or this one where it is there already."""
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
    supersample^2 rays per pixel that hit. shading: "lambert"; "albedo" (unlit); "normal" (world
    normals n as n / 2 + 1 / 2); "textureless" (white, lit). Raises ValueError for another shading.
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


def _local_rays(parts: Parts, camera_to_world: Tensor) -> tuple[LocalRays, Tensor]:
    """Rays of each part's image in the part's local space, and the inverse frames (P, 3, 3)."""
    inverse = torch.linalg.inv(parts.frame[:, :, :3])
    axes = inverse @ camera_to_world[:, :3, :3]
    origin = (inverse @ (camera_to_world[:, :3, 3] - parts.frame[:, :, 3])[..., None]).squeeze(-1)
    return LocalRays(origin, axes[..., 0], axes[..., 1], -axes[..., 2]), inverse


def _render(parts: Parts, image: Tensor, cameras: Cameras, lighting: Lighting, size, supersample, shading):
    num_images, side = len(cameras), size * supersample
    tan_half = (cameras.fov_degrees.deg2rad() / 2).tan()
    camera_to_world = cameras.camera_to_world[image]
    rays, inverse = _local_rays(parts, camera_to_world)
    part_of_tile, column, row = _tiles(parts, camera_to_world, tan_half[image], side)
    keys = torch.full((num_images * side * side,), _NO_HIT, dtype=torch.int64, device=image.device)
    offsets = torch.arange(_TILE, device=image.device)
    shape_of_tile = parts.shape[part_of_tile]
    for shape, intersect in ((HEXAHEDRON, hit_hexahedron), (QUADRIC, hit_quadric), (TORUS, hit_torus)):
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
    rgb = blocks[:, :3] + (1 - alpha) * lighting.background[:, :, None, None]
    return rgb.contiguous(), alpha.contiguous()
