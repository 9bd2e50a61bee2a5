"""How close two solids are, and two sets of silhouettes. Distances are in scene units (the box is [-1, 1]^3).

A solid is a `Mesh` or an occupancy function: points (N, 3) float32 -> (N,) bool or [0, 1], inside where it is over 0.5.
Nothing here aligns the solids first: a turned or shifted object scores badly on purpose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nerf3d.mesh.mesh import Mesh
from nerf3d.mesh.raster import fragments

Occupancy = Callable[[Tensor], Tensor]
Solid = Mesh | Occupancy

NUM_SURFACE_POINTS = 10_000
F_SCORE_DISTANCE = 0.05

_POINTS_PER_QUERY = 1 << 18


@dataclasses.dataclass(frozen=True)
class GeometryScores:
    """Agreement of a solid with the true one.

    volumetric_iou: [0, 1], 1 is perfect. chamfer: scene units, 0 is perfect.
    f_score: [0, 1] at F_SCORE_DISTANCE, 1 is perfect.
    """

    volumetric_iou: float
    chamfer: float
    f_score: float


def geometry_scores(
    solid: Solid, truth: Solid, *, resolution: int = 96, num_points: int = NUM_SURFACE_POINTS, seed: int = 0
) -> GeometryScores:
    """All three geometry metrics of a solid against the truth, from one set of samples."""
    points = surface_points(solid, num_points, seed=seed), surface_points(truth, num_points, seed=seed + 1)
    distances = nearest_distances(*points)
    return GeometryScores(
        volumetric_iou(solid, truth, resolution=resolution),
        _chamfer(*distances),
        _f_score(*distances, F_SCORE_DISTANCE),
    )


def volumetric_iou(a: Solid, b: Solid, *, resolution: int = 96) -> float:
    """Volume of the intersection over volume of the union, in [0, 1], on the scene box's resolution^3 cell centres.

    |A and B| / |A or B| (Mescheder et al. 2019, "Occupancy Networks", section 4). Two empty solids agree: 1.
    """
    inside_a, inside_b = (occupancy_grid(solid, resolution) for solid in (a, b))
    union = np.count_nonzero(inside_a | inside_b)
    return float(np.count_nonzero(inside_a & inside_b) / union) if union else 1.0


def chamfer_distance(a: Solid, b: Solid, *, num_points: int = NUM_SURFACE_POINTS, seed: int = 0) -> float:
    """Symmetric Chamfer distance in scene units, over num_points area-weighted surface points of each.

    (mean over p in A of min_q |p - q| + mean over q in B of min_p |p - q|) / 2 with the Euclidean norm, not squared.
    For two dense concentric spheres this is the difference of the radii. Sampling adds about the mean spacing of the
    points, sqrt(area / num_points) / 2: two samplings of one unit sphere are 0.018 apart.
    """
    return _chamfer(*nearest_distances(surface_points(a, num_points, seed=seed), surface_points(b, num_points, seed=seed + 1)))


def f_score(
    a: Solid,
    truth: Solid,
    *,
    distance: float = F_SCORE_DISTANCE,
    num_points: int = NUM_SURFACE_POINTS,
    seed: int = 0,
) -> float:
    """Harmonic mean of precision and recall at `distance` scene units, in [0, 1].

    Precision: share of a's surface points with a true surface point within the distance; recall: the other way round
    (Tatarchenko et al. 2019, "What Do Single-view 3D Reconstruction Networks Learn?", section 5).
    """
    points = surface_points(a, num_points, seed=seed), surface_points(truth, num_points, seed=seed + 1)
    return _f_score(*nearest_distances(*points), distance)


def silhouette_iou(alpha_a: Tensor, alpha_b: Tensor, *, threshold: float = 0.5) -> float:
    """Mean over V views of the IoU of two silhouettes, in [0, 1].

    alpha_a, alpha_b: (V, 1, H, W) coverage in [0, 1] from the same cameras; a pixel is inside above the threshold.
    A view that is empty in both counts as 1. Raises ValueError for unequal shapes.
    """
    if alpha_a.shape != alpha_b.shape:
        raise ValueError(f"silhouettes have shapes {tuple(alpha_a.shape)} and {tuple(alpha_b.shape)}; draw both alike.")
    inside_a, inside_b = (alpha.flatten(1) > threshold for alpha in (alpha_a, alpha_b))
    both, either = (inside_a & inside_b).sum(1), (inside_a | inside_b).sum(1)
    return float(torch.where(either > 0, both / either.clamp(min=1), 1.0).mean())


def nearest_distances(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For points a (N, 3) the distance to the nearest of b (M, 3), and the other way round: (N,) and (M,)."""
    from scipy.spatial import cKDTree

    return cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]


