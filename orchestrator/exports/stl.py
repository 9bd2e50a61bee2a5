"""STL, binary, for 3D printing: Z up and millimetres, as slicers assume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.exports.transform import place
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh

MILLIMETRES_PER_METRE = 100.0
"""A print is a model at 1:10: an object of one metre is printed 100 mm tall, which fits the usual printer."""


def write_stl(mesh: Mesh, path: Path, *, prompt: str = "", size_metres: float = 1.0) -> list[Path]:
    """Write `path` (.stl): +Z up, front -Y, centred, longest side 100 mm per metre of size; returns the files written.

    The format keeps neither colours nor the prompt. Raises OutputError.
    """
    from trimesh.exchange.stl import export_stl

    del prompt
    placed = place(mesh, longest_side=size_metres * MILLIMETRES_PER_METRE, up="z")
    return [write_bytes(path, export_stl(placed.to_trimesh()))]
