"""Read a mesh file of any of our formats back, as another tool would, into one form."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.errors import InputError
from nerf3d.mesh.mesh import Mesh
from nerf3d.mesh.texture import Texture, UvMap, read_bilinear


@dataclasses.dataclass(frozen=True, eq=False)
class ReadMesh:
    """What a file says, in its own axes and unit.

    triangles: (M, 3, 3) corners. colours: (M, 3, 3) sRGB in [0, 1] of the corners, None where the file has none.
    uvs: (M, 3, 2) from the picture's upper left, and picture: (H, W, 3) uint8, both None without a texture.
    normal_map: (H, W, 3) uint8 or None. unit: the name of the unit where the file states one.
    """

    triangles: np.ndarray
    colours: np.ndarray | None = None
    uvs: np.ndarray | None = None
    picture: np.ndarray | None = None
    normal_map: np.ndarray | None = None
    unit: str | None = None


def read_file(path: Path) -> ReadMesh:
    """The mesh in a file of ours. Raises whatever its reader makes of a damaged file."""
    return _READERS[path.suffix](path)


def read_glb(path: Path) -> Mesh:
    """The inverse of `orchestrator.exports.write_glb`, its seams joined again.

    By hand, because trimesh drops the vertex colours of a mesh that has a material, and without the material it keeps
    only the low byte of each 16-bit colour. A textured mesh's vertex colours are its texture's there.

    Raises:
        InputError: the file is damaged, or is no GLB of ours.
    """
    try:
        document, arrays = _gltf_arrays(path)
        vertices, faces, normals = arrays["POSITION"], arrays["indices"], arrays["NORMAL"]
        if "COLOR_0" in arrays:
            return Mesh(vertices, faces, normals, linear_to_srgb(arrays["COLOR_0"][:, :3] / 65535))
        pictures = _gltf_pictures(document, path)
        _, first, welded = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")  # vertices as they come, not as they sort
        rank = np.argsort(order, kind="stable")
        vertex_of, first = rank[welded.reshape(-1)], first[order]
        texture = Texture(UvMap(vertex_of, arrays["TEXCOORD_0"], faces), pictures["base_colour"], pictures.get("normal"))
        colours = read_bilinear(texture.base_colour, arrays["TEXCOORD_0"][first])
        return Mesh(vertices[first], vertex_of[faces], normals[first], colours, texture)
    except Exception as error:  # pygltflib passes on whatever a damaged file provokes
        raise InputError(
            f"{path} cannot be read as a mesh of ours ({type(error).__name__}: {error}); make it again."
        ) from error


def linear_to_srgb(colours: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as sRGB in [0, 1] (IEC 61966-2-1), the inverse of `exports.transform.srgb_to_linear`."""
    return np.where(colours <= 0.0031308, colours * 12.92, 1.055 * np.maximum(colours, 1e-9) ** (1 / 2.4) - 0.055)


def _read_gltf(path: Path) -> ReadMesh:
    document, arrays = _gltf_arrays(path)
    faces = arrays["indices"]
    triangles = arrays["POSITION"][faces]
    if "COLOR_0" in arrays:
        return ReadMesh(triangles, linear_to_srgb(arrays["COLOR_0"][:, :3] / 65535)[faces], unit="metre")
    pictures = _gltf_pictures(document, path)
    uvs = arrays["TEXCOORD_0"][faces]
    return ReadMesh(triangles, None, uvs, pictures["base_colour"], pictures.get("normal"), unit="metre")


def _gltf_arrays(path: Path):
    """The document, and its one primitive's attributes and "indices" (M, 3) as arrays."""
    import pygltflib

    document = pygltflib.GLTF2().load(str(path))
    [mesh] = document.meshes
    [primitive] = mesh.primitives
    numbers = {name: number for name, number in vars(primitive.attributes).items() if number is not None}
    blob = document.binary_blob() if path.suffix == ".glb" else path.with_suffix(".bin").read_bytes()
    arrays = {name: _accessor(document, blob, number) for name, number in numbers.items()}
    return document, {**arrays, "indices": _accessor(document, blob, primitive.indices).reshape(-1, 3)}


