"""Fill a texture from the field, texel by texel, at the undecimated surface.

A light mesh runs beside the surface that it stands for. Each texel's place on it is therefore carried over to the nearest
place of the undecimated surface, where the field is asked for the colour and the surface for the normal.
"""

from __future__ import annotations

import numpy as np
import torch

from nerf3d.mesh.cleanup import Surface
from nerf3d.mesh.colours import mend_colours, surface_colours
from nerf3d.mesh.mesh import Mesh, to_bytes
from nerf3d.mesh.nearest import NearestSurface
from nerf3d.mesh.raster import fragments, weights_at
from nerf3d.mesh.texture import Texture, UvMap, corner_tangents

_TEXELS_PER_CHUNK = 1 << 16
_FARTHEST = 16.0  # how far outside a face, in its own heights, a texel may lie that continues it


def bake(
    field,
    mesh: Mesh,
    uv_map: UvMap,
    detail: Surface,
    *,
    size: int,
    ring: int,
    step: float,
    with_normal_map: bool = True,
    device: torch.device | str = "cpu",
) -> Texture:
    """The texture of `mesh`, `size` texels per side, with colours of the field and normals of `detail`.

    field: as `extract_mesh` takes it. ring: texels around each chart that continue its faces over their edge, so that smaller
    versions of the picture, whose texels average over the edge, show the same on both sides of a seam. step: as
    `surface_colours` takes it, in scene units. No gradients flow.
    """
    texels, faces, weights, nearest = texel_places(uv_map, size, ring=ring)
    surface = NearestSurface(*detail)
    tangents = corner_tangents(mesh.vertices, mesh.normals, uv_map) if with_normal_map else None
    colours = np.zeros((size * size, 3), np.uint8)
    directions = None if tangents is None else np.zeros((size * size, 3), np.uint8)
    for first in range(0, len(texels), _TEXELS_PER_CHUNK):
        part = slice(first, first + _TEXELS_PER_CHUNK)
        face, weight, texel = faces[part], weights[part], texels[part]
        place = _mix(mesh.vertices[mesh.faces[face]], weight)
        normal = _unit(_mix(mesh.normals[mesh.faces[face]], weight))
        there, true_normal = _carry_over(surface, place, normal)
        asked = surface_colours(field, there, true_normal, step=step, device=device)
        colours[texel] = to_bytes(mend_colours(there, asked)[0])
        if directions is not None and tangents is not None:
            tangent = _mix(tangents[uv_map.faces[face]], weight)
            directions[texel] = to_bytes(_in_tangent_space(true_normal, normal, tangent) / 2 + 0.5)
    shape = (size, size, 3)
    normal_map = None if directions is None else directions[nearest].reshape(shape)
    return Texture(uv_map, colours[nearest].reshape(shape), normal_map)


def texel_places(uv_map: UvMap, size: int, *, ring: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which texels of a picture belong to which face.

    Returns (texels (T,) = row * size + column, faces (T,), barycentric weights (T, 3), nearest (size^2,)): nearest is for
    every texel the one of `texels` that it takes its value from, itself for those. Weights leave [0, 1] in the ring around
    a chart, `ring` texels wide, where a face is continued. A face too small to cover a texel's centre gets the texel around
    its middle.
    """
    from scipy.ndimage import distance_transform_edt

    corners = uv_map.uvs[uv_map.faces].astype(np.float64) * size
    face_of = np.full(size * size, -1, np.int32)
    middle = np.clip(corners.mean(1), 0, size - 1).astype(np.int64)
    face_of[middle[:, 1] * size + middle[:, 0]] = np.arange(len(corners))
    for face, pixel, _ in fragments(corners, size, size, slack=1e-9):
        face_of[pixel] = face
    is_empty = (face_of < 0).reshape(size, size)
    distance, index = distance_transform_edt(is_empty, return_indices=True)
    nearest = (index[0] * size + index[1]).reshape(-1)
    around = np.flatnonzero((distance.reshape(-1) <= ring) & (face_of < 0))
    face_of[around] = face_of[nearest[around]]
    texels = np.flatnonzero(face_of >= 0)
    nearest[texels] = texels
    faces = face_of[texels]
    return texels, faces, _bounded(weights_at(texels, corners[faces], size)), nearest


def _bounded(weights: np.ndarray) -> np.ndarray:
    """Weights (T, 3) that sum to 1, drawn towards the middle where they leave the face by far or are not numbers."""
    offset = np.nan_to_num(weights - 1 / 3, nan=0.0, posinf=0.0, neginf=0.0)
    offset -= offset.mean(1, keepdims=True)
    return 1 / 3 + offset * np.minimum(1, _FARTHEST / np.maximum(np.abs(offset).max(1, keepdims=True), 1e-12))


def _carry_over(surface: NearestSurface, points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places (K, 3) of a surface nearest to points, and its unit normals there."""
    faces, weights = surface.locate(points, normals)
    corners = surface.faces[faces]
    return _mix(surface.vertices[corners], weights), _unit(_mix(surface.normals[corners], weights))


def _in_tangent_space(vectors: np.ndarray, normals: np.ndarray, tangents: np.ndarray) -> np.ndarray:
    """Unit vectors (K, 3) in the frame of tangent (K, 4 with its sign), cross(normal, tangent) and normal; never below it."""
    tangent = _unit(tangents[:, :3] - (tangents[:, :3] * normals).sum(1, keepdims=True) * normals)
    third = np.cross(normals, tangent) * np.sign(tangents[:, 3:])
    inside = np.stack([(vectors * axis).sum(1) for axis in (tangent, third, normals)], 1)
    inside[:, 2] = np.maximum(inside[:, 2], 0.05)
    return _unit(inside)


def _mix(corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(K, C) float32 from the values (K, 3, C) at a face's corners."""
    return np.einsum("kc,kci->ki", weights.astype(np.float32), corners.astype(np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
