"""PLY, binary, with vertex colours: for point and mesh tools. Z is up, because readers take the file as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.exports.transform import place
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh


def write_ply(mesh: Mesh, path: Path, *, prompt: str = "", size_metres: float = 1.0) -> list[Path]:
    """Write `path` (.ply): +Z up, front -Y, centred, metres, normals, sRGB byte colours; returns the files written.

    The format keeps no prompt. Raises OutputError.
    """
    from trimesh.exchange.ply import export_ply

    del prompt
    placed = place(mesh, longest_side=size_metres, up="z")
    return [write_bytes(path, export_ply(placed.to_trimesh(), vertex_normal=True))]