def _accessor(document, blob: bytes, number: int) -> np.ndarray:
    """An accessor's rows (count, width)."""
    accessor = document.accessors[number]
    dtype = {5125: "<u4", 5126: "<f4", 5123: "<u2"}[accessor.componentType]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor.type]
    return np.frombuffer(_view(document, blob, accessor.bufferView), dtype).reshape(accessor.count, width)


def _view(document, blob: bytes, number: int) -> bytes:
    view = document.bufferViews[number]
    return blob[view.byteOffset : view.byteOffset + view.byteLength]


def _gltf_pictures(document, path: Path) -> dict[str, np.ndarray]:
    def data(image) -> bytes:
        if image.bufferView is not None:
            return _view(document, document.binary_blob(), image.bufferView)
        return (path.parent / image.uri).read_bytes()

    return {image.name: _decode(data(image)) for image in document.images}


def _decode(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _read_with_trimesh(path: Path) -> ReadMesh:
    """OBJ, PLY and STL."""
    import trimesh

    mesh: Any = trimesh.load_mesh(path, process=False)
    visual = mesh.visual
    if visual.kind == "texture" and getattr(visual.material, "image", None) is not None:
        uvs = np.asarray(visual.uv)[mesh.faces] * (1, -1) + (0, 1)
        return ReadMesh(mesh.triangles, None, uvs, np.asarray(visual.material.image.convert("RGB")))
    colours = None
    if path.suffix == ".obj":  # trimesh prefers the material to the colours behind the coordinates
        rows = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("v ")]
        faces = [[int(c.split("/")[0]) - 1 for c in line[2:].split()] for line in _lines(path, "f ")]
        values = np.loadtxt(rows, ndmin=2)
        return ReadMesh(values[:, :3][faces], values[:, 3:][faces])
    if path.suffix == ".ply":
        colours = visual.vertex_colors[:, :3][mesh.faces] / 255
    return ReadMesh(mesh.triangles, colours)


def _lines(path: Path, start: str) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(start)]


def _read_3mf(path: Path) -> ReadMesh:
    import lib3mf

    library = lib3mf.get_wrapper()
    model = library.CreateModel()
    model.QueryReader("3mf").ReadFromFile(str(path))
    bodies = model.GetMeshObjects()
    bodies.MoveNext()
    body = bodies.GetCurrentMeshObject()
    vertices = np.array([tuple(vertex.Coordinates) for vertex in body.GetVertices()])
    faces = np.array([tuple(triangle.Indices) for triangle in body.GetTriangleIndices()])
    properties = body.GetAllTriangleProperties()
    group = model.GetColorGroupByID(properties[0].ResourceID)
    palette = {number: library.ColorToRGBA(group.GetColor(number)) for number in group.GetAllPropertyIDs()}
    corners = [[palette[number][:3] for number in row.PropertyIDs] for row in properties]
    unit = {lib3mf.ModelUnit.MilliMeter: "millimetre"}.get(model.GetUnit())
    return ReadMesh(vertices[faces], np.array(corners) / 255, unit=unit)


def _read_usdz(path: Path) -> ReadMesh:
    import zipfile

    from pxr import Usd, UsdGeom

    stage = Usd.Stage.Open(str(path))
    [body] = [UsdGeom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh)]
    faces = np.array(body.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    triangles = np.array(body.GetPointsAttr().Get())[faces]
    unit = "metre" if UsdGeom.GetStageMetersPerUnit(stage) == 1 else None
    places = UsdGeom.PrimvarsAPI(body).GetPrimvar("st")
    if not places.HasValue():
        linear = np.array(body.GetDisplayColorPrimvar().Get())
        return ReadMesh(triangles, linear_to_srgb(linear)[faces], unit=unit)
    uvs = np.array(places.ComputeFlattened()).reshape(-1, 3, 2) * (1, -1) + (0, 1)
    with zipfile.ZipFile(path) as package:
        pictures = {Path(name).stem: _decode(package.read(name)) for name in package.namelist() if name.endswith(".png")}
    return ReadMesh(triangles, None, uvs, pictures["base_colour"], pictures.get("normal"), unit=unit)


_READERS: dict[str, Callable[[Path], ReadMesh]] = {
    ".glb": _read_gltf,
    ".gltf": _read_gltf,
    ".obj": _read_with_trimesh,
    ".ply": _read_with_trimesh,
    ".stl": _read_with_trimesh,
    ".3mf": _read_3mf,
    ".usdz": _read_usdz,
}