def surface_points(solid: Solid, num_points: int, *, seed: int, resolution: int = 128) -> np.ndarray:
    """(num_points, 3) float64 points spread evenly over the area of the solid's surface.

    An occupancy function is cut with marching cubes at `resolution` first. Raises ValueError for an empty solid.
    """
    import trimesh

    if isinstance(solid, Mesh):
        surface = trimesh.Trimesh(solid.vertices, solid.faces, process=False, validate=False)
    else:
        surface = trimesh.Trimesh(*_cut(solid, resolution), process=False, validate=False)
    if not len(surface.faces):
        raise ValueError("the solid is empty, so it has no surface to compare; give a solid inside [-1, 1]^3.")
    return np.asarray(trimesh.sample.sample_surface(surface, num_points, seed=seed)[0])


def occupancy_grid(solid: Solid, resolution: int) -> np.ndarray:
    """(R, R, R) bool, indexed [x, y, z]: which cell centres of the scene box lie inside the solid."""
    if isinstance(solid, Mesh):
        return _voxelise(solid, resolution)
    return _sample(solid, (np.arange(resolution) + 0.5) * 2 / resolution - 1) > 0.5


def _voxelise(mesh: Mesh, resolution: int) -> np.ndarray:
    """Inside where the winding number is positive: signed crossings of each z column, added up from above."""
    cells = (mesh.vertices.astype(np.float64) + 1) * resolution / 2
    cells[:, :2] += (3.1415e-5, 2.7182e-5)  # grid-aligned edges must not pass exactly through a column's centre
    corners = cells[mesh.faces]
    a, b, c = corners[..., :2].transpose(1, 0, 2)
    upward = np.sign((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0]))
    crossings = np.zeros((resolution * resolution, resolution + 1), np.int32)
    for face, column, barycentric in fragments(corners[..., :2], resolution, resolution):
        height = np.einsum("kc,kc->k", barycentric, corners[face, :, 2])
        below = np.clip(np.ceil(height - 0.5), 0, resolution).astype(np.int64)
        np.add.at(crossings, (column, below), upward[face].astype(np.int32))
    above = crossings[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    return above.reshape(resolution, resolution, resolution).transpose(1, 0, 2) > 0


def _cut(solid: Occupancy, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import gaussian_filter

    from nerf3d.mesh.extraction import isosurface

    inside = gaussian_filter(_sample(solid, np.linspace(-1, 1, resolution)), 0.7, mode="nearest")
    if inside.max() <= 0.5:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int32)
    return isosurface(inside, 0.5)


def _sample(solid: Occupancy, axis: np.ndarray) -> np.ndarray:
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
    with torch.no_grad():
        parts = [solid(chunk) for chunk in torch.from_numpy(points).split(_POINTS_PER_QUERY)]
    return torch.cat([torch.as_tensor(part).float().cpu() for part in parts]).numpy().reshape((len(axis),) * 3)


def _chamfer(from_a: np.ndarray, from_b: np.ndarray) -> float:
    return float((from_a.mean() + from_b.mean()) / 2)


def _f_score(from_a: np.ndarray, from_b: np.ndarray, distance: float) -> float:
    precision, recall = (from_a <= distance).mean(), (from_b <= distance).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0
