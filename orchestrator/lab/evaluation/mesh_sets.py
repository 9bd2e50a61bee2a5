"""Meshes with the prompts that they were made for, read back from the files that a user gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.errors import InputError
from nerf3d.mesh import Mesh

__all__ = ["MadeMesh", "linear_to_srgb", "read_glb", "read_mesh"]


@dataclass(frozen=True, eq=False)
class MadeMesh:
    """mesh: as in the file, so centred and of the size that it was exported with. prompt: from the run's manifest.

    seconds: of all stages and attempts, None where the manifest does not say.
    """

    mesh: Mesh
    prompt: str
    name: str
    seconds: float | None = None


def read_mesh(folder: Path) -> MadeMesh:
    """`mesh.glb` and the manifest of a run of `dreamkiln text-to-3d`.

    Raises:
        InputError: it is not such a folder, or its job is not finished or left no GLB.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        kind, prompt = manifest["kind"], manifest["spec"]["prompt"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} is not a run folder: its manifest.json cannot be read ({error}); give folders of 'dreamkiln text-to-3d'."
        ) from error
    if kind != "text-to-3d":
        raise InputError(f"{folder} holds a run of {kind!r}, but one of 'text-to-3d' was expected.")
    path = folder / "mesh.glb"
    if not path.exists():
        raise InputError(
            f"{folder} has no mesh.glb (its state is {manifest.get('state')!r}); repeat its command, with glb among the "
            "formats."
        )
    timings = manifest.get("timings") or {}
    return MadeMesh(read_glb(path), prompt, folder.name, round(sum(timings.values()), 1) if timings else None)


def read_glb(path: Path) -> Mesh:
    """The inverse of `orchestrator.exports.write_glb`: one primitive with normals and linear 16-bit vertex colours.

    By hand, because trimesh drops the vertex colours of a mesh that has a material, and without the material it keeps
    only the low byte of each 16-bit colour.

    Raises:
        InputError: the file is damaged, or is no GLB of ours.
    """
    import pygltflib

    try:
        document = pygltflib.GLTF2().load(str(path))
        [mesh] = document.meshes
        [primitive] = mesh.primitives
        attributes = primitive.attributes
        numbers = (attributes.POSITION, primitive.indices, attributes.NORMAL, attributes.COLOR_0)
        vertices, faces, normals, colours = (_accessor(document, number) for number in numbers)
        return Mesh(vertices, faces.reshape(-1, 3), normals, linear_to_srgb(colours[:, :3] / 65535))
    except Exception as error:  # pygltflib passes on whatever a damaged file provokes
        raise InputError(
            f"{path} cannot be read as a mesh of ours ({type(error).__name__}: {error}); make it again."
        ) from error


def linear_to_srgb(colours: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as sRGB in [0, 1] (IEC 61966-2-1), the inverse of `exports.transform.srgb_to_linear`."""
    return np.where(colours <= 0.0031308, colours * 12.92, 1.055 * np.maximum(colours, 1e-9) ** (1 / 2.4) - 0.055)


def _accessor(document, number: int) -> np.ndarray:
    """An accessor's rows (count, width)."""
    accessor = document.accessors[number]
    view = document.bufferViews[accessor.bufferView]
    dtype = {5125: "<u4", 5126: "<f4", 5123: "<u2"}[accessor.componentType]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]
    data = document.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    return np.frombuffer(data, dtype).reshape(accessor.count, width)
