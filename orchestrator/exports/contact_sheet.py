"""preview.png: the mesh from all around, coloured and as plain clay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.exports.image_grid import image_grid
from orchestrator.exports.png_metadata import write_png
from orchestrator.exports.transform import fill_frame

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh

NUM_VIEWS = 8
ELEVATION_DEGREES = 18.0
BACKGROUND = (0.85, 0.87, 0.9)


def contact_sheet(mesh: Mesh, *, size: int = 256) -> np.ndarray:
    """(3 rows, 4 columns) of views, each size x size, as one uint8 page (H, W, 3).

    Two rows show the coloured mesh from eight sides, starting at the front and going round by the object's left; the
    third shows it white at the front, left, back and right, so that shape is not mistaken for paint. The mesh is
    framed: centred, and scaled to fill the views.
    """
    from nerf3d.cameras import Cameras
    from nerf3d.mesh.raster import Shading, draw_mesh

    azimuths = [360 * view / NUM_VIEWS for view in range(NUM_VIEWS)]
    framed = fill_frame(mesh)
    rows: list[tuple[list[float], Shading]] = [(azimuths, "lambert"), (azimuths[::2], "textureless")]
    views = [
        draw_mesh(framed, Cameras.orbit(chosen, ELEVATION_DEGREES), size, shading=shading, background=BACKGROUND)[0]
        for chosen, shading in rows
    ]
    return image_grid(np.concatenate([to_uint8(view) for view in views]), num_columns=4, padding=2)


def write_contact_sheet(
    mesh: Mesh, path: str | os.PathLike[str], *, size: int = 256, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write `contact_sheet(mesh)` as a PNG with text chunks; returns the path. Raises OutputError."""
    return write_png(contact_sheet(mesh, size=size), path, metadata)


def to_uint8(images) -> np.ndarray:
    """(V, 3, H, W) float in [0, 1] as (V, H, W, 3) uint8, rounded."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
