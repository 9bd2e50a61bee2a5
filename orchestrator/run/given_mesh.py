"""A mesh file that somebody else made: GLB, glTF, OBJ or PLY, with or without a UV map, in one part or in many."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from jobs.errors import InputError
from nerf3d.mesh import Mesh, Note
from nerf3d.mesh.mesh import signed_volumes, vertex_normals
from nerf3d.mesh.texture import Texture, UvMap

__all__ = ["SUFFIXES", "WHOLE", "GivenMesh"]

WHOLE = (".glb", ".ply")
"""Read from the one file alone, whatever other files it may name."""
SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
MOST_FACES = 2_000_000
_MOST_OVERLAP = 0.02
_OVERLAP_CELLS = 512


@dataclasses.dataclass(frozen=True)
class GivenMesh:
    """A file, sha256 of its bytes, and what it holds, +Y up. up: the file's upward axis."""

    path: Path
    digest: str
    mesh: Mesh
    up: str

    @classmethod
    def read(cls, path: Path, *, up: str | None = None) -> GivenMesh:
        """Every part of the file as one mesh, in the file's places and unit.

        A UV map is kept where it lies in [0, 1] and overlaps itself hardly anywhere; a note says if it was dropped. A closed
        surface that is wound inwards is turned outwards.

        Args:
            up: "y" or "z"; by default "z" for PLY and "y" for the others, as those formats have it.

        Raises:
            InputError: another suffix, a file that cannot be read, or one without faces or extent.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{path} has none of the suffixes of a mesh that can be painted; give one of {', '.join(SUFFIXES)}."
            )
        if up not in (None, "y", "z"):
            raise InputError(f"--up is {up!r}, but y or z was expected.")
        try:
            data = path.read_bytes()
            parts = list(_parts(path, data))
        except FileNotFoundError:
            raise InputError(f"There is no mesh {path}.") from None
        except Exception as error:  # readers pass on whatever a damaged file provokes
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} cannot be read as a mesh ({type(error).__name__}: {reason}).") from error
        num_faces = sum(len(part.faces) for part in parts)
        if not num_faces:
            raise InputError(f"{path} holds no faces, so there is nothing to paint.")
        if num_faces > MOST_FACES:
            raise InputError(f"{path} has {num_faces:,} faces, but at most {MOST_FACES:,} can be painted; decimate it first.")
        up = up or ("z" if path.suffix.lower() == ".ply" else "y")
        return cls(path, hashlib.sha256(data).hexdigest(), _joined(parts, path, up), up)


@dataclasses.dataclass(frozen=True)
class _Part:
    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray | None
    picture: np.ndarray | None
    colours: np.ndarray | None


def _parts(path: Path, data: bytes):
    """Each geometry of the scene where its node puts it. data: the file's bytes."""
    import trimesh

    suffix = path.suffix.lower()
    source: Any = io.BytesIO(data) if suffix in WHOLE else path
    scene: Any = trimesh.load_scene(source, file_type=suffix[1:], process=False)
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        found = scene.geometry[name]
        if not isinstance(found, trimesh.Trimesh) or not len(found.faces):
            continue
        vertices = trimesh.transform_points(np.asarray(found.vertices, np.float64), transform)
        faces = np.asarray(found.faces, np.int32)
        if np.linalg.det(transform[:3, :3]) < 0:
            faces = faces[:, ::-1]
        used = "vertex_normals" in found._cache.cache
        normals = (
            np.asarray(found.vertex_normals) @ np.linalg.inv(transform[:3, :3]) if used else vertex_normals(vertices, faces)
        )
        visual: Any = found.visual
        uvs = getattr(visual, "uv", None)
        image = _image(getattr(visual, "material", None))
        colours = None
        if visual.kind == "vertex":
            colours = np.asarray(visual.vertex_colors)[:, :3] / 255
        has_uvs = uvs is not None and len(uvs) == len(vertices)
        yield _Part(vertices, faces, normals, np.asarray(uvs) * (1, -1) + (0, 1) if has_uvs else None, image, colours)


def _image(material: Any) -> np.ndarray | None:
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    return None if image is None else np.asarray(image.convert("RGB"))


def _joined(parts: list[_Part], path: Path, up: str) -> Mesh:
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
    vertices = np.concatenate([part.vertices for part in parts])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=False)])
    normals = np.concatenate([part.normals for part in parts])
    if not np.isfinite(vertices).all() or not float(np.ptp(vertices, axis=0).max()) > 0:
        raise InputError(f"{path} has vertices that are not numbers, or all in one place, so it cannot be painted.")
    notes = []
    if signed_volumes(vertices, faces).sum() < 0:
        faces, normals = faces[:, ::-1], -normals
        notes.append(Note("The mesh was wound inwards and is turned outwards.", is_warning=False))
    if up == "z":
        vertices, normals = (np.stack([rows[:, 0], rows[:, 2], -rows[:, 1]], 1) for rows in (vertices, normals))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-12, normals / np.maximum(length, 1e-12), vertex_normals(vertices, faces))
    grey = np.full_like(vertices, 0.5)
    colours = parts[0].colours if len(parts) == 1 and parts[0].colours is not None else grey
    mesh = Mesh(vertices, faces, normals, colours)
    texture, note = _usable_texture(parts, faces)
    return dataclasses.replace(mesh, texture=texture, notes=(*notes, *((note,) if note else ())))


def _usable_texture(parts: list[_Part], faces: np.ndarray) -> tuple[Texture | None, Note | None]:
    """The file's own UV map with its picture, or grey where it has none; None where the surface has to be laid flat anew."""
    if any(part.uvs is None for part in parts):
        return None, None
    if len(parts) > 1:
        return None, Note(f"The mesh has {len(parts)} parts with UV maps of their own; it was laid flat anew as one.", False)
    uvs = parts[0].uvs
    assert uvs is not None
    if not ((uvs >= -1e-4) & (uvs <= 1 + 1e-4)).all():
        return None, Note("The mesh's UV map leaves the picture (it repeats it), so the surface was laid flat anew.", False)
    uv_map = UvMap(np.arange(len(uvs)), np.clip(uvs, 0, 1), faces)
    if (overlap := uv_overlap(uv_map)) > _MOST_OVERLAP:
        return None, Note(
            f"The mesh's UV map overlaps itself ({100 * overlap:.0f} %), so the surface was laid flat anew.", False
        )
    picture = parts[0].picture
    return Texture(uv_map, np.full((64, 64, 3), 128, np.uint8) if picture is None else picture), None


def uv_overlap(uv_map: UvMap) -> float:
    """The share of the covered cells of a picture that more than one face covers the middle of."""
    from nerf3d.mesh.raster import fragments

    size = _OVERLAP_CELLS
    count = np.zeros(size * size, np.int32)
    for _, cell, _ in fragments(uv_map.uvs[uv_map.faces].astype(np.float64) * size, size, size, slack=-1e-9):
        count += np.bincount(cell, minlength=size * size).astype(np.int32)
    covered = (count > 0).sum()
    return float((count > 1).sum() / max(covered, 1))
