"""What a run leaves on the disk: one file per format, every one written atomically.

Mesh writers share one signature, `write_xxx(mesh, path, *, prompt="", size_metres=1.0) -> list[Path]`, and return every
file that they wrote; `transform` is the only place that turns axes and scales.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.exports.contact_sheet import write_contact_sheet
from orchestrator.exports.glb import write_glb
from orchestrator.exports.image_grid import image_grid, write_image_grid
from orchestrator.exports.obj import write_obj
from orchestrator.exports.ply import write_ply
from orchestrator.exports.png_metadata import read_png_metadata, write_png
from orchestrator.exports.stl import write_stl
from orchestrator.exports.turntable import write_turntable

MESH_WRITERS: dict[str, Callable[..., list[Path]]] = {
    "glb": write_glb,
    "obj": write_obj,
    "ply": write_ply,
    "stl": write_stl,
}

__all__ = [
    "MESH_WRITERS",
    "image_grid",
    "read_png_metadata",
    "write_contact_sheet",
    "write_glb",
    "write_image_grid",
    "write_obj",
    "write_ply",
    "write_png",
    "write_stl",
    "write_turntable",
]
