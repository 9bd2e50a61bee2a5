"""Colours for a surface that is there already: drawn in plain torch, fitted to a guide, written into a texture.

`raster` draws a mesh so that gradients flow, `losses` compares pictures, `paint` is the fit, a generator like
`nerf3d.fit.fit`, and `bake` puts what was found into the mesh's texture.
"""

from __future__ import annotations

from nerf3d.surface.bake import painted_mesh
from nerf3d.surface.losses import image_loss
from nerf3d.surface.paint import Paint, PaintConfig, PaintProgress, paint
from nerf3d.surface.raster import Fragments, composite, rasterise

__all__ = [
    "Fragments",
    "Paint",
    "PaintConfig",
    "PaintProgress",
    "composite",
    "image_loss",
    "paint",
    "painted_mesh",
    "rasterise",
]
