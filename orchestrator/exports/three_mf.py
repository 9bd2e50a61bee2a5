"""3MF, for 3D printing in colour: Z up, and millimetres that the file itself names."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.exports.transform import Placement, generator_name, place
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh


def write_3mf(mesh: Mesh, path: Path, placement: Placement | None = None, *, prompt: str = "") -> list[Path]:
    """Write `path` (.3mf): +Z up, front -Y, longest side `placement.print_millimetres`; returns the files written.

    Each corner of a face has its vertex's sRGB colour (materials extension); `prompt` is the title. Raises OutputError.
    """
    import lib3mf

    placement = placement or Placement()
    placed = place(mesh, longest_side=placement.print_millimetres, up="z", origin=placement.origin)
    library = lib3mf.get_wrapper()
    model = library.CreateModel()
    model.SetUnit(lib3mf.ModelUnit.MilliMeter)
    notes = model.GetMetaDataGroup()
    for name, value in (("Title", prompt), ("Application", generator_name())):
        if value:
            notes.AddMetaData("", name, value, "xs:string", True)
    body = model.AddMeshObject()
    body.SetName("object")
    points = [lib3mf.Position(tuple(point)) for point in placed.vertices.tolist()]
    body.SetGeometry(points, [lib3mf.Triangle(tuple(corners)) for corners in placed.faces.tolist()])
    _colour(model, body, placed)
    item = model.AddBuildItem(body, library.GetIdentityTransform())
    # Names that follow from the content instead of chance: the same mesh gives the same bytes.
    for number, part in enumerate((body.SetUUID, item.SetUUID, model.SetBuildUUID)):
        part(str(uuid.uuid5(uuid.NAMESPACE_OID, f"DreamKiln {number}")))
    writer = model.QueryWriter("3mf")
    writer.SetDecimalPrecision(6)
    return [write_bytes(path, bytes(writer.WriteToBuffer()))]


def _colour(model, body, placed: Mesh) -> None:
    import lib3mf

    from nerf3d.mesh.mesh import to_bytes

    palette, colour_of = np.unique(to_bytes(placed.colours), axis=0, return_inverse=True)
    group = model.AddColorGroup()
    wrapper = lib3mf.get_wrapper()
    numbers = [group.AddColor(wrapper.RGBAToColor(*colour, 255)) for colour in palette.tolist()]
    resource = group.GetResourceID()
    rows = np.array(numbers)[colour_of.reshape(-1)][placed.faces].tolist()
    body.SetAllTriangleProperties([lib3mf.TriangleProperties(resource, tuple(row)) for row in rows])
    body.SetObjectLevelProperty(resource, numbers[0])
