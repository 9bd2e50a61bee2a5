"""What a run leaves on the disk: one file per format, every one written atomically.

Mesh writers share one signature, `write_xxx(mesh, path, placement=None, *, prompt="") -> list[Path]`, and return every file
that they wrote, the one that was asked for first; `transform` is the only place that turns axes and scales, `check` reads
every file back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.exports.contact_sheet import write_contact_sheet
from orchestrator.exports.gltf import write_glb, write_gltf
from orchestrator.exports.image_grid import image_grid, write_image_grid
from orchestrator.exports.obj import write_obj
from orchestrator.exports.ply import write_ply
from orchestrator.exports.png_metadata import read_png_metadata, write_png
from orchestrator.exports.stl import write_stl
from orchestrator.exports.three_mf import write_3mf
from orchestrator.exports.transform import Placement
from orchestrator.exports.turntable import write_turntable
from orchestrator.exports.usdz import write_usdz

MESH_WRITERS: dict[str, Callable[..., list[Path]]] = {
    "glb": write_glb,
    "gltf": write_gltf,
    "obj": write_obj,
    "ply": write_ply,
    "stl": write_stl,
    "3mf": write_3mf,
    "usdz": write_usdz,
}

__all__ = [
    "MESH_WRITERS",
    "Placement",
    "image_grid",
    "read_png_metadata",
    "write_3mf",
    "write_contact_sheet",
    "write_glb",
    "write_gltf",
    "write_image_grid",
    "write_obj",
    "write_ply",
    "write_png",
    "write_stl",
    "write_turntable",
    "write_usdz",
]
