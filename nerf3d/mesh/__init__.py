"""From a density field to a mesh that other tools accept.

`extraction` samples and cuts the field, `cleanup` makes the surface sound and light, `painting` gives it colours and a texture
(`unwrap`, `bake`), `quality` says what is wrong with it, `raster` draws it without a GPU, `errors` says why there is none.
"""

from nerf3d.mesh.errors import BrokenField, EmptyMesh, MeshError
from nerf3d.mesh.extraction import MeshConfig, bytes_to_extract, extract_mesh
from nerf3d.mesh.mesh import Mesh, Note
from nerf3d.mesh.quality import Quality
from nerf3d.mesh.raster import draw_mesh

__all__ = [
    "BrokenField",
    "EmptyMesh",
    "Mesh",
    "MeshConfig",
    "MeshError",
    "Note",
    "Quality",
    "bytes_to_extract",
    "draw_mesh",
    "extract_mesh",
]
