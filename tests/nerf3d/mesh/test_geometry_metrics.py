"""Geometry metrics against closed forms of spheres and boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from nerf3d import metrics
from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, draw_mesh
from tests.nerf3d.mesh.solids import ball, block, sphere_mesh


def occupancy(distance):
    return lambda points: distance(points) < 0


def test_iou_of_concentric_spheres_is_the_ratio_of_volumes():
    inner, outer = sphere_mesh(0.5), sphere_mesh(0.7)
    assert metrics.volumetric_iou(inner, outer) == pytest.approx((0.5 / 0.7) ** 3, abs=0.005)
    assert metrics.volumetric_iou(occupancy(ball(0.5)), outer) == pytest.approx((0.5 / 0.7) ** 3, abs=0.005)


def test_iou_of_shifted_boxes():
    box = trimesh.creation.box((0.8, 0.8, 0.8))
    a = Mesh(box.vertices, box.faces, box.vertices, np.zeros((8, 3)))
    b = Mesh(box.vertices + np.array([0.2, 0, 0]), box.faces, box.vertices, np.zeros((8, 3)))
    assert metrics.volumetric_iou(a, b) == pytest.approx(0.6 / 1.0, abs=0.02)
    assert metrics.volumetric_iou(a, occupancy(block(0.4, 0.4, 0.4))) == pytest.approx(1, abs=0.02)
    assert metrics.volumetric_iou(a, a) == 1


def test_voxels_of_a_mesh_equal_its_occupancy_function():
    centre = (0.13, -0.21, 0.34)
    by_mesh = metrics.occupancy_grid(sphere_mesh(0.5, centre, subdivisions=5), 48)
    by_function = metrics.occupancy_grid(occupancy(ball(0.5, centre)), 48)
    assert (by_mesh != by_function).sum() <= 0.003 * by_function.sum()
    assert by_mesh.mean() * 8 == pytest.approx(4 / 3 * math.pi * 0.125, rel=0.01)


def test_chamfer_of_concentric_spheres_is_the_difference_of_radii():
    assert metrics.chamfer_distance(sphere_mesh(0.5), sphere_mesh(0.7)) == pytest.approx(0.2, abs=0.003)


def test_chamfer_of_a_surface_with_itself_is_the_sampling_distance():
    spacing = math.sqrt(math.pi / metrics.NUM_SURFACE_POINTS) / 2
    assert metrics.chamfer_distance(sphere_mesh(0.5), sphere_mesh(0.5)) == pytest.approx(spacing, rel=0.1)
    assert metrics.chamfer_distance(occupancy(ball(0.5)), sphere_mesh(0.5)) == pytest.approx(spacing, rel=0.15)


@pytest.mark.parametrize(("radius", "expected"), [(0.54, 1.0), (0.56, 0.0)])
def test_f_score_switches_at_its_distance(radius, expected):
    assert metrics.f_score(sphere_mesh(radius), sphere_mesh(0.5)) == pytest.approx(expected, abs=0.02)


def test_f_score_is_the_harmonic_mean():
    # All of the small sphere lies on the truth, but the truth has a twin far away that it misses: recall 1/2.
    near, far = sphere_mesh(0.3, (-0.6, 0, 0)), sphere_mesh(0.3, (0.6, 0, 0))
    faces = np.concatenate([near.faces, far.faces + len(near.vertices)])
    arrays = [np.concatenate([getattr(m, n) for m in (near, far)]) for n in ("vertices", "normals", "colours")]
    truth = Mesh(arrays[0], faces, arrays[1], arrays[2])
    assert metrics.f_score(near, truth) == pytest.approx(2 * 1 * 0.5 / 1.5, abs=0.01)


def test_silhouette_iou_of_concentric_spheres():
    cameras = Cameras.orbit([0.0, 120.0], [0.0, 40.0])
    alphas = [draw_mesh(sphere_mesh(radius), cameras, 96)[1] for radius in (0.5, 0.7)]
    outlines = [math.tan(math.asin(radius / 2.7)) ** 2 for radius in (0.5, 0.7)]
    assert metrics.silhouette_iou(*alphas) == pytest.approx(outlines[0] / outlines[1], abs=0.01)
    assert metrics.silhouette_iou(alphas[0], alphas[0]) == 1


def test_silhouettes_of_nothing_agree_and_of_unequal_size_raise():
    nothing = torch.zeros(2, 1, 8, 8)
    assert metrics.silhouette_iou(nothing, nothing) == 1
    assert metrics.silhouette_iou(nothing, torch.ones(2, 1, 8, 8)) == 0
    with pytest.raises(ValueError, match="silhouettes have shapes"):
        metrics.silhouette_iou(nothing, torch.zeros(1, 1, 8, 8))


def test_all_scores_at_once_equal_the_single_ones():
    a, b = sphere_mesh(0.5), sphere_mesh(0.53)
    scores = metrics.geometry_scores(a, b)
    assert scores.volumetric_iou == metrics.volumetric_iou(a, b)
    assert scores.chamfer == metrics.chamfer_distance(a, b)
    assert scores.f_score == metrics.f_score(a, b)


def test_an_empty_solid_has_no_surface():
    with pytest.raises(ValueError, match="the solid is empty"):
        metrics.surface_points(lambda points: torch.zeros(len(points)), 10, seed=0)
    nothing = lambda points: torch.zeros(len(points))  # noqa: E731
    assert metrics.volumetric_iou(nothing, nothing) == 1
