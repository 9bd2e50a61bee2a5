"""Binary glTF 2.0: the asset for Blender, Unity, Unreal and three.js.

Written through pygltflib, because trimesh stores sRGB bytes where glTF wants linear colours and writes no material,
which readers then take for metal.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.exports.transform import generator_name, place, srgb_to_linear
from orchestrator.host.atomic import write_bytes

if TYPE_CHECKING:
    from nerf3d.mesh.mesh import Mesh


def write_glb(mesh: Mesh, path: Path, *, prompt: str = "", size_metres: float = 1.0) -> list[Path]:
    """Write `path` (.glb): +Y up, front +Z, centred, longest side `size_metres`; returns the files written.

    Positions, unit normals and linear vertex colours (16 bit); one opaque material: metallic 0, roughness 0.8, base
    colour factor 1. `prompt` is kept in the extras of the asset and of the node. Raises OutputError.
    """
    import pygltflib as gltf

    placed = place(mesh, longest_side=size_metres)
    colours = np.full((len(placed.colours), 4), 65535, np.uint16)  # four channels keep each row 4-byte aligned
    colours[:, :3] = np.round(srgb_to_linear(placed.colours) * 65535)
    indices = placed.faces.astype(np.uint32).reshape(-1)
    # (data, target, component type, accessor type, whether integers stand for [0, 1])
    arrays = [
        (indices, gltf.ELEMENT_ARRAY_BUFFER, gltf.UNSIGNED_INT, gltf.SCALAR, False),
        (placed.vertices, gltf.ARRAY_BUFFER, gltf.FLOAT, gltf.VEC3, False),
        (placed.normals, gltf.ARRAY_BUFFER, gltf.FLOAT, gltf.VEC3, False),
        (colours, gltf.ARRAY_BUFFER, gltf.UNSIGNED_SHORT, gltf.VEC4, True),
    ]
    views, accessors, blob = [], [], b""
    for number, (array, target, component, kind, unit) in enumerate(arrays):
        data = array.tobytes()  # every row is a multiple of 4 bytes, so every view starts aligned
        views.append(gltf.BufferView(buffer=0, byteOffset=len(blob), byteLength=len(data), target=target))
        accessors.append(
            gltf.Accessor(bufferView=number, componentType=component, count=len(array), type=kind, normalized=unit)
        )
        blob += data
    accessors[1].min, accessors[1].max = placed.bounds.tolist()
    extras = {"prompt": prompt} if prompt else {}
    document = gltf.GLTF2(
        asset=gltf.Asset(version="2.0", generator=generator_name(), extras=extras),
        scene=0,
        scenes=[gltf.Scene(nodes=[0])],
        nodes=[gltf.Node(mesh=0, name="object", extras=extras)],
        meshes=[gltf.Mesh(name="object", primitives=[_primitive(gltf)])],
        materials=[_material(gltf)],
        accessors=accessors,
        bufferViews=views,
        buffers=[gltf.Buffer(byteLength=len(blob))],
    )
    document.set_binary_blob(blob)
    return [write_bytes(path, b"".join(document.save_to_bytes()))]


def _primitive(gltf):
    attributes = gltf.Attributes(POSITION=1, NORMAL=2, COLOR_0=3)
    return gltf.Primitive(attributes=attributes, indices=0, material=0, mode=gltf.TRIANGLES)


def _material(gltf):
    surface = gltf.PbrMetallicRoughness(baseColorFactor=[1.0, 1.0, 1.0, 1.0], metallicFactor=0.0, roughnessFactor=0.8)
    return gltf.Material(
        name="vertex colours", pbrMetallicRoughness=surface, alphaMode=gltf.OPAQUE, alphaCutoff=None, doubleSided=False
    )
