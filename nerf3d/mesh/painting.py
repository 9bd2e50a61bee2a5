"""Give a bare surface its normals, colours and texture, from the field and the undecimated surface."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from nerf3d.mesh import cleanup
from nerf3d.mesh.bake import bake
from nerf3d.mesh.colours import mend_colours, surface_colours
from nerf3d.mesh.mesh import Mesh, Note, vertex_normals
from nerf3d.mesh.unwrap import unwrap

_SIZE_PER_PADDING = 128  # 8 texels between the charts of a picture of 1024


@dataclasses.dataclass(frozen=True)
class Painter:
    """What a surface is painted with.

    field: as `extract_mesh` takes it. step: half a voxel of the grid that the surface was cut from, in scene units.
    texture_size, normal_map, unwrap_seconds: as in `MeshConfig`.
    """

    field: Any
    step: float
    texture_size: int
    normal_map: bool
    unwrap_seconds: float
    device: torch.device | str = "cpu"

    def decimate(self, surface: cleanup.Surface, max_faces: int) -> cleanup.Surface:
        """With a texture only the shape counts; without one the borders between colours do, too."""
        if self.texture_size or len(surface[1]) <= max_faces:
            return cleanup.decimate(*surface, max_faces=max_faces)
        colours, _ = self._colours(surface[0], vertex_normals(*surface))
        return cleanup.decimate_with_colours(*surface, colours, max_faces=max_faces, height=4 * self.step)

    def paint(self, light: cleanup.Surface, detail: cleanup.Surface) -> Mesh:
        """The surface `light` with normals, vertex colours and, where it is wanted, a texture of the surface `detail`."""
        vertices, faces = light[0].astype(np.float32), light[1]
        # Before the corners are split along the seams the normals are there, so that no seam shows as an edge.
        normals = vertex_normals(vertices, faces)
        colours, num_mended = self._colours(vertices, normals)
        notes = []
        if num_mended:
            notes.append(
                Note(
                    f"The field has no colour (not a number) at {num_mended:,} of {len(vertices):,} vertices; they were given "
                    "their neighbours', or grey where nothing has a colour: the fit diverged there, so try another seed."
                )
            )
        mesh = Mesh(vertices, faces, normals, colours, notes=tuple(notes))
        return self._textured(mesh, detail) if self.texture_size else mesh

    def _colours(self, vertices: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, int]:
        return mend_colours(vertices, surface_colours(self.field, vertices, normals, step=self.step, device=self.device))

    def _textured(self, mesh: Mesh, detail: cleanup.Surface) -> Mesh:
        size = self.texture_size
        padding = max(2, size // _SIZE_PER_PADDING)
        uv_map, note = unwrap(mesh.vertices, mesh.faces, size=size, padding=padding, seconds=self.unwrap_seconds)
        texture = bake(
            *(self.field, mesh, uv_map, detail),
            size=size,
            ring=padding,
            step=self.step,
            with_normal_map=self.normal_map,
            device=self.device,
        )
        notes = (*mesh.notes, note) if note else mesh.notes
        return dataclasses.replace(mesh, texture=texture, notes=notes)
