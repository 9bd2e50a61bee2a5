"""True objects, made into meshes and files by another way, score as themselves."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from nerf3d.mesh import Mesh, MeshConfig, extract_mesh
from nerf3d.toybox.items import build_parts
from nerf3d.toybox.kinds import KINDS
from nerf3d.toybox.render import render_object
from nerf3d.toybox.truth import ToyObject, object_from_prompt
from orchestrator.exports import Placement, write_glb
from orchestrator.exports.reading import read_glb
from orchestrator.exports.transform import fill_frame
from orchestrator.lab.evaluation.geometry import compare, pose_error, surface_of, true_mesh
from orchestrator.lab.evaluation.mesh_views import BACKGROUNDS, orbit, photograph
from orchestrator.lab.evaluation.proportions import NUM_PROPORTIONS, nearest_proportions, object_of


@dataclasses.dataclass
class TrueField:
    """The true object as a density field, so that a job's own extraction makes a mesh of it.

    log(1 + density), which extraction interpolates, is linear in the distance, and log(1 + 5) on the surface.
    """

    truth: ToyObject

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return torch.expm1((math.log(6) - 20 * self.truth.sdf(points)).clamp(0, 5))

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        return torch.full_like(points, 0.5)


def made_of(prompt: str, *, resolution: int) -> Mesh:
    config = MeshConfig(resolution=resolution, smoothing=0, taubin_iterations=0, keep_components=0, texture_size=0)
    return extract_mesh(TrueField(object_from_prompt(prompt)), config)


@pytest.mark.parametrize(
    ("prompt", "resolution"),
    [("a red table", 96), ("a red mushroom with a white stem", 72), ("a tall cyan cone", 128)],
)
def test_the_truth_itself_scores_nearly_one(tmp_path, prompt, resolution):
    """Thin legs and sharp points need finer grids: what a grid cuts off a point also changes the longest side."""
    [path] = write_glb(made_of(prompt, resolution=resolution), tmp_path / "mesh.glb", Placement(size_metres=0.3))
    score = compare(read_glb(path), true_mesh(prompt))
    assert score.volumetric_iou > 0.95
    assert score.silhouette_iou > 0.97
    assert score.f_score > 0.999
    assert score.chamfer < 0.01


def test_place_and_size_are_not_judged_but_direction_is():
    truth = true_mesh("a blue chair")
    moved = dataclasses.replace(truth, vertices=truth.vertices * 0.4 + np.float32([0.1, -0.3, 0.2]))
    turned = dataclasses.replace(truth, vertices=truth.vertices * np.float32([-1, 1, -1]), normals=-truth.normals)
    same, wrong = compare(moved, truth), compare(turned, truth)
    assert same.volumetric_iou > 0.98 and same.silhouette_iou > 0.98
    assert wrong.volumetric_iou < 0.7 and wrong.silhouette_iou < 0.9
    assert wrong.chamfer > 3 * same.chamfer


@pytest.mark.parametrize("degrees", [0.0, 90.0, 180.0, -45.0])
def test_the_pose_error_is_the_turn_of_what_has_a_front(degrees):
    truth = true_mesh("an orange duck")
    assert pose_error(truth.turned(degrees), truth) == abs(degrees)


def test_a_round_object_has_no_pose():
    ball = true_mesh("a red ball")
    assert pose_error(ball.turned(70.0), ball) == 0


def test_another_kind_scores_worse():
    assert compare(true_mesh("a red ball"), true_mesh("a red table")).volumetric_iou < 0.4


def test_colours_share_a_surface_and_proportions_do_not():
    assert true_mesh("a red table") is true_mesh("a blue table with green legs")
    assert true_mesh("a tall red table").extents[1] > 1.15 * true_mesh("a red table").extents[1]
    assert true_mesh("a dragon") is None and true_mesh("a table with a lace cloth") is None


@pytest.mark.parametrize("kind", ["umbrella", "rocket", "donut"])
def test_true_surfaces_are_sound_and_agree_with_the_solid(kind):
    mesh = true_mesh(f"a red {kind}")
    assert mesh.is_watertight and mesh.volume > 0
    sample = torch.from_numpy(mesh.vertices[:: max(1, len(mesh.vertices) // 500)])
    assert object_from_prompt(f"a red {kind}").sdf(sample).abs().max() < 0.012


def test_photographs_are_the_toyboxs_own_pictures():
    """The same light, shading and framing as `render_object`, so that the judge sees what it was trained on."""
    mesh = true_mesh("a gray ball")
    parts = build_parts(KINDS["ball"], [(0.5, 0.5, 0.5)], size=0.72 / (0.8 * KINDS["ball"].size))
    ours = photograph(mesh, num_views=4, size=48)
    theirs, _ = render_object(parts, orbit(4), 48, background=BACKGROUNDS["coloured"])
    assert (ours - theirs).abs().mean() < 0.004
    assert np.linalg.norm(fill_frame(mesh, radius=0.72).vertices, axis=1).max() == pytest.approx(0.72, abs=1e-3)
    clay = photograph(mesh, num_views=1, size=32, shading="textureless")
    assert clay.shape == (1, 3, 32, 32) and clay.max() > 0.9


def test_proportions_that_a_caption_leaves_free_are_found_again():
    """A true teapot of other proportions than the mean ones is as good a teapot; another kind's shape is not excused."""
    prompt = "a red teapot"
    other = surface_of(object_of(prompt, [0.05, 0.95] * (NUM_PROPORTIONS // 2)))
    against_mean = compare(other, true_mesh(prompt))
    against_nearest = compare(other, surface_of(nearest_proportions(other, prompt)))
    assert against_mean.silhouette_iou < 0.96
    assert against_nearest.silhouette_iou > 0.98
    assert against_nearest.volumetric_iou > 0.97

    duck = true_mesh("a red duck")
    assert compare(duck, surface_of(nearest_proportions(duck, prompt))).silhouette_iou < 0.8
