"""The mesh that leaves `nerf3d`: four arrays in scene units, and the questions one asks about them."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nerf3d.mesh.texture import Texture

if TYPE_CHECKING:
    import trimesh


@dataclasses.dataclass(frozen=True)
class Note:
    """One sentence for the user about how a mesh was made. is_warning: it may not be what was wanted."""

    text: str
    is_warning: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh in the scene frame (right-handed, +Y up, front +Z, box [-1, 1]^3).

    vertices: (N, 3) float32, scene units.
    faces: (M, 3) int32 vertex indices, counter-clockwise seen from outside.
    normals: (N, 3) float32, unit, outward.
    colours: (N, 3) float32 in [0, 1], sRGB as shown on a screen.
    texture: pictures for the surface, which take the colours' place where a format holds them; None without.
    lods: the same object with fewer and fewer faces.
    notes: what the user should know about its making.

    Raises ValueError for arrays of another shape, for unequal lengths, and for a face that names a missing vertex.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    texture: Texture | None = None
    lods: tuple[Mesh, ...] = ()
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        for name, dtype in (("vertices", "f4"), ("faces", "i4"), ("normals", "f4"), ("colours", "f4")):
            array = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            if array.ndim != 2 or array.shape[1] != 3:
                raise ValueError(f"{name} has shape {array.shape}; a mesh needs (count, 3).")
            object.__setattr__(self, name, array)
        if not len(self.vertices) == len(self.normals) == len(self.colours):
            raise ValueError(
                f"{len(self.vertices)} vertices came with {len(self.normals)} normals and {len(self.colours)} colours; "
                "every vertex needs one of each."
            )
        if len(self.faces) and not (self.faces.min() >= 0 and self.faces.max() < len(self.vertices)):
            raise ValueError(
                f"faces name vertices {self.faces.min()} to {self.faces.max()}, but there are {len(self.vertices)}."
            )
        if self.texture is not None and self.texture.uv_map.faces.shape != self.faces.shape:
            raise ValueError(f"{len(self.faces)} faces came with a texture of {len(self.texture.uv_map.faces)}.")

    @property
    def bounds(self) -> np.ndarray:
        """(2, 3): the smallest and the largest coordinate on each axis."""
        return np.stack([self.vertices.min(0), self.vertices.max(0)])

    @property
    def extents(self) -> np.ndarray:
        """(3,): side lengths of the bounding box."""
        low, high = self.bounds
        return high - low

    @cached_property
    def is_watertight(self) -> bool:
        """Whether every edge joins exactly two faces that run along it in opposite directions."""
        return is_closed(self.faces)

    @cached_property
    def num_components(self) -> int:
        """Number of pieces that share no edge."""
        return int(self.to_trimesh().body_count)

    @property
    def euler_number(self) -> int:
        """V - E + F; 2 for a sphere, 0 for a torus, summed over components."""
        edges = np.sort(self.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        return len(np.unique(self.faces)) - len(np.unique(edges, axis=0)) + len(self.faces)

    @property
    def volume(self) -> float:
        """Enclosed volume in scene units cubed; negative when the faces are wound inwards."""
        return float(signed_volumes(self.vertices, self.faces).sum())

    @property
    def area(self) -> float:
        """Surface area in scene units squared."""
        return float(face_areas(self.vertices, self.faces).sum())

    def turned(self, degrees: float) -> Mesh:
        """The same object turned about the vertical axis, its front from azimuth 0 to that azimuth; its texture stays."""
        angle = np.radians(degrees)
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], np.float32).T
        lods = tuple(lod.turned(degrees) for lod in self.lods)
        return dataclasses.replace(self, vertices=self.vertices @ turn, normals=self.normals @ turn, lods=lods)

    def to_trimesh(self) -> trimesh.Trimesh:
        """The same vertices and faces, untouched, as a trimesh object with sRGB byte colours."""
        import trimesh

        colours = np.full((len(self.colours), 4), 255, np.uint8)
        colours[:, :3] = to_bytes(self.colours)
        return trimesh.Trimesh(
            self.vertices, self.faces, vertex_normals=self.normals, vertex_colors=colours, process=False, validate=False
        )


def is_closed(faces: np.ndarray) -> bool:
    """Whether faces (M, 3) form closed, consistently wound surfaces: each directed edge and its reverse occur once."""
    if not len(faces):
        return False
    ahead = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    size = int(faces.max()) + 1
    forward = np.sort(ahead[:, 0] * size + ahead[:, 1])
    backward = np.sort(ahead[:, 1] * size + ahead[:, 0])
    return bool((forward[1:] != forward[:-1]).all() and (forward == backward).all())


def signed_volumes(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(M,) volumes of the tetrahedra that join each face to the origin; their sum is the enclosed volume."""
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    return np.einsum("mi,mi->m", a, np.cross(b, c)) / 6


def face_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(M,) areas of the triangles."""
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(N, 3) float32 unit normals: face normals averaged with the face's area as weight.

    Area, not angle, because the slivers that decimation leaves have arbitrary directions, wide angles and no area.
    A vertex without any area around it points up.
    """
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    weighted = np.repeat(np.cross(b - a, c - a), 3, axis=0)
    normals = np.stack([np.bincount(faces.ravel(), weighted[:, axis], len(vertices)) for axis in range(3)], axis=1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 1e-20, normals / np.maximum(length, 1e-20), (0, 1, 0)).astype(np.float32)


def to_bytes(colours: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] as uint8, rounded to the nearest and clipped."""
    return (np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8)
