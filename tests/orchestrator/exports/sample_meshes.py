"""Meshes whose sides, ends and colours can be told apart in every file format."""

from __future__ import annotations

import numpy as np
import trimesh

from nerf3d.mesh import Mesh
from nerf3d.mesh.mesh import vertex_normals


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
