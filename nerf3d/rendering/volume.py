"""Volume rendering of a field through nerfacc: batched rays in plain torch, or its traversal's flattened samples.

The traversal needs CUDA and compiled kernels; the batched rays any device. Both paths cut a ray at the same places and end in
the same sums (Mildenhall et al. 2020, NeRF, equation 3); the tests hold a plain torch twin.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from nerf3d.cameras import Cameras
from nerf3d.fields.base import Field, FieldQuery
from nerf3d.rendering import nerfacc_backend
from nerf3d.rendering.occupancy import Occupancy
from nerf3d.rendering.shading import Lights, Shading, headlights, needs_normals, shade
from nerf3d.streams import sent


@dataclasses.dataclass(frozen=True)
class RaySamples:
    """The K samples that were evaluated, for the regularisers. Rays are counted over (V, H, W).

    ray_indices: (K,) long, rising. directions: (K, 3) unit. distances: (K,) metres. weights: (K,) in [0, 1].
    normals: (K, 3), or None for unlit shading.
    """

    ray_indices: Tensor
    directions: Tensor
    distances: Tensor
    weights: Tensor
    normals: Tensor | None


@dataclasses.dataclass(frozen=True)
class RenderOutput:
    """V rendered views.

    Args:
        rgb: (V, 3, H, W) in [0, 1] over the background.
        alpha: (V, 1, H, W) in [0, 1].
        depth: (V, 1, H, W) metres, the mean distance of what the ray hits, 0 where alpha is 0.
        normals: (V, 3, H, W), weighted by alpha; None for a shading without them.
        samples: of all rays, for losses on them.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normals: Tensor | None
    samples: RaySamples


def render(
    field: Field | FieldQuery,
    occupancy: Occupancy | None,
    cameras: Cameras,
    size: int,
    *,
    background: Tensor,
    shading: Shading = "albedo",
    lights: Lights | None = None,
    num_samples: int = 48,
    radius: float = 1.0,
    generator: torch.Generator | None = None,
) -> RenderOutput:
    """Pictures (V, 3, size, size) of a field; gradients flow to the field's parameters.

    occupancy: samples in its empty cells are taken as density 0 without asking the field; None asks everywhere.
    background: (V, 3), or (V, 3, size, size) for one that is not of one colour, in [0, 1]. lights: one per view; a light above
    each camera if None. num_samples: of a ray within the sphere of `radius`, or within the occupied box if that is smaller.
    generator: a CPU generator for stratified samples; middles of the intervals if None. Raises ValueError for an unknown
    shading.
    """
    with_normals = needs_normals(shading)
    query = field.query(normals=with_normals) if isinstance(field, Field) else field
    device, num_views = cameras.camera_to_world.device, len(cameras)
    origins, directions = (r.reshape(-1, 3) for r in cameras.rays(size, size))
    if device.type == "cuda" and occupancy is not None and nerfacc_backend.has_cuda_kernels():
        samples = _flattened(query, occupancy, origins, directions, num_samples, radius, generator)
    else:
        samples = _batched(query, occupancy, origins, directions, num_samples, radius, generator)
    rays, distances, weights, values = samples
    lights = lights if lights is not None else headlights(cameras)
    view = rays // (size * size)
    direction = directions[rays]
    colour = shade(
        values.colour,
        values.normals,
        shading=shading,
        direction=lights.direction[view],
        ambient=lights.ambient[view],
    )
    columns = [colour, torch.ones_like(distances)[:, None], distances[:, None]]
    if values.normals is not None:
        columns.append(values.normals)
    sums = nerfacc_backend.sum_along_rays(weights, torch.cat(columns, -1), ray_indices=rays, num_rays=num_views * size * size)
    picture = sums.view(num_views, size, size, -1).permute(0, 3, 1, 2)
    alpha = picture[:, 3:4]
    return RenderOutput(
        rgb=picture[:, :3] + (1 - alpha) * everywhere(background.to(device)),
        alpha=alpha,
        depth=picture[:, 4:5] / alpha.clamp_min(1e-6),
        normals=picture[:, 5:8] if values.normals is not None else None,
        samples=RaySamples(rays, direction, distances, weights, values.normals),
    )


def everywhere(background: Tensor) -> Tensor:
    """Backgrounds (V, 3) as pictures of one pixel, (V, 3, 1, 1); pictures as they are."""
    return background[:, :, None, None] if background.ndim == 2 else background


