"""The rasteriser against what a pinhole camera must see of a sphere and of single triangles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, MeshConfig, draw_mesh, extract_mesh
from nerf3d.mesh.raster import fragments
from nerf3d.metrics import silhouette_iou
from nerf3d.toybox.primitives import signed_bounds
from nerf3d.toybox.render import render_object
from nerf3d.toybox.truth import object_from_prompt
from tests.nerf3d.mesh.solids import SolidField, sphere_mesh

SIZE = 96


def hit_sphere(cameras: Cameras, radius: float, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each pixel's central ray meets a sphere at the origin (V, H, W), and the unit normal there."""
    origins, directions = cameras.rays(size, size)
    along = -(origins * directions).sum(-1)
    root = radius**2 - (origins.square().sum(-1) - along.square())
    points = origins + (along - root.clamp(min=0).sqrt())[..., None] * directions
    return root > 0, points / radius


def test_silhouette_of_a_sphere_is_the_rays_that_meet_it():
    cameras = Cameras.orbit([0.0, 35.0, 200.0], [0.0, 50.0, -30.0])
    _, alpha = draw_mesh(sphere_mesh(0.6, subdivisions=5), cameras, SIZE)
    inside, _ = hit_sphere(cameras, 0.6, SIZE)
    assert (alpha[:, 0] > 0.5).ne(inside).float().mean() < 0.002
    # A sphere's outline is a circle of radius size / 2 * tan(asin(r / d)) / tan(fov / 2).
    radius = SIZE / 2 * math.tan(math.asin(0.6 / 2.7)) / math.tan(math.radians(20))
    torch.testing.assert_close(alpha[0].sum(), torch.tensor(math.pi * radius**2), rtol=0.01, atol=0)


def test_lambert_shading_of_a_sphere():
    cameras = Cameras.orbit([20.0], [10.0])
    light = torch.tensor([0.6, 0.8, 0.0])
    sphere = sphere_mesh(0.6, colour=(0.8, 0.4, 0.2), subdivisions=5)
    rgb, alpha = draw_mesh(sphere, cameras, SIZE, light=light.tolist(), ambient=0.3, background=(0.0, 0.0, 1.0))
    inside, normals = hit_sphere(cameras, 0.6, SIZE)
    lit = 0.3 + 0.7 * (normals @ light).clamp(min=0)
    expected = torch.tensor([0.8, 0.4, 0.2])[:, None, None] * lit[0]
    core = (alpha[0, 0] == 1) & inside[0]
    assert (rgb[0] - expected)[:, core].abs().max() < 0.02
    torch.testing.assert_close(rgb[0, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]))


def test_shadings():
    cameras = Cameras.orbit([0.0], [0.0])
    sphere = sphere_mesh(0.6, colour=(0.8, 0.4, 0.2))
    middle = {
        shading: draw_mesh(sphere, cameras, 33, shading=shading, light=(0, 0, 1))[0][0, :, 16, 16].tolist()
        for shading in ("albedo", "textureless", "normal", "lambert")
    }
    assert middle["albedo"] == pytest.approx([0.8, 0.4, 0.2], abs=1e-3)
    assert middle["textureless"] == pytest.approx([1, 1, 1], abs=0.01)
    assert middle["normal"] == pytest.approx([0.5, 0.5, 1], abs=0.02)
    assert middle["lambert"] == pytest.approx([0.8, 0.4, 0.2], abs=0.01)
    with pytest.raises(ValueError, match="shading is 'shiny'"):
        draw_mesh(sphere, cameras, 8, shading="shiny")  # type: ignore[arg-type]


def test_front_right_and_up_are_where_the_cameras_say():
    # A red ball at the object's own left (+X), a green one on top (+Y), a blue one in front (+Z).
    balls = [
        sphere_mesh(0.15, (0.6, 0, 0), (1, 0, 0), 2),
        sphere_mesh(0.15, (0, 0.6, 0), (0, 1, 0), 2),
        sphere_mesh(0.15, (0, 0, 0.6), (0, 0, 1), 2),
    ]
    mesh = join(balls)
    rgb, alpha = draw_mesh(mesh, Cameras.orbit([0.0, 90.0], [0.0, 0.0]), 64, shading="albedo", background=(0, 0, 0))
    assert (alpha[0] > 0).sum() < (alpha[1] > 0).sum() * 1.5

    def centre(view: int, channel: int) -> tuple[float, float]:
        weights = rgb[view, channel]
        rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        return float((weights * columns).sum() / weights.sum()), float((weights * rows).sum() / weights.sum())

    assert centre(0, 0)[0] > 40  # from the front, +X is on the picture's right
    assert centre(0, 1)[1] < 24  # +Y is up
    assert centre(0, 2) == pytest.approx((31.5, 31.5), abs=0.5)
    assert centre(1, 2)[0] < 24  # from the object's left, its front is on the picture's left
    assert centre(1, 0) == pytest.approx((31.5, 31.5), abs=0.5)


