"""Wavefront OBJ with a material file and its pictures beside it, for tools that read nothing newer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.exports.pictures import write_texture
from orchestrator.exports.transform import Placement, generator_name, place
from orchestrator.host.atomic import write_text

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh

_MATERIAL = """newmtl {name}
Ka 0 0 0
Kd 1 1 1
Ks 0 0 0
d 1
illum 1
"""
_STATEMENTS = {"base_colour": "map_Kd", "normal": "norm"}
"""How a material names its pictures; `norm`, because `map_Bump` means heights to some readers and normals to others."""


def write_obj(mesh: Mesh, path: Path, placement: Placement | None = None, *, prompt: str = "") -> list[Path]:
    """Write `path` (.obj) and the .mtl beside it: +Y up, front +Z, metres; returns the files written.

    A textured mesh has texture coordinates, and its pictures lie beside the file. Without one, sRGB colours follow the
    coordinates of each vertex (`v x y z r g b`), which MeshLab reads and Blender shows as an attribute. `prompt` goes into a
    comment. Raises OutputError.
    """
    path, placement = Path(path), placement or Placement()
    placed = place(mesh, longest_side=placement.size_metres, origin=placement.origin)
    material, name = path.with_suffix(".mtl"), "vertex_colours" if placed.texture is None else "texture"
    text = io.StringIO()
    text.write(f"# {generator_name()}\n")
    if prompt:
        text.write(f"# {' '.join(prompt.split())}\n")
    text.write(f"mtllib {material.name}\no object\n")
    _write_geometry(text, placed, name)
    pictures = write_texture(placed.texture, path)
    maps = "".join(f"{_STATEMENTS[kind]} {picture.name}\n" for kind, picture in pictures.items())
    write_text(material, f"# {generator_name()}\n{_MATERIAL.format(name=name)}{maps}")
    # The OBJ last, so that no moment shows one that names a missing file.
    return [write_text(path, text.getvalue()), material, *pictures.values()]


def _write_geometry(text: io.StringIO, placed: Mesh, material: str) -> None:
    """Nine digits bring every float32 back as it was."""
    if placed.texture is None:
        np.savetxt(text, np.hstack([placed.vertices, placed.colours]), fmt="v %.9g %.9g %.9g %.4f %.4f %.4f")
        corners, face = np.repeat(placed.faces + 1, 2, axis=1), "f %d//%d %d//%d %d//%d"
    else:
        uv_map = placed.texture.uv_map
        np.savetxt(text, placed.vertices, fmt="v %.9g %.9g %.9g")
        np.savetxt(text, uv_map.uvs * (1, -1) + (0, 1), fmt="vt %.6f %.6f")  # OBJ counts from the lower left corner
        corners = np.stack([placed.faces + 1, uv_map.faces + 1, placed.faces + 1], 2).reshape(-1, 9)
        face = "f %d/%d/%d %d/%d/%d %d/%d/%d"
    np.savetxt(text, placed.normals, fmt="vn %.5f %.5f %.5f")
    text.write(f"usemtl {material}\ns 1\n")
    np.savetxt(text, corners, fmt=face)
