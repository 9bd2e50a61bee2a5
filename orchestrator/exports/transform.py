"""The one place that turns axes, scales and colours between the scene and a file.

The scene frame is glTF's: right-handed, +Y up, front +Z. Tools read PLY and STL as they are and take Z for up, so those
two are turned: (x, y, z) -> (x, -z, y), a rotation, which puts the front on -Y as Blender expects it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh


Origin = Literal["centre", "base", "kept"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how large an object stands in a file.

    size_metres: its longest side in files for viewers and engines. print_millimetres: that side in files for printers (STL and
    3MF). origin: "centre", the middle of its bounding box at the origin, "base", that box standing on the ground over it, or
    "kept", where its own origin is.
    """

    size_metres: float = 1.0
    print_millimetres: float = 100.0
    origin: Origin = "centre"


def place(mesh: Mesh, *, longest_side: float, up: Literal["y", "z"] = "y", origin: Origin = "centre") -> Mesh:
    """The mesh with its bounding box over the origin and its longest side scaled to `longest_side`.

    longest_side: in the target's unit (metres for GLB, OBJ and PLY, millimetres for STL). up: the target's upward axis.
    origin: as in `Placement`. Faces, colours and texture are kept. Raises ValueError for a size that is not positive and for a
    mesh without extent.
    """
    if not 0 < longest_side < np.inf:
        raise ValueError(f"the longest side is {longest_side:g}; give a positive size.")
    low, high = mesh.bounds.astype(np.float64)
    extent = float((high - low).max())
    if not extent > 0:
        raise ValueError(f"the mesh has {len(mesh.vertices)} vertices in one place, so it cannot be scaled to a size.")
    anchor = (low + high) / 2
    if origin == "base":
        anchor[1] = low[1]
    elif origin == "kept":
        anchor[:] = 0
    vertices = (mesh.vertices.astype(np.float64) - anchor) * (longest_side / extent)
    normals = mesh.normals
    if up == "z":
        vertices, normals = _y_up_to_z_up(vertices), _y_up_to_z_up(normals)
    return dataclasses.replace(mesh, vertices=vertices, normals=normals)


def fill_frame(mesh: Mesh, *, radius: float = 0.85) -> Mesh:
    """The mesh centred and scaled into a sphere of `radius`, which the default camera (2.7 away, 40 deg) just holds."""
    low, high = mesh.bounds
    offset = mesh.vertices - (low + high) / 2
    return dataclasses.replace(mesh, vertices=offset * (radius / max(float(np.linalg.norm(offset, axis=1).max()), 1e-9)))


def srgb_to_linear(colours: np.ndarray) -> np.ndarray:
    """sRGB colours in [0, 1] as linear light in [0, 1] (IEC 61966-2-1); 0.5 becomes 0.214."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


@functools.cache
def generator_name() -> str:
    """ "DreamKiln" and the installed version, as files name their maker."""
    try:
        return f"DreamKiln {importlib.metadata.version('dreamkiln')}"
    except importlib.metadata.PackageNotFoundError:
        return "DreamKiln"


def _y_up_to_z_up(vectors: np.ndarray) -> np.ndarray:
    return np.stack([vectors[:, 0], -vectors[:, 2], vectors[:, 1]], axis=1)
