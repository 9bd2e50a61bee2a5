"""glTF 2.0, in one binary file or as a folder of plain ones: the asset for Blender, Unity, Unreal and three.js.

Written through pygltflib, because trimesh stores sRGB bytes where glTF wants linear colours, darkens textures and writes no
full material, which readers then take for metal.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.exports.marks import DIGITAL_SOURCE_TYPE, says_source
from orchestrator.exports.pictures import texture_pictures, write_texture
from orchestrator.exports.transform import Placement, generator_name, place, srgb_to_linear
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh

ROUGHNESS = 0.8
"""Of the one material: unpolished, because the prior's pictures show no highlights."""


def write_glb(mesh: Mesh, path: Path, placement: Placement | None = None, *, prompt: str = "") -> list[Path]:
    """Write `path` (.glb): +Y up, front +Z, metres; returns the files written.

    Positions, unit normals and one opaque material: metallic 0, roughness 0.8, base colour factor 1. A textured mesh brings
    its pictures inside the file, with texture coordinates and tangents; one without has linear vertex colours (16 bit).
    `prompt` is kept in the extras of the asset and of the node. Raises OutputError.
    """
    document, blob = _document(mesh, placement or Placement(), prompt)
    for name, data in texture_pictures(mesh.texture).items():
        document.images.append(_gltf().Image(name=name, mimeType="image/png", bufferView=len(document.bufferViews)))
        blob = _append(document, blob, data)
    document.buffers = [_gltf().Buffer(byteLength=len(blob))]
    document.set_binary_blob(blob)
    return [write_bytes(path, b"".join(document.save_to_bytes()))]


def write_gltf(mesh: Mesh, path: Path, placement: Placement | None = None, *, prompt: str = "") -> list[Path]:
    """Write `path` (.gltf, JSON), a .bin and the pictures beside it, otherwise as `write_glb`. Raises OutputError."""
    path = Path(path)
    document, blob = _document(mesh, placement or Placement(), prompt)
    binary = path.with_suffix(".bin")
    document.buffers = [_gltf().Buffer(byteLength=len(blob), uri=_uri(binary))]
    pictures = write_texture(mesh.texture, path)
    document.images = [_gltf().Image(name=name, mimeType="image/png", uri=_uri(file)) for name, file in pictures.items()]
    # The file that names the others comes last, so that no moment shows it without them.
    beside = [write_bytes(binary, blob), *pictures.values()]
    return [write_bytes(path, document.gltf_to_json().encode()), *beside]


def _gltf() -> Any:
    import pygltflib

    return pygltflib


def _uri(path: Path) -> str:
    from urllib.parse import quote

    return quote(path.name)


def _document(mesh: Mesh, placement: Placement, prompt: str) -> tuple[Any, bytes]:
    """The document without its images, and the bytes of its arrays."""
    gltf = _gltf()
    extras = {"prompt": prompt} if prompt else {}
    source = {"digitalSourceType": DIGITAL_SOURCE_TYPE} if says_source() else {}
    document = gltf.GLTF2(
        asset=gltf.Asset(version="2.0", generator=generator_name(), extras={**extras, **source}),
        scene=0,
        scenes=[gltf.Scene(nodes=[0])],
        nodes=[gltf.Node(mesh=0, name="object", extras=extras)],
        materials=[_material(mesh)],
    )
    if mesh.texture is not None:
        clamp = gltf.CLAMP_TO_EDGE
        sampler = gltf.Sampler(magFilter=gltf.LINEAR, minFilter=gltf.LINEAR_MIPMAP_LINEAR, wrapS=clamp, wrapT=clamp)
        document.samplers = [sampler]
        document.textures = [gltf.Texture(source=number, sampler=0) for number in range(len(texture_pictures(mesh.texture)))]
    faces, arrays = _arrays(mesh, placement)
    blob = _accessor(document, b"", faces.astype(np.uint32).reshape(-1), gltf.SCALAR, target=gltf.ELEMENT_ARRAY_BUFFER)
    attributes = gltf.Attributes()
    for name, array in arrays.items():
        setattr(attributes, name, len(document.accessors))
        blob = _accessor(document, blob, array, f"VEC{array.shape[1]}", target=gltf.ARRAY_BUFFER)
        if name == "POSITION":
            document.accessors[-1].min, document.accessors[-1].max = array.min(0).tolist(), array.max(0).tolist()
    primitive = gltf.Primitive(attributes=attributes, indices=0, material=0, mode=gltf.TRIANGLES)
    document.meshes = [gltf.Mesh(name="object", primitives=[primitive])]
    return document, blob


def _arrays(mesh: Mesh, placement: Placement) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Faces and the vertices' attributes, split along the seams where there is a texture."""
    from nerf3d.mesh.texture import corner_tangents

    placed = place(mesh, longest_side=placement.size_metres, origin=placement.origin)
    if placed.texture is None:
        colours = np.full((len(placed.colours), 4), 65535, np.uint16)  # four channels keep each row 4-byte aligned
        colours[:, :3] = np.round(srgb_to_linear(placed.colours) * 65535)
        return placed.faces, {"POSITION": placed.vertices, "NORMAL": placed.normals, "COLOR_0": colours}
    uv_map = placed.texture.uv_map
    arrays = {"POSITION": placed.vertices[uv_map.vertices], "NORMAL": placed.normals[uv_map.vertices]}
    if placed.texture.normal_map is not None:
        arrays["TANGENT"] = corner_tangents(placed.vertices, placed.normals, uv_map)
    return uv_map.faces, {**arrays, "TEXCOORD_0": uv_map.uvs}


def _accessor(document, blob: bytes, array: np.ndarray, kind: str, *, target: int) -> bytes:
    """Adds an array as a view and an accessor; returns the longer blob."""
    gltf = _gltf()
    component = {"uint32": gltf.UNSIGNED_INT, "float32": gltf.FLOAT, "uint16": gltf.UNSIGNED_SHORT}[array.dtype.name]
    accessor = gltf.Accessor(
        bufferView=len(document.bufferViews),
        componentType=component,
        count=len(array),
        type=kind,
        normalized=array.dtype == np.uint16,
    )
    document.accessors.append(accessor)
    return _append(document, blob, array.tobytes(), target=target)


def _append(document, blob: bytes, data: bytes, *, target: int | None = None) -> bytes:
    """Adds a view of `data`, which begins at a multiple of 4 bytes; returns the longer blob."""
    document.bufferViews.append(_gltf().BufferView(buffer=0, byteOffset=len(blob), byteLength=len(data), target=target))
    return blob + data + bytes(-len(data) % 4)


def _material(mesh: Mesh) -> Any:
    gltf = _gltf()
    surface = gltf.PbrMetallicRoughness(baseColorFactor=[1.0, 1.0, 1.0, 1.0], metallicFactor=0.0, roughnessFactor=ROUGHNESS)
    texture, normals = mesh.texture, None
    if texture is not None:
        surface.baseColorTexture = gltf.TextureInfo(index=0)
        normals = gltf.NormalMaterialTexture(index=1) if texture.normal_map is not None else None
    return gltf.Material(
        name="vertex colours" if texture is None else "texture",
        pbrMetallicRoughness=surface,
        normalTexture=normals,
        alphaMode=gltf.OPAQUE,
        alphaCutoff=None,
        doubleSided=False,
    )
