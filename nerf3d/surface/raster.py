"""A rasteriser that gradients flow through, in plain torch.

Which face a sample shows is found without gradients; where on it is worked out again from its corners (Möller and Trumbore
1997). Gradients flow to colours and to the corners of faces that are seen, not to which face is seen: outlines do not move.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nerf3d.cameras import Cameras
from nerf3d.mesh.raster import visible


@dataclasses.dataclass(frozen=True)
class Fragments:
    """What V cameras see of a surface at size^2 samples each.

    samples: (K,) long, the places of those that meet the surface among the V * size^2. faces: (K,) long.
    weights: (K, 3) barycentric, with gradients to the corners. num_views, size: of the pictures in samples.
    """

    samples: Tensor
    faces: Tensor
    weights: Tensor
    num_views: int
    size: int

    def view_of(self) -> Tensor:
        """(K,) long, the view that each sample belongs to."""
        return self.samples // self.size**2

    def interpolate(self, values: Tensor, faces: Tensor) -> Tensor:
        """(K, C): the values (N, C) at the corners of faces (M, 3), mixed by the weights."""
        return (self.weights[..., None] * values[faces[self.faces]]).sum(1)


def rasterise(vertices: Tensor, faces: Tensor, cameras: Cameras, size: int) -> Fragments:
    """The nearest face that looks towards the camera, at every sample that has one.

    Args:
        vertices: (N, 3) in scene units; gradients flow to them. faces: (M, 3) long.
        cameras: V of them, on the CPU. size: samples per side.
    """
    corners, shown = vertices.detach().cpu().numpy(), faces.cpu().numpy()
    poses = cameras.camera_to_world.numpy().astype(np.float64)
    fovs = np.radians(cameras.fov_degrees.numpy().astype(np.float64))
    hits = [visible(corners, shown, pose, fov, size) for pose, fov in zip(poses, fovs, strict=True)]
    samples = np.concatenate([hit.pixels + view * size**2 for view, hit in enumerate(hits)])
    found = torch.from_numpy(np.concatenate([hit.faces for hit in hits]).astype(np.int64))
    if not vertices.requires_grad:
        weights = torch.from_numpy(np.concatenate([hit.weights for hit in hits]).astype(np.float32))
    else:
        origins, directions = (rays.reshape(-1, 3)[torch.from_numpy(samples)] for rays in cameras.rays(size, size))
        weights = _weights(vertices[faces[found.to(faces.device)]], origins.to(vertices), directions.to(vertices))
    device = vertices.device
    return Fragments(torch.from_numpy(samples).to(device), found.to(device), weights.to(device), len(poses), size)


def _weights(corners: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    """Barycentric weights (K, 3) at which rays meet the planes of their triangles (K, 3, 3)."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = torch.linalg.cross(directions, second)
    scale = (first * across).sum(-1)
    scale = torch.where(scale.abs() < 1e-12, torch.full_like(scale, 1e-12), scale)
    offset = origins - corners[:, 0]
    u = (offset * across).sum(-1) / scale
    v = (directions * torch.linalg.cross(offset, first)).sum(-1) / scale
    return torch.stack([1 - u - v, u, v], -1)


def composite(fragments: Fragments, colours: Tensor, background: Tensor, *, supersample: int = 1) -> Tensor:
    """Pictures (V, 3, S, S) with S = fragments.size / supersample: colours (K, 3) over each view's background (V, 3)."""
    num, size = fragments.num_views, fragments.size
    canvas = background[:, None].expand(num, size**2, 3).reshape(-1, 3)
    canvas = canvas.index_put((fragments.samples,), colours)
    pictures = canvas.view(num, size, size, 3).permute(0, 3, 1, 2)
    return F.avg_pool2d(pictures, supersample) if supersample > 1 else pictures
