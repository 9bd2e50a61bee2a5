"""The place of a surface that is nearest to a point."""

from __future__ import annotations

import numpy as np

from nerf3d.mesh.mesh import face_areas, vertex_normals

_EDGES_PER_DIRECTION = 2.0
_OTHER_SIDE = 4.0  # added to a squared distance; the scene box's squared diagonal is 12, its parts lie closer


class NearestSurface:
    """Finds the nearest face among those that look the same way, so that a thin wall's other side does not count.

    vertices: (N, 3). faces: (M, 3), without those that have no area. normals: (N, 3) unit.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray, *, num_candidates: int = 6):
        """num_candidates: faces with the nearest middles that are compared, enough for an isosurface's even faces."""
        from scipy.spatial import cKDTree

        self.vertices, self.normals = vertices.astype(np.float32), vertex_normals(vertices, faces)
        self.faces = faces[face_areas(vertices, faces) > 1e-12]
        corners = self.vertices[self.faces]
        self._origin, self._sides = corners[:, 0], corners[:, 1:] - corners[:, :1]
        first, second = self._sides[:, 0], self._sides[:, 1]
        self._facing = np.cross(first, second)
        gram = np.stack([(first * first).sum(1), (first * second).sum(1), (second * second).sum(1)], 1)
        self._inverse = gram / np.maximum(gram[:, 0] * gram[:, 2] - gram[:, 1] ** 2, 1e-30)[:, None]
        # Directions count beside places, so that a thin wall's far side does not crowd the near one out.
        self._reach = _EDGES_PER_DIRECTION * float(np.linalg.norm(self._sides, axis=2).mean())
        self._facing /= np.linalg.norm(self._facing, axis=1, keepdims=True)
        self._tree = cKDTree(np.hstack([corners.mean(1), self._reach * self._facing]))
        self._num = min(num_candidates, len(self.faces))

    def locate(self, points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """points (K, 3) and the unit normals there -> rows of `faces` (K,) and weights (K, 3) of their nearest places."""
        points = points.astype(np.float32)
        _, candidates = self._tree.query(np.hstack([points, self._reach * normals]), self._num)
        best = np.full(len(points), np.inf, np.float32)
        faces, weights = np.zeros(len(points), np.int64), np.zeros_like(points)
        for candidate in candidates.reshape(len(points), -1).T:
            u, v = self._weights(points, candidate)
            sides = self._sides[candidate]
            there = self._origin[candidate] + u[:, None] * sides[:, 0] + v[:, None] * sides[:, 1]
            away = ((points - there) ** 2).sum(1)
            away = np.where((self._facing[candidate] * normals).sum(1) > 0, away, away + _OTHER_SIDE)
            better = away < best
            best[better], faces[better] = away[better], candidate[better]
            weights[better] = np.stack([1 - u - v, u, v], 1)[better]
        return faces, weights

    def _weights(self, points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Barycentric weights of corners 1 and 2 for the points laid into the faces' planes, drawn into the faces."""
        offset, sides, inverse = points - self._origin[faces], self._sides[faces], self._inverse[faces]
        along = (offset * sides[:, 0]).sum(1), (offset * sides[:, 1]).sum(1)
        u = np.maximum(inverse[:, 2] * along[0] - inverse[:, 1] * along[1], 0)
        v = np.maximum(inverse[:, 0] * along[1] - inverse[:, 1] * along[0], 0)
        over = np.maximum(u + v, 1)
        return u / over, v / over
