"""PLY, binary, with vertex colours: for point and mesh tools. Z is up, because readers take the file as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.exports.transform import Placement, place
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh


def write_ply(mesh: Mesh, path: Path, placement: Placement | None = None, *, prompt: str = "") -> list[Path]:
    """Write `path` (.ply): +Z up, front -Y, metres, normals, sRGB byte colours; returns the files written.

    The format keeps neither a texture nor the prompt. Raises OutputError.
    """
    from trimesh.exchange.ply import export_ply

    del prompt
    placement = placement or Placement()
    placed = place(mesh, longest_side=placement.size_metres, up="z", origin=placement.origin)
    return [write_bytes(path, export_ply(placed.to_trimesh(), vertex_normal=True))]
