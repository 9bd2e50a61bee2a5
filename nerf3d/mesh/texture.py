"""What a textured mesh carries beside its vertices: where each corner lies in a picture, and the pictures."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class UvMap:
    """A mesh's surface laid flat. Along seams a vertex has several places, so corners have an index of their own.

    vertices: (K,) int32, the mesh's vertex at each place.
    uvs: (K, 2) float32 in [0, 1], from the picture's upper left corner, as in glTF.
    faces: (M, 3) int32 places, corner by corner those of the mesh's faces.

    Raises ValueError for unequal lengths.
    """

    vertices: np.ndarray
    uvs: np.ndarray
    faces: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype in (("vertices", "i4"), ("uvs", "f4"), ("faces", "i4")):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))
        if len(self.vertices) != len(self.uvs):
            raise ValueError(f"{len(self.uvs)} places in the picture came with {len(self.vertices)} vertices.")


@dataclasses.dataclass(frozen=True, eq=False)
class Texture:
    """A mesh's pictures and their place on it.

    uv_map: where each corner lies.
    base_colour: (S, S, 3) uint8, sRGB; every texel is filled, those that no face covers with the nearest that one does.
    normal_map: (S, S, 3) uint8 of tangent-space normals as glTF wants them (n / 2 + 1 / 2, green up), or None.
    """

    uv_map: UvMap
    base_colour: np.ndarray
    normal_map: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Texels per side."""
        return len(self.base_colour)

    def sample(self, picture: np.ndarray, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(K, 3) float32 in [0, 1]: a picture at the barycentric weights (K, 3) in `faces` (K,), read bilinearly."""
        uvs = np.einsum("kc,kci->ki", weights.astype(np.float32), self.uv_map.uvs[self.uv_map.faces[faces]])
        return read_bilinear(picture, uvs)


def read_bilinear(picture: np.ndarray, uvs: np.ndarray) -> np.ndarray:
    """(K, 3) float32 in [0, 1]: a picture (H, W, 3) uint8 at uvs (K, 2), its border repeated beyond the outermost centres."""
    height, width, _ = picture.shape
    u, v = uvs[:, 0].astype(np.float32), uvs[:, 1].astype(np.float32)
    x, y = np.clip(u * width - 0.5, 0, width - 1), np.clip(v * height - 0.5, 0, height - 1)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    along_x, along_y = (x - left)[:, None], (y - top)[:, None]
    texels = picture.reshape(-1, 3)  # one index a texel: half the time of two

    def row(number: np.ndarray) -> np.ndarray:
        first, second = (texels.take(number * width + column, axis=0).astype(np.float32) for column in (left, right))
        return first + (second - first) * along_x

    upper, lower = row(top), row(bottom)
    return (upper + (lower - upper) * along_y) / np.float32(255)


def corner_tangents(vertices: np.ndarray, normals: np.ndarray, uv_map: UvMap) -> np.ndarray:
    """(K, 4) float32: at each place of the map the unit direction of growing u, square to the normal, and the sign of v's.

    The weights are those of MikkTSpace (Mikkelsen 2008, section 4), on which glTF and Blender agree: each face's direction
    of u, laid into the tangent plane of the vertex, counts by the face's angle there. The sign is +1 where
    cross(normal, tangent) points along falling v of the picture, which is up.
    """
    corners = vertices[uv_map.vertices[uv_map.faces]].astype(np.float64)
    flat = uv_map.uvs[uv_map.faces].astype(np.float64) * (1, -1)
    sides, steps = corners[:, 1:] - corners[:, :1], flat[:, 1:] - flat[:, :1]
    winding = steps[:, 0, 0] * steps[:, 1, 1] - steps[:, 0, 1] * steps[:, 1, 0]
    along_u = (steps[:, 1, 1:] * sides[:, 0] - steps[:, 0, 1:] * sides[:, 1]) * np.sign(winding)[:, None]
    place_normals = normals[uv_map.vertices].astype(np.float64)
    total = np.zeros((len(uv_map.uvs), 3))
    for corner in range(3):
        place = uv_map.faces[:, corner]
        normal = place_normals[place]
        ahead, back = (corners[:, (corner + turn) % 3] - corners[:, corner] for turn in (1, 2))
        angle = np.arccos(np.clip((_unit(_flatten(ahead, normal)) * _unit(_flatten(back, normal))).sum(1), -1, 1))
        share = _unit(_flatten(along_u, normal)) * angle[:, None]
        total += np.stack([np.bincount(place, share[:, axis], len(total)) for axis in range(3)], 1)
    sign = np.bincount(uv_map.faces.ravel(), np.repeat(winding, 3), len(total))
    lost = np.linalg.norm(total, axis=1) < 1e-9
    total[lost] = _flatten(np.eye(3)[np.abs(place_normals[lost]).argmin(1)], place_normals[lost])
    return np.hstack([_unit(_flatten(total, place_normals)), np.where(sign < 0, -1.0, 1.0)[:, None]]).astype(np.float32)


def _flatten(vectors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return vectors - (vectors * normals).sum(1, keepdims=True) * normals


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-20)
