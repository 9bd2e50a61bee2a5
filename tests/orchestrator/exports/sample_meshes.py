"""Meshes whose sides, ends and colours can be told apart in every file format."""

from __future__ import annotations

import dataclasses

import numpy as np
import trimesh

from nerf3d.mesh import Mesh
from nerf3d.mesh.mesh import vertex_normals
from nerf3d.mesh.texture import Texture
from nerf3d.mesh.unwrap import project_along_axes


def tower(*, offset=(0.1, -0.2, 0.05)) -> Mesh:
    """0.4 wide (x), 1.2 tall (y), 0.2 deep (z), off centre, with a red knob sticking out on +X, +Y, +Z each unequally.

    The ends lie at different distances, so a mirrored or turned copy cannot be mistaken for the original.
    """
    parts = [
        (trimesh.creation.box((0.4, 1.2, 0.2)), (0.5, 0.5, 0.5)),
        (trimesh.creation.icosphere(2, 0.05).apply_translation((0.3, 0.4, 0.0)), (1.0, 0.0, 0.0)),
        (trimesh.creation.icosphere(2, 0.08).apply_translation((0.0, 0.5, 0.25)), (0.0, 0.0, 1.0)),
    ]
    vertices = np.concatenate([shape.vertices for shape, _ in parts]) + offset
    counts = np.cumsum([0] + [len(shape.vertices) for shape, _ in parts])
    faces = np.concatenate([shape.faces + start for (shape, _), start in zip(parts, counts, strict=False)])
    colours = np.concatenate([np.tile(colour, (len(shape.vertices), 1)) for shape, colour in parts])
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


def painted_tower(*, size: int = 64) -> Mesh:
    """The tower with a texture in which no two rows and no two columns are alike, and a normal map."""
    mesh = tower()
    uv_map = project_along_axes(mesh.vertices, mesh.faces, size=size, padding=2)
    row, column = np.mgrid[:size, :size] * 255 // (size - 1)
    base_colour = np.stack([row, column, np.full_like(row, 90)], -1).astype(np.uint8)
    normal_map = np.full((size, size, 3), (128, 128, 255), np.uint8)
    normal_map[::8] = (140, 128, 254)
    return dataclasses.replace(mesh, texture=Texture(uv_map, base_colour, normal_map))
