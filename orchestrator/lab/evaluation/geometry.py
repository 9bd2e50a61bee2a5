"""A made mesh against the object that its prompt means.

An exported mesh is centred on its bounding box and scaled to a longest side of 1, so the true object is brought to the
same place and size by the same function (`orchestrator.exports.transform.place`) before anything is compared. Where an
object stands and how large it is are thus not judged ("a small car" must only have the right shape); its direction is: the
front has to face +Z. Distances are shares of the longest side.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf3d import metrics
from nerf3d.mesh import Mesh, draw_mesh
from nerf3d.mesh.extraction import isosurface
from nerf3d.mesh.mesh import vertex_normals
from nerf3d.toybox.primitives import Parts
from nerf3d.toybox.sketch import OBJECT_RADIUS
from nerf3d.toybox.truth import ToyObject, object_from_prompt
from orchestrator.exports.transform import place
from orchestrator.lab.evaluation.captions import is_toybox_prompt
from orchestrator.lab.evaluation.mesh_views import orbit

__all__ = ["F_SCORE_DISTANCE", "GeometryScore", "compare", "pose_error", "surface_of", "true_mesh"]

F_SCORE_DISTANCE = metrics.F_SCORE_DISTANCE
LONGEST_SIDE = 1.0
GRID_RESOLUTION = 160
"""Cells along the scene box's sides of 2, so 80 along a longest side of 1."""

SILHOUETTE_SIZE = 128
POSE_STEP, POSE_SIZE = 15, 64
POSE_TIE = 0.01
"""Outlines whose agreement differs by less, in IoU, agree alike: a round object has no pose."""

CUT_RESOLUTION = 128
_BLOCK = 4
_HALF = OBJECT_RADIUS * 1.05


@dataclass(frozen=True, kw_only=True)
class GeometryScore:
    """Agreement with the true object, both with the centre of the bounding box at the origin and a longest side of 1.

    volumetric_iou, silhouette_iou (mean over views): [0, 1], 1 is perfect. chamfer: shares of the longest side, 0 is
    perfect; two samplings of one surface are about 0.006 apart. f_score: [0, 1] at F_SCORE_DISTANCE of the longest side.
    pose_error_degrees: 0 to 180, the least turn about the vertical at which the outlines agree best; 0 where no other turn is
    clearly better. None in reports that were made before it was measured.
    """

    volumetric_iou: float
    chamfer: float
    f_score: float
    silhouette_iou: float
    pose_error_degrees: float | None = None


def compare(mesh: Mesh, truth: Mesh, *, num_views: int = 8) -> GeometryScore:
    """Volume, surface and outlines of a mesh against the true one; both are placed alike first, see above.

    Raises ValueError for a mesh without faces or extent.
    """
    made, true = place(mesh, longest_side=LONGEST_SIDE), place(truth, longest_side=LONGEST_SIDE)
    scores = metrics.geometry_scores(made, true, resolution=GRID_RESOLUTION)
    cameras = orbit(num_views)
    outlines = [draw_mesh(solid, cameras, SILHOUETTE_SIZE, shading="albedo")[1] for solid in (made, true)]
    return GeometryScore(
        pose_error_degrees=pose_error(made, true),
        volumetric_iou=scores.volumetric_iou,
        chamfer=scores.chamfer,
        f_score=scores.f_score,
        silhouette_iou=metrics.silhouette_iou(*outlines),
    )


def pose_error(made: Mesh, true: Mesh) -> float:
    """By how many degrees a mesh is turned about the vertical against the true one, 0 to 180, in steps of `POSE_STEP`.

    The turn whose outlines agree best with the true ones, all around; of turns that are as good, the least.
    """
    cameras = orbit(360 // POSE_STEP)
    ours, theirs = (draw_mesh(solid, cameras, POSE_SIZE, shading="albedo")[1] > 0.5 for solid in (made, true))
    agreement = torch.tensor([_mean_iou(ours.roll(-turn, dims=0), theirs) for turn in range(len(cameras))])
    turns = (agreement >= agreement.max() - POSE_TIE).nonzero().flatten() * POSE_STEP
    return float(torch.minimum(turns, 360 - turns).min())


def _mean_iou(a: Tensor, b: Tensor) -> float:
    return float(((a & b).sum(dim=(1, 2, 3)) / (a | b).sum(dim=(1, 2, 3)).clamp_min(1)).mean())


def true_mesh(prompt: str) -> Mesh | None:
    """The surface of the object that a toybox prompt means, gray, in scene units; None for any other sentence."""
    truth = object_from_prompt(prompt) if is_toybox_prompt(prompt) else None
    return None if truth is None else _cut(truth.kind, truth.proportion)


@functools.lru_cache(maxsize=64)
def _cut(kind: str, proportion: str) -> Mesh:
    """Colours do not change the shape, so one surface serves all prompts of a kind and proportion."""
    truth = object_from_prompt(f"a {proportion} {kind}")
    assert truth is not None
    return surface_of(truth)


def surface_of(truth: ToyObject | Parts) -> Mesh:
    """The surface of a true object, gray, in scene units."""
    # Marching cubes wants the inside above the level, and an outside of zeros around the box.
    vertices, faces = isosurface(1 - signed_distances(truth), 1.0)
    vertices *= _HALF
    return Mesh(vertices, faces, vertex_normals(vertices, faces), np.full_like(vertices, 0.5))


def signed_distances(truth: ToyObject | Parts, *, resolution: int = CUT_RESOLUTION) -> np.ndarray:
    """(R, R, R) float32 signed distance bounds on a grid of points that holds the object, indexed [x, y, z].

    The bound never exceeds the distance, so a block of points whose centre is further from the surface than its corners
    is on one side, and its points take the centre's value: nine of ten need no evaluation of their own.
    """
    axis = torch.linspace(-_HALF, _HALF, resolution)
    spacing = 2 * _HALF / (resolution - 1)
    num_blocks = resolution // _BLOCK
    centres = truth.sdf(_lattice(axis.view(num_blocks, _BLOCK).mean(1)))
    near = centres.abs() <= 3**0.5 * (_BLOCK / 2 + 1) * spacing
    fine = near.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1).repeat_interleave(_BLOCK, 2)
    grid = centres.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1).repeat_interleave(_BLOCK, 2)
    points = torch.stack([axis[index] for index in fine.nonzero(as_tuple=True)], -1)
    grid[fine] = torch.cat([truth.sdf(chunk) for chunk in points.split(1 << 16)])
    return grid.numpy()


def _lattice(axis: Tensor) -> Tensor:
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
