"""Wavefront OBJ with a material file beside it, for tools that read nothing newer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.exports.transform import generator_name, place
from orchestrator.host.atomic import write_text

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh

_MATERIAL = """newmtl vertex_colours
Ka 0 0 0
Kd 1 1 1
Ks 0 0 0
d 1
illum 1
"""


def write_obj(mesh: Mesh, path: Path, *, prompt: str = "", size_metres: float = 1.0) -> list[Path]:
    """Write `path` (.obj) and the .mtl beside it: +Y up, front +Z, centred, metres; returns the files written.

    Colours follow the coordinates of each vertex (`v x y z r g b`), sRGB, which Blender and MeshLab read; trimesh would
    write no material for them. `prompt` goes into a comment. Raises OutputError.
    """
    path = Path(path)
    placed = place(mesh, longest_side=size_metres)
    material = path.with_suffix(".mtl")
    corners = np.repeat(placed.faces + 1, 2, axis=1)
    text = io.StringIO()
    text.write(f"# {generator_name()}\n")
    if prompt:
        text.write(f"# {' '.join(prompt.split())}\n")
    text.write(f"mtllib {material.name}\no object\n")
    np.savetxt(text, np.hstack([placed.vertices, placed.colours]), fmt="v %.7g %.7g %.7g %.4f %.4f %.4f")
    np.savetxt(text, placed.normals, fmt="vn %.5f %.5f %.5f")
    text.write("usemtl vertex_colours\ns 1\n")
    np.savetxt(text, corners, fmt="f %d//%d %d//%d %d//%d")
    # The material first, so that no moment shows an OBJ that names a missing file.
    return [write_text(material, f"# {generator_name()}\n{_MATERIAL}"), write_text(path, text.getvalue())][::-1]