def test_the_nearer_surface_hides_the_farther():
    mesh = join([sphere_mesh(0.3, (0, 0, -0.4), (1, 0, 0)), sphere_mesh(0.2, (0, 0, 0.4), (0, 0, 1))])
    pictures, _ = draw_mesh(mesh, Cameras.orbit([0.0, 180.0], [0.0, 0.0]), 32, shading="albedo")
    assert pictures[0, :, 16, 16].tolist() == pytest.approx([0, 0, 1], abs=1e-3)
    assert pictures[1, :, 16, 16].tolist() == pytest.approx([1, 0, 0], abs=1e-3)


def test_faces_seen_from_behind_are_not_drawn():
    sphere = sphere_mesh(0.5)
    inverted = Mesh(sphere.vertices, sphere.faces[:, ::-1], sphere.normals, sphere.colours)
    rgb, _ = draw_mesh(inverted, Cameras.orbit([0.0], [0.0]), 32, shading="normal")
    assert rgb[0, 2, 16, 16] < 0.1  # the far wall's normal, pointing away


def test_a_mesh_around_or_behind_the_camera_draws_nothing_wrong():
    _, alpha = draw_mesh(sphere_mesh(0.5, (0, 0, 4.0)), Cameras.orbit([0.0], [0.0]), 16)
    assert alpha.max() == 0


def test_every_pixel_of_a_tiled_square_is_covered_exactly_once():
    corners = np.array([[0.0, 0.0], [20.0, 0.0], [20.0, 20.0], [0.0, 20.0], [7.3, 11.9]])
    fan = corners[np.array([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])]
    counts = np.zeros(400, int)
    for _, pixel, weights in fragments(fan, 20, 20):
        np.add.at(counts, pixel, 1)
        np.testing.assert_allclose(weights.sum(1), 1)
    assert (counts == 1).all()


def test_fragments_do_not_depend_on_the_chunk_size(monkeypatch):
    triangles = np.random.default_rng(0).uniform(-5, 40, (60, 3, 2))
    whole = [np.concatenate(part) for part in zip(*fragments(triangles, 32, 24), strict=True)]
    monkeypatch.setattr("nerf3d.mesh.raster._CANDIDATES_PER_CHUNK", 500)
    parts = [np.concatenate(part) for part in zip(*fragments(triangles, 32, 24), strict=True)]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)
    # The slow twin: every triangle against every pixel.
    centres = np.stack(np.meshgrid(np.arange(32) + 0.5, np.arange(24) + 0.5), -1).reshape(-1, 2)
    expected = 0
    for a, b, c in triangles:
        signs = [
            np.sign(np.cross(np.append(q - p, 0), np.pad(centres - p, ((0, 0), (0, 1))))[:, 2])
            for p, q in ((a, b), (b, c), (c, a))
        ]
        expected += int((np.abs(np.sum(signs, 0)) == 3).sum())
    assert len(whole[0]) == expected


def test_a_mesh_of_a_toybox_object_looks_as_the_toybox_draws_it():
    toy = object_from_prompt("a red mushroom with a white stem")
    assert toy is not None

    def paint(points):
        return toy.parts.albedo[signed_bounds(toy.parts, points).argmin(-1)]

    mesh = extract_mesh(SolidField(toy.sdf, paint=paint), MeshConfig(resolution=96, texture_size=0))
    cameras = Cameras.orbit([0.0, 60.0, 200.0], [20.0, -10.0, 50.0])
    for shading in ("lambert", "albedo", "normal", "textureless"):
        rgb, alpha = draw_mesh(mesh, cameras, 64, shading=shading, background=(0.2, 0.4, 0.6))
        true_rgb, true_alpha = render_object(toy.parts, cameras, 64, shading=shading, background=(0.2, 0.4, 0.6))
        assert (rgb - true_rgb).abs().mean() < 0.03
    assert silhouette_iou(alpha, true_alpha) > 0.96


def join(meshes: list[Mesh]) -> Mesh:
    offsets = np.cumsum([0] + [len(m.vertices) for m in meshes])
    faces = [m.faces + offset for m, offset in zip(meshes, offsets, strict=False)]
    arrays = [np.concatenate([getattr(m, name) for m in meshes]) for name in ("vertices", "normals", "colours")]
    return Mesh(arrays[0], np.concatenate(faces), arrays[1], arrays[2])
