"""What is measured on a textured mesh without any tool: its seams, its overlap, its empty texels."""

from __future__ import annotations

from typing import Any

import numpy as np

from nerf3d.mesh import Mesh
from nerf3d.mesh.raster import fragments
from nerf3d.mesh.texture import read_bilinear

NUM_SAMPLES = 20_000
NUM_LEVELS = 5
EVEN = 0.02
"""Colours that differ by less within three texels lie on no border."""


def edge_pairs(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """(E, 2) corners of the flat face list from which each edge runs in its first and its second face, and is_seam (E,)."""
    assert mesh.texture is not None
    order = [0, 1, 1, 2, 2, 0]
    ends = mesh.faces[:, order].reshape(-1, 2)
    places = mesh.texture.uv_map.faces[:, order].reshape(-1, 2)
    flipped = ends[:, :1] > ends[:, 1:]
    places = np.where(flipped, places[:, ::-1], places)
    rows = np.lexsort(np.sort(ends, 1).T)
    first, second = rows[::2], rows[1::2]  # a closed mesh has every edge twice
    return np.stack([first, second], 1), (places[first] != places[second]).any(1)


def steps_across_seams(mesh: Mesh) -> list[float]:
    """How far apart, in 255ths, the two sides of a seam show the same point of it: means at the mip levels 0 to 4."""
    assert mesh.texture is not None
    edges, is_seam = edge_pairs(mesh)
    rng = np.random.default_rng(0)
    chosen = edges[rng.choice(np.flatnonzero(is_seam), NUM_SAMPLES)]
    along = rng.uniform(0, 1, NUM_SAMPLES)[:, None]
    uv_map, ends = mesh.texture.uv_map, mesh.faces.reshape(-1)
    sides = []
    for corner in chosen.T:
        following = corner - corner % 3 + (corner + 1) % 3
        # Both faces name the edge's ends in opposite order.
        first, last = np.where(ends[corner] < ends[following], (corner, following), (following, corner))
        uvs = uv_map.uvs[uv_map.faces.reshape(-1)]
        sides.append((1 - along) * uvs[first] + along * uvs[last])
    levels = mip_levels(mesh.texture.base_colour)
    differences = [np.abs(np.subtract(*(read_bilinear(level, uvs) for uvs in sides))).mean() for level in levels]
    return [round(255 * float(difference), 3) for difference in differences]


def seam_differences(mesh: Mesh, true_colours) -> list[float]:
    """Mean error along seams over the mean error along other edges, at the mip levels 0 to 4.

    true_colours: (places (K, 3), normals (K, 3)) -> colours (K, 3) that a texture of any size would show there. Borders between
    colours, which seams like to follow, are left out on both sides: there no texture of this size is right.
    """
    assert mesh.texture is not None
    edges, is_seam = edge_pairs(mesh)
    faces, corners = edges[:, 0] // 3, edges[:, 0] % 3
    rng = np.random.default_rng(0)
    errors = []
    for chosen in (is_seam, ~is_seam):
        row = rng.choice(np.flatnonzero(chosen), NUM_SAMPLES)
        along, weights = rng.uniform(0, 1, NUM_SAMPLES), np.zeros((NUM_SAMPLES, 3))
        index = np.arange(NUM_SAMPLES)
        weights[index, corners[row]], weights[index, (corners[row] + 1) % 3] = 1 - along, along
        places, normals = (
            np.einsum("kc,kci->ki", weights, values[mesh.faces[faces[row]]]) for values in (mesh.vertices, mesh.normals)
        )
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        true = true_colours(places, normals)
        aside = [true_colours(places + shift, normals) for shift in _texels_aside(mesh, normals, rng)]
        is_even = np.all([np.abs(colours - true).max(1) < EVEN for colours in aside], axis=0)
        uv_map = mesh.texture.uv_map
        uvs = np.einsum("kc,kci->ki", weights, uv_map.uvs[uv_map.faces[faces[row]]])
        levels = mip_levels(mesh.texture.base_colour)
        errors.append([float(np.abs(read_bilinear(level, uvs) - true)[is_even].mean()) for level in levels])
    return [round(seam / max(other, 1e-6), 3) for seam, other in zip(*errors, strict=True)]


def _texels_aside(mesh: Mesh, normals: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Four random steps (K, 3) of three texels along the surface."""
    assert mesh.texture is not None
    texel = np.sqrt(mesh.area) / mesh.texture.size
    steps = []
    for _ in range(4):
        step = np.cross(normals, rng.normal(size=normals.shape))
        steps.append(3 * texel * step / np.linalg.norm(step, axis=1, keepdims=True))
    return steps


def mip_levels(picture: np.ndarray) -> list[np.ndarray]:
    """The picture and its next four halvings, each texel the mean of four."""
    levels = [picture.astype(np.float32)]
    for _ in range(NUM_LEVELS - 1):
        last = levels[-1]
        levels.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) / 4)
    return levels


def num_slivers(mesh: Mesh) -> int:
    """Faces with less than a hundredth of the area that an equilateral one of the same squared sides has."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    sides = np.square(corners - np.roll(corners, 1, axis=1)).sum((1, 2))
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    return int((4 * np.sqrt(3) * area < 0.01 * sides).sum())


def texture_figures(mesh: Mesh) -> dict[str, Any]:
    """Share of texels that two faces claim, share of the picture that is used, and whether places lie inside it."""
    assert mesh.texture is not None
    size, uv_map = mesh.texture.size, mesh.texture.uv_map
    hits = np.zeros(size * size, np.int64)
    # Shrunk by a hair, so that texels on the border of two faces count once.
    corners = uv_map.uvs[uv_map.faces].astype(np.float64) * size
    middle = corners.mean(1, keepdims=True)
    for _, pixel, _ in fragments(middle + (corners - middle) * 0.999, size, size):
        np.add.at(hits, pixel, 1)
    return {
        "overlap": round(float((hits > 1).sum() / max((hits > 0).sum(), 1)), 5),
        "used": round(float((hits > 0).mean()), 3),
        "inside": bool(uv_map.uvs.min() >= 0 and uv_map.uvs.max() <= 1),
    }
