"""What a prior makes of a mesh: which way it faces, whether it has two faces, and a score that needs no truth."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.schedule import NoiseSchedule
from jobs.mesh_stage import TextTo3DResult
from jobs.opinion import NUM_TURNS, Asking, Opinion, opinion_from, opinion_of, score_of_views, turned_losses
from jobs.prior_client import LossQuery, PriorInfo
from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, MeshConfig
from nerf3d.mesh.mesh import vertex_normals
from nerf3d.view_words import SECTORS

INFO = PriorInfo(name="knows", weights_hash="0" * 64, image_size=32, schedule=NoiseSchedule(), num_views=4)
WORDS = dataclasses.replace(INFO, num_views=None, view_words=True)


class Knows:
    """Finds a view the likelier the nearer it is told to where it was taken, which the view's red says: azimuth / 360."""

    def __init__(self) -> None:
        self.asked: list[LossQuery] = []

    def losses(self, query: LossQuery) -> Tensor:
        self.asked.append(query)
        if query.prompts[0] == "":
            return torch.full((len(query.images),), 2.0)
        if query.cameras is None:
            told = torch.tensor([float(45 * SECTORS.index(prompt.split(", ")[-1])) for prompt in query.prompts])
        else:
            matrices = query.cameras.unflatten(-1, (4, 4))
            told = torch.atan2(matrices[:, 0, 3], -matrices[:, 1, 3]).rad2deg()
        off = (query.images[:, 0].amax(dim=(1, 2)) * 360 - told).deg2rad()
        return 1 + 0.1 * (1 - off.cos())


def seen(front_degrees: float) -> Tensor:
    """(NUM_TURNS, 3, 4, 4) views of an object whose front points to that azimuth."""
    azimuths = torch.arange(NUM_TURNS) * 360 / NUM_TURNS - front_degrees
    return (azimuths % 360 / 360)[:, None, None, None].expand(NUM_TURNS, 3, 4, 4)


@pytest.mark.parametrize("info", [INFO, WORDS], ids=["cameras", "words"])
@pytest.mark.parametrize("front", [0.0, 45.0, 180.0, 270.0])
def test_the_front_is_found_by_cameras_and_by_words(info: PriorInfo, front: float) -> None:
    losses = turned_losses(seen(front), Asking(Knows(), info), "a duck")
    opinion = opinion_from(losses, 2.0)
    assert opinion.facing_degrees == front
    assert Opinion.from_metrics(opinion.metrics()) == opinion
    assert opinion.score == pytest.approx(0.5) and not opinion.has_two_faces


def test_whatever_is_compared_has_the_same_noise() -> None:
    prior = Knows()
    turned_losses(seen(0.0), Asking(prior, INFO, seed=7), "a duck")
    names = {(int(query.t[0]), query.noise_keys) for query in prior.asked}
    assert len(prior.asked) == NUM_TURNS * len(names) == 3 * NUM_TURNS
    assert all(query.noise_keys[3][0] == 7 for query in prior.asked)


@pytest.mark.parametrize("info", [INFO, WORDS], ids=["cameras", "words"])
def test_views_as_they_stand_score_what_the_sentence_explains(info: PriorInfo) -> None:
    cameras = Cameras.orbit([turn * 360 / NUM_TURNS for turn in range(NUM_TURNS)], 15.0)
    assert score_of_views(seen(0.0), cameras, Knows(), info, "a duck") == pytest.approx(0.5)
    assert score_of_views(seen(180.0), cameras, Knows(), info, "a duck") == pytest.approx(0.5 - 0.1 * 2 / 2)


def test_a_back_that_is_a_front_is_two_faces() -> None:
    one, two = seen(0.0), seen(0.0).clone()
    for back, front in ((3, 1), (4, 0), (5, 7)):
        two[back] = one[front]
    opinions = [opinion_from(turned_losses(views, Asking(Knows(), INFO), "a duck"), 2.0) for views in (one, two)]
    assert [opinion.has_two_faces for opinion in opinions] == [False, True]


def test_of_a_prior_that_tells_no_sides_apart_it_is_the_score_alone() -> None:
    class Flat(Knows):
        def losses(self, query: LossQuery) -> Tensor:
            self.asked.append(query)
            return torch.full((len(query.images),), 2.0 if query.prompts[0] == "" else 1.5)

    prior = Flat()
    info = dataclasses.replace(INFO, num_views=None)
    assert opinion_of(wedge(), prior, info, "a duck") == Opinion(0.25)
    assert len(prior.asked) == 6 and all(query.images.shape == (NUM_TURNS, 3, 32, 32) for query in prior.asked)


def wedge() -> Mesh:
    """A closed tetrahedron whose one corner points to the front."""
    vertices = np.array([[0, 0, 0.6], [0.3, 0, -0.3], [-0.3, 0, -0.3], [0, 0.4, -0.1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], np.int32)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), np.full((4, 3), 0.5, np.float32))


@pytest.mark.parametrize("degrees", [90.0, 45.0, -120.0])
def test_a_turned_mesh_points_to_that_azimuth(degrees: float) -> None:
    mesh = dataclasses.replace(wedge(), lods=(wedge(),)).turned(degrees)
    towards = Cameras.orbit(degrees, 0.0).camera_to_world[0, :3, 2].numpy()
    for turned in (mesh, *mesh.lods):
        np.testing.assert_allclose(turned.vertices[0] / 0.6, towards, atol=1e-6)
        np.testing.assert_allclose(turned.normals, vertex_normals(turned.vertices, turned.faces), atol=1e-6)
        assert turned.volume == pytest.approx(wedge().volume)


@pytest.mark.parametrize("face_front", [True, False])
def test_a_mesh_that_faces_its_left_is_turned_unless_it_shall_not_be(face_front: bool) -> None:
    result = TextTo3DResult(wedge().turned(90.0), None, {}, reaches_bounds=False)
    config = MeshConfig(face_front=face_front)
    judged = result.judged(Opinion(0.4, facing_degrees=90.0), config)
    assert judged.turned_degrees == (270.0 if face_front else 0.0)
    expected = wedge() if face_front else result.mesh
    np.testing.assert_allclose(judged.mesh.vertices, expected.vertices, atol=1e-6)
    assert judged.metrics()["facing_degrees"] == 90.0
