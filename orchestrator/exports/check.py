"""Read every mesh file back before a job counts as done, and say what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jobs.errors import OutputError
from orchestrator.exports.reading import ReadMesh, read_file
from orchestrator.exports.transform import Placement, place

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh

FORMATS_FOR_PRINTERS = ("stl", "3mf")
FORMATS_WITH_Z_UP = ("ply", "stl", "3mf")
_COLOUR_TOLERANCE = 1 / 255
_PLACE_TOLERANCE = 1e-5  # of the longest side


def check_file(path: Path, mesh: Mesh, placement: Placement) -> dict[str, Any]:
    """What a written file holds, for the manifest: faces, whether it is closed, size, unit, upward axis and what colours it.

    Raises OutputError where that is not `mesh`: other faces, other places, open where the mesh is closed, other colours,
    another picture, texture coordinates outside [0, 1].
    """
    kind = path.suffix[1:]
    up: Literal["y", "z"] = "z" if kind in FORMATS_WITH_Z_UP else "y"
    side = placement.print_millimetres if kind in FORMATS_FOR_PRINTERS else placement.size_metres
    expected = place(mesh, longest_side=side, up=up, origin=placement.origin)
    try:
        found = read_file(path)
    except Exception as error:  # each reader has its own errors
        raise OutputError(_refusal(path, f"it cannot be read ({type(error).__name__}: {error})")) from error
    closed = is_closed_when_welded(found.triangles)
    if fault := _geometry_fault(found, expected, closed, side) or _colour_fault(found, expected):
        raise OutputError(_refusal(path, fault))
    flat = found.triangles.reshape(-1, 3)
    return {
        "num_faces": len(found.triangles),
        "is_closed": closed,
        "size": [float(f"{value:.6g}") for value in flat.max(0) - flat.min(0)],
        "unit": "millimetre" if kind in FORMATS_FOR_PRINTERS else "metre",
        "up": up,
        "colours": _colouring(found),
    }


def is_closed_when_welded(triangles: np.ndarray) -> bool:
    """Whether triangles (M, 3, 3) close once corners in one place (as float32) are one vertex, as slicers join them."""
    from nerf3d.mesh.mesh import is_closed

    _, welded = np.unique(triangles.reshape(-1, 3).astype(np.float32), axis=0, return_inverse=True)
    return is_closed(welded.reshape(-1, 3))


def _colouring(found: ReadMesh) -> str:
    if found.picture is not None:
        return f"a texture of {len(found.picture)} texels"
    return "none" if found.colours is None else "vertices"


def _geometry_fault(found: ReadMesh, expected: Mesh, closed: bool, side: float) -> str:
    if len(found.triangles) != len(expected.faces):
        return f"it holds {len(found.triangles)} faces instead of {len(expected.faces)}"
    away = np.abs(found.triangles - expected.vertices[expected.faces]).max(initial=0.0)
    if not away <= _PLACE_TOLERANCE * side:
        return f"a corner lies {away:.3g} from its place"
    return "its surface is open where the mesh is closed" if expected.is_watertight and not closed else ""


def _colour_fault(found: ReadMesh, expected: Mesh) -> str:
    texture = expected.texture
    if found.picture is not None and texture is not None and found.uvs is not None:
        if not (found.uvs.min() >= -1e-6 and found.uvs.max() <= 1 + 1e-6):
            return f"its texture coordinates reach from {found.uvs.min():.3g} to {found.uvs.max():.3g} instead of 0 to 1"
        if not np.allclose(found.uvs, texture.uv_map.uvs[texture.uv_map.faces], atol=1e-5):
            return "its texture coordinates are not those of the mesh"
        return "" if np.array_equal(found.picture, texture.base_colour) else "its picture is not that of the mesh"
    if found.colours is not None:
        away = np.abs(found.colours - expected.colours[expected.faces]).max(initial=0.0)
        return "" if away <= _COLOUR_TOLERANCE else f"a colour is {away:.3g} off"
    return ""


def _refusal(path: Path, fault: str) -> str:
    return f"{path} was written and read back, but {fault}; repeat the command, and report it if it happens again."
