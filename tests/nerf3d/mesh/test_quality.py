"""Quality figures of shapes whose faults are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import trimesh

from nerf3d.mesh import Mesh, Quality
from nerf3d.mesh.mesh import vertex_normals
from nerf3d.mesh.quality import num_self_intersections, thin_share
from tests.nerf3d.mesh.solids import sphere_mesh


def as_mesh(shape: trimesh.Trimesh) -> Mesh:
    vertices, faces = np.asarray(shape.vertices), np.asarray(shape.faces)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), np.full_like(vertices, 0.5))


def slab(thickness: float) -> Mesh:
    box = trimesh.creation.box((1, thickness, 1))
    return as_mesh(box.subdivide_to_size(0.08))


def test_a_ball_is_a_plain_success():
    quality = Quality.of(sphere_mesh(0.5))
    assert quality.fill == pytest.approx(math.pi / 6, rel=0.02) and quality.num_self_intersections == 0
    assert quality.is_closed and quality.num_pieces == 1 and quality.thin_share < 0.01 and quality.flags() == {}


@pytest.mark.parametrize(("thickness", "is_thin"), [(0.008, True), (0.05, False)])
def test_a_slab_is_thin_by_its_thickness(thickness, is_thin):
    quality = Quality.of(slab(thickness))
    assert (quality.thin_share > 0.9) is is_thin and ("thin" in quality.flags()) is is_thin
    assert thin_share(slab(thickness)) == pytest.approx(1 if is_thin else 0, abs=0.1)


def test_a_bent_strip_has_little_volume():
    bend = as_mesh(trimesh.creation.torus(0.5, 0.02, major_sections=64, minor_sections=8))
    assert "little volume" not in Quality.of(bend).flags()  # its box is flat as well
    upright = trimesh.util.concatenate(
        [trimesh.creation.box((1, 0.02, 0.02)), trimesh.creation.box((0.02, 1, 0.02)).apply_translation((0.6, 0, 0.5))]
    )
    assert {"little volume", "pieces"} <= set(Quality.of(as_mesh(upright)).flags())


def test_two_balls_that_overlap_run_through_each_other():
    apart, overlapping = (
        trimesh.util.concatenate(
            [trimesh.creation.icosphere(2, 0.5), trimesh.creation.icosphere(2, 0.5).apply_translation((away, 0.01, 0.02))]
        )
        for away in (1.2, 0.6)
    )
    assert num_self_intersections(np.asarray(apart.vertices), np.asarray(apart.faces)) == 0
    found = num_self_intersections(np.asarray(overlapping.vertices), np.asarray(overlapping.faces))
    # Every face that crosses the circle where the balls meet is pierced or pierces.
    assert 20 <= found <= 80
    flags = Quality.of(as_mesh(overlapping)).flags()
    assert set(flags) == {"pieces", "self-intersecting"} and f"at {found} faces" in flags["self-intersecting"]


def test_an_open_mesh_says_so():
    ball = sphere_mesh(0.5)
    assert "open" in Quality.of(Mesh(ball.vertices, ball.faces[1:], ball.normals, ball.colours)).flags()
