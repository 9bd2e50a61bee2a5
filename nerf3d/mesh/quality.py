"""What is wrong with a mesh that looks finished: open, in pieces, thin, cut through by itself, hardly any volume."""

from __future__ import annotations

import dataclasses

import numpy as np

from nerf3d.mesh.mesh import Mesh, face_areas, signed_volumes
from nerf3d.mesh.nearest import NearestSurface

THIN = 0.012
"""Of the longest side: 1.2 mm of a print of 100 mm, three lines of a usual nozzle."""
_LEAST_FILL = 0.02
_LARGEST_THIN_SHARE = 0.1
_CELLS_PER_AXIS = 96


@dataclasses.dataclass(frozen=True)
class Quality:
    """Figures of a mesh.

    fill: enclosed volume over the bounding box's, 0 to 1. thin_share: of the surface, where the other side is nearer than
    THIN. num_self_intersections: faces that an edge of a face elsewhere on the surface runs through.
    """

    is_closed: bool
    num_pieces: int
    fill: float
    thin_share: float
    num_self_intersections: int

    @classmethod
    def of(cls, mesh: Mesh) -> Quality:
        """Measured on the mesh as it is delivered."""
        box = float(np.prod(mesh.extents.astype(np.float64)))
        volume = float(signed_volumes(mesh.vertices, mesh.faces).sum())
        return cls(
            is_closed=mesh.is_watertight,
            num_pieces=mesh.num_components,
            fill=round(volume / max(box, 1e-12), 4),
            thin_share=round(thin_share(mesh), 4),
            num_self_intersections=num_self_intersections(mesh.vertices, mesh.faces),
        )

    def flags(self) -> dict[str, str]:
        """Name -> the sentence for the user, of everything that makes the mesh no plain success."""
        found = {
            "open": (not self.is_closed, "The mesh is not closed."),
            "pieces": (self.num_pieces > 1, f"The mesh is in {self.num_pieces} pieces."),
            "little volume": (
                self.fill < _LEAST_FILL,
                f"The mesh fills {100 * self.fill:.1f} % of its box: it is flat, bent or hollow rather than a solid.",
            ),
            "thin": (
                self.thin_share > _LARGEST_THIN_SHARE,
                f"{100 * self.thin_share:.0f} % of the surface is on parts thinner than {100 * THIN:.1f} % of the object's "
                "size, which a printer may lose.",
            ),
            "self-intersecting": (
                self.num_self_intersections > 0,
                f"The surface runs through itself at {self.num_self_intersections:,} faces.",
            ),
        }
        return {name: sentence for name, (is_so, sentence) in found.items() if is_so}


def thin_share(mesh: Mesh) -> float:
    """Share of the area whose far side, the nearest place behind it that looks the other way, is nearer than THIN."""
    surface = NearestSurface(mesh.vertices, mesh.faces)
    faces, weights = surface.locate(mesh.vertices, -mesh.normals)
    across = np.einsum("kc,kci->ki", weights, surface.vertices[surface.faces[faces]]) - mesh.vertices
    away = np.linalg.norm(across, axis=1)
    is_behind = (across * mesh.normals).sum(1) < -0.7 * away
    is_thin = is_behind & (away < THIN * float(mesh.extents.max()))
    areas = face_areas(mesh.vertices, mesh.faces)
    return float((areas * is_thin[mesh.faces].mean(1)).sum() / max(areas.sum(), 1e-20))


def num_self_intersections(vertices: np.ndarray, faces: np.ndarray) -> int:
    """How many faces an edge of another face, with which they share no corner, runs through."""
    corners = vertices[faces].astype(np.float64)
    pierced: set[int] = set()
    for first, second in _near_pairs(corners):
        shared = (faces[first][:, :, None] == faces[second][:, None]).any((1, 2))
        low, high = corners[first].min(1), corners[first].max(1)
        apart = (low > corners[second].max(1)).any(1) | (high < corners[second].min(1)).any(1)
        first, second = first[~shared & ~apart], second[~shared & ~apart]
        for start in range(3):
            ends = corners[first][:, [start, (start + 1) % 3]]
            pierced.update(second[_runs_through(ends[:, 0], ends[:, 1], corners[second])].tolist())
    return len(pierced)


def _near_pairs(corners: np.ndarray):
    """Chunks of (faces, faces) whose bounding boxes meet the same cell of a grid, each ordered pair at least once."""
    low, high = corners.min(1), corners.max(1)
    origin, size = low.min(0), float((high.max(0) - low.min(0)).max()) / _CELLS_PER_AXIS
    least, most = (((side - origin) / max(size, 1e-12)).astype(np.int64) for side in (low, high))
    spans = most - least + 1
    counts = spans.prod(1)
    face = np.repeat(np.arange(len(corners)), counts)
    within = np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts)
    cell = np.zeros(len(face), np.int64)
    for axis in range(3):
        within, step = np.divmod(within, spans[face, axis])
        cell = cell * (_CELLS_PER_AXIS + 2) + least[face, axis] + step
    order = np.argsort(cell, kind="stable")
    face, cell = face[order], cell[order]
    for distance in range(1, int(np.unique(cell, return_counts=True)[1].max())):
        rows = np.flatnonzero(cell[distance:] == cell[:-distance])
        if len(rows):
            first, second = face[rows], face[rows + distance]
            yield np.concatenate([first, second]), np.concatenate([second, first])


def _runs_through(start: np.ndarray, end: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(K,) whether each segment crosses the inside of its triangle (K, 3, 3); Möller and Trumbore 1997."""
    along = end - start
    first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    across = np.cross(along, second)
    scale = (first * across).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = start - triangles[:, 0]
        u = (offset * across).sum(1) / scale
        turned = np.cross(offset, first)
        v = (along * turned).sum(1) / scale
        t = (second * turned).sum(1) / scale
        return (u > 1e-9) & (v > 1e-9) & (u + v < 1 - 1e-9) & (t > 1e-9) & (t < 1 - 1e-9)
