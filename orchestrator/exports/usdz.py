"""USDZ, for Apple's viewers and everything else that reads USD: one package with its pictures inside."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.exports.gltf import ROUGHNESS
from orchestrator.exports.pictures import texture_pictures
from orchestrator.exports.transform import Placement, generator_name, place
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh

_LONG_AGO = 500_000_000  # in 1985; a zip file's clock begins in 1980


def write_usdz(mesh: Mesh, path: Path, placement: Placement | None = None, *, prompt: str = "") -> list[Path]:
    """Write `path` (.usdz): +Y up, front +Z, metres, a UsdPreviewSurface; returns the files written.

    A textured mesh brings its pictures; without them the surface shows the vertex colours. `prompt` is the comment of the
    layer. Raises ImportError without usd-core, OutputError.
    """
    from pxr import Sdf, UsdUtils

    placement = placement or Placement()
    placed = place(mesh, longest_side=placement.size_metres, origin=placement.origin)
    with tempfile.TemporaryDirectory() as folder:
        pictures = {}
        for name, data in texture_pictures(placed.texture).items():
            pictures[name] = f"./{name}.png"  # with the dot it lies beside the layer, in the package too
            (Path(folder) / pictures[name]).write_bytes(data)
        layer, package = Path(folder) / "mesh.usdc", Path(folder) / "mesh.usdz"
        _write_stage(placed, layer, pictures, prompt)
        for file in Path(folder).iterdir():  # the package keeps times: the same mesh gives the same bytes
            os.utime(file, (_LONG_AGO, _LONG_AGO))
        if not UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(layer)), str(package)):
            raise RuntimeError("usd-core could not make the package.")
        return [write_bytes(path, package.read_bytes())]


def _write_stage(placed: Mesh, layer: Path, pictures: dict[str, str], prompt: str) -> None:
    from pxr import Gf, Usd, UsdGeom, UsdShade, Vt

    stage = Usd.Stage.CreateNew(str(layer))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/object")
    stage.SetDefaultPrim(root.GetPrim())
    stage.GetRootLayer().comment = " ".join(f"{generator_name()} {prompt}".split())
    Usd.ModelAPI(root).SetKind("component")
    body = UsdGeom.Mesh.Define(stage, "/object/mesh")
    body.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(placed.vertices))
    body.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(placed.faces), 3, np.int32)))
    body.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(placed.faces.reshape(-1)))
    body.CreateExtentAttr([Gf.Vec3f(*row) for row in placed.bounds.tolist()])
    body.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    body.CreateOrientationAttr(UsdGeom.Tokens.rightHanded)
    body.CreateDoubleSidedAttr(False)
    body.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(placed.normals))
    body.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    _write_paint(placed, body)
    material = _write_material(stage, pictures)
    UsdShade.MaterialBindingAPI.Apply(body.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()


def _write_paint(placed: Mesh, body) -> None:
    """Texture coordinates, each place once and the corners by number; or the vertices' colours, linear as USD wants them."""
    from pxr import Sdf, UsdGeom, Vt

    from orchestrator.exports.transform import srgb_to_linear

    if placed.texture is None:
        linear = srgb_to_linear(placed.colours).astype(np.float32)
        colour = body.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex)
        colour.Set(Vt.Vec3fArray.FromNumpy(linear))
        return
    uv_map = placed.texture.uv_map
    primvars = UsdGeom.PrimvarsAPI(body)
    places = primvars.CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying)
    lower_left = np.ascontiguousarray(uv_map.uvs * (1, -1) + (0, 1), np.float32)
    places.Set(Vt.Vec2fArray.FromNumpy(lower_left))
    places.SetIndices(Vt.IntArray.FromNumpy(uv_map.faces.reshape(-1)))


def _write_material(stage, pictures: dict[str, str]):
    from pxr import Gf, Sdf, UsdShade

    material = UsdShade.Material.Define(stage, "/object/material")
    surface = UsdShade.Shader.Define(stage, "/object/material/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(ROUGHNESS)
    surface.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    colour = surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    if not pictures:
        reader = _reader(stage, "colours", "UsdPrimvarReader_float3", "displayColor")
        reader.CreateOutput("result", Sdf.ValueTypeNames.Float3)
        colour.ConnectToSource(reader.ConnectableAPI(), "result")
        return material
    places = _reader(stage, "places", "UsdPrimvarReader_float2", "st")
    places.CreateOutput("result", Sdf.ValueTypeNames.Float2)
    inputs = {"base_colour": (colour, "sRGB")}
    if "normal" in pictures:
        inputs["normal"] = (surface.CreateInput("normal", Sdf.ValueTypeNames.Normal3f), "raw")
    for name, (target, space) in inputs.items():
        texture = UsdShade.Shader.Define(stage, f"/object/material/{name}")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(pictures[name]))
        texture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set(space)
        texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(places.ConnectableAPI(), "result")
        for side in ("wrapS", "wrapT"):
            texture.CreateInput(side, Sdf.ValueTypeNames.Token).Set("clamp")
        if name == "normal":
            texture.CreateInput("scale", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
            texture.CreateInput("bias", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
        texture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
        target.ConnectToSource(texture.ConnectableAPI(), "rgb")
    return material


def _reader(stage, name: str, kind: str, primvar: str):
    from pxr import Sdf, UsdShade

    reader = UsdShade.Shader.Define(stage, f"/object/material/{name}")
    reader.CreateIdAttr(kind)
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set(primvar)
    return reader
