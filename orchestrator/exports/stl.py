"""STL, binary, for 3D printing: Z up and millimetres, as slicers assume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.exports.transform import Placement, place
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh


def write_stl(mesh: Mesh, path: Path, placement: Placement | None = None, *, prompt: str = "") -> list[Path]:
    """Write `path` (.stl): +Z up, front -Y, longest side `placement.print_millimetres`; returns the files written.

    The format keeps neither colours nor the prompt. Raises OutputError.
    """
    from trimesh.exchange.stl import export_stl

    del prompt
    placement = placement or Placement()
    placed = place(mesh, longest_side=placement.print_millimetres, up="z", origin=placement.origin)
    return [write_bytes(path, export_stl(placed.to_trimesh()))]