def ray_interval(origins: Tensor, directions: Tensor, *, radius: float, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where rays (R, 3) run inside the sphere and, if given, the box (2, 3): near and far (R,), far <= near for a miss."""
    closest = -(origins * directions).sum(-1)
    half = (radius**2 - origins.square().sum(-1) + closest.square()).clamp_min(0).sqrt()
    near, far = (closest - half).clamp_min(0), closest + half
    if bounds is not None:
        # A direction component of exactly 0 gives infinities of the right signs, or NaN on a face, which the sphere decides.
        first, second = ((corner - origins) / directions for corner in bounds)
        near = torch.maximum(near, torch.minimum(first, second).nan_to_num(-torch.inf).amax(-1))
        far = torch.minimum(far, torch.maximum(first, second).nan_to_num(torch.inf).amin(-1))
    return near, far


def _batched(query, occupancy, origins, directions, num_samples, radius, generator):
    """num_samples equal intervals for every ray that meets the occupied box; only occupied samples ask the field."""
    bounds = occupancy.bounds() if occupancy is not None else None
    near, far = ray_interval(origins, directions, radius=radius, bounds=bounds)
    hit = (far > near).nonzero().squeeze(-1)
    near, far, from_, along = near[hit, None], far[hit, None], origins[hit], directions[hit]
    edges = near + (far - near) * torch.linspace(0, 1, num_samples + 1, device=near.device)
    starts, ends = edges[:, :-1], edges[:, 1:]
    distances = starts + (ends - starts) * _jitter(starts.shape, generator, starts.device)
    points = (from_[:, None] + distances[..., None] * along[:, None]).view(-1, 3)
    if occupancy is not None:
        kept = occupancy.contains(points).nonzero().squeeze(-1)
        points = points.index_select(0, kept)
    else:
        kept = torch.arange(len(points), device=points.device)
    values = query.samples(points)
    density = values.density.new_zeros(starts.numel()).index_copy(0, kept, values.density).view_as(starts)
    weights = nerfacc_backend.ray_weights(starts, ends, density).reshape(-1).index_select(0, kept)
    rays = hit.index_select(0, kept // num_samples)
    return rays, distances.reshape(-1).index_select(0, kept), weights, values


def _flattened(query, occupancy, origins, directions, num_samples, radius, generator):
    """The same intervals, of which nerfacc's traversal gives the occupied ones; each ray's are shifted together.

    The traversal knows one step size for all rays. So each ray is given to it in units of its own piece within the occupied
    box: from 0 to 1, which every ray crosses in num_samples steps.
    """
    near, far = ray_interval(origins, directions, radius=radius, bounds=occupancy.bounds())
    length = far - near
    begin = near + length / num_samples * (_jitter(near.shape, generator, near.device) - 0.5)
    misses = (length <= 0)[:, None]
    from_ = torch.where(misses, 10.0, origins + begin[:, None] * directions)
    along = torch.where(misses, 1.0, length[:, None] * directions)
    rays, middles = nerfacc_backend.march(occupancy.estimator, from_, along, num_steps=num_samples)
    step, distances = length[rays] / num_samples, begin[rays] + length[rays] * middles
    values = query.samples(origins[rays] + distances[:, None] * directions[rays])
    starts, ends = distances - step / 2, distances + step / 2
    weights = nerfacc_backend.ray_weights(starts, ends, values.density, ray_indices=rays, num_rays=len(origins))
    return rays, distances, weights, values


def _jitter(shape, generator: torch.Generator | None, device) -> Tensor:
    if generator is None:
        return torch.full(shape, 0.5, device=device)
    return sent(torch.empty(shape).uniform_(generator=generator), device)


@torch.no_grad()
def render_views(
    field: Field,
    occupancy: Occupancy | None,
    cameras: Cameras,
    size: int,
    *,
    background: Tensor,
    shading: Shading = "lambert",
    lights: Lights | None = None,
    num_samples: int = 96,
    views_per_chunk: int = 4,
) -> tuple[Tensor, Tensor]:
    """Pictures without gradients for previews and turntables: rgb (V, 3, size, size) in [0, 1] and alpha (V, 1, size, size).

    background: (V, 3), or (3,) for all views. Works in chunks of views, so memory does not grow with V.
    """
    background = background.expand(len(cameras), 3)
    query = field.query(normals=needs_normals(shading))
    rgbs, alphas = [], []
    for start in range(0, len(cameras), views_per_chunk):
        views = slice(start, start + views_per_chunk)
        output = render(
            query,
            occupancy,
            cameras[views],
            size,
            background=background[views],
            shading=shading,
            lights=None if lights is None else lights[views],
            num_samples=num_samples,
        )
        rgbs.append(output.rgb.clamp(0, 1))
        alphas.append(output.alpha.clamp(0, 1))
    return torch.cat(rgbs), torch.cat(alphas)
