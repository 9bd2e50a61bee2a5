"""Meshes of analytic densities: closed, outward, of the right size, genus and colour."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
import torch
import trimesh

from nerf3d.mesh import BrokenField, EmptyMesh, Mesh, MeshConfig, bytes_to_extract, cleanup, extract_mesh
from nerf3d.mesh.extraction import density_grid, isosurface
from nerf3d.mesh.mesh import face_areas, is_closed, vertex_normals
from tests.nerf3d.mesh.solids import SolidField, ball, block, ring, sphere_mesh, union, without

SMALL = MeshConfig(resolution=64, max_faces=4000, texture_size=0)
VOXEL = 2 / 63


def check_sound(mesh: Mesh) -> None:
    """What every exported mesh must be, judged by trimesh after welding."""
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
    assert welded.is_watertight and welded.is_winding_consistent and welded.is_volume
    assert mesh.is_watertight and mesh.volume > 0
    assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices)
    assert len(np.unique(np.sort(mesh.faces, 1), axis=0)) == len(mesh.faces)
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)
    assert face_areas(mesh.vertices, mesh.faces).min() > 0
    assert np.isfinite(mesh.vertices).all() and np.isfinite(mesh.colours).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)


def test_sphere_has_its_radius_within_half_a_voxel_and_outward_normals():
    centre = np.array([0.1, -0.05, 0.2])
    mesh = extract_mesh(SolidField(ball(0.6, centre.tolist())), SMALL)
    check_sound(mesh)
    away = mesh.vertices - centre
    radius = np.linalg.norm(away, axis=1)
    assert np.abs(radius - 0.6).max() < VOXEL / 2
    assert (mesh.normals * away / radius[:, None]).sum(1).min() > 0.97
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.02)


@pytest.mark.parametrize(
    ("distance", "euler_number", "num_components"),
    [
        (ball(0.6), 2, 1),
        (ring(0.5, 0.2), 0, 1),
        (block(0.5, 0.3, 0.6), 2, 1),
        (without(block(0.6, 0.6, 0.6), ball(0.3)), 2, 1),
        (without(without(ball(0.7), ball(0.5)), ball(0.0)), 2, 1),
        (union(ball(0.3, (0.5, 0.0, 0.0)), ball(0.25, (-0.5, 0.0, 0.0))), 4, 2),
        (union(without(ball(0.8), ball(0.6)), ball(0.3)), 2, 1),
        (union(ring(0.35, 0.12), block(0.08, 0.8, 0.08)), 2, 2),
    ],
    ids=["ball", "torus", "block", "cavity", "shell", "two balls", "ball in a shell", "ring round a pole"],
)
def test_topology(distance, euler_number, num_components):
    mesh = extract_mesh(SolidField(distance), SMALL)
    check_sound(mesh)
    assert mesh.euler_number == euler_number
    assert mesh.num_components == num_components


def test_cavities_are_filled():
    hollow = extract_mesh(SolidField(without(block(0.5, 0.5, 0.5), ball(0.35))), SMALL)
    full = extract_mesh(SolidField(block(0.5, 0.5, 0.5)), SMALL)
    assert hollow.volume == pytest.approx(full.volume, rel=1e-3)


@pytest.mark.parametrize(("radius", "kept"), [(0.34, 2), (0.29, 1)])
def test_components_stay_by_their_share_of_the_largest_volume(radius, kept):
    # Shares of the volume: (0.34 / 0.6)^3 = 0.18 and (0.29 / 0.6)^3 = 0.11, around the default of 0.15.
    solid = union(ball(0.6, (-0.4, 0.0, 0.0)), ball(radius, (0.65, 0.0, 0.0)))
    assert extract_mesh(SolidField(solid), SMALL).num_components == kept


def test_object_that_touches_the_box_is_closed():
    mesh = extract_mesh(SolidField(ball(0.6, (0.8, 0.0, -0.7))), SMALL)
    check_sound(mesh)
    assert mesh.euler_number == 2
    assert 1 <= mesh.bounds.max() <= 1 + VOXEL
    assert -1 - VOXEL <= mesh.bounds.min() <= -1


@pytest.mark.parametrize("max_faces", [500, 2000, 8000])
def test_face_budget_is_kept_within_five_percent(max_faces):
    mesh = extract_mesh(SolidField(ring(0.55, 0.22)), MeshConfig(resolution=64, max_faces=max_faces, texture_size=0))
    check_sound(mesh)
    assert 0.95 * max_faces <= len(mesh.faces) <= max_faces
    assert mesh.euler_number == 0


def test_a_surface_full_of_holes_still_meets_budget_and_closes():
    coarse = torch.nn.functional.interpolate(
        torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 14, 14, 14))).float(), size=64
    )[0, 0]

    def distance(points):
        index = ((points + 1) * 31.5).round().long().clamp(0, 63)
        return points.norm(dim=-1) - 0.6 + 0.12 * coarse[index[:, 0], index[:, 1], index[:, 2]]

    mesh = extract_mesh(SolidField(distance), MeshConfig(resolution=64, max_faces=1500, texture_size=0))
    assert mesh.is_watertight and mesh.volume > 0
    assert len(mesh.faces) <= 1500


def test_the_same_field_gives_the_same_mesh():
    a, b = (extract_mesh(SolidField(ring(0.5, 0.2)), SMALL) for _ in range(2))
    for name in ("vertices", "faces", "normals", "colours"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_grid_is_indexed_x_y_z_and_any_slab_size_agrees():
    field = SolidField(block(0.2, 0.5, 0.8))
    grid = density_grid(field, 33)
    i, j, k = 20, 9, 29
    point = torch.tensor([[i, j, k]]) / 16 - 1
    assert grid[i, j, k] == pytest.approx(field.density(point).item(), rel=1e-5)


def test_isosurface_at_grid_values_stays_closed():
    levels = np.zeros((12, 12, 12), np.float32)
    levels[3:9, 3:9, 3:9] = 1.0
    vertices, faces = isosurface(levels, 1.0 - 1e-6)
    assert is_closed(cleanup.tidy(vertices, faces)[1])


def test_colours_come_from_inside_the_surface():
    def paint(points):
        inside = torch.where(points[:, :1] > 0, torch.tensor([0.9, 0.1, 0.2]), torch.tensor([0.1, 0.3, 0.8]))
        return torch.where((points.norm(dim=-1) > 0.6)[:, None], torch.tensor([0.2, 1.0, 0.2]), inside)

    mesh = extract_mesh(SolidField(ball(0.6), paint=paint), SMALL)
    right, left = mesh.vertices[:, 0] > 0.05, mesh.vertices[:, 0] < -0.05
    np.testing.assert_allclose(mesh.colours[right], np.tile([0.9, 0.1, 0.2], (right.sum(), 1)), atol=0.05)
    np.testing.assert_allclose(mesh.colours[left], np.tile([0.1, 0.3, 0.8], (left.sum(), 1)), atol=0.05)


def test_thin_plates_show_each_side_its_own_colour():
    def paint(points):
        return torch.where(points[:, 1:2] > 0, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))

    mesh = extract_mesh(SolidField(block(0.5, 0.1, 0.5), paint=paint), SMALL)
    top = (mesh.normals[:, 1] > 0.9) & (np.abs(mesh.vertices[:, [0, 2]]) < 0.4).all(1)
    assert mesh.colours[top, 0].min() > 0.8


def said(mesh: Mesh) -> str:
    return " ".join(f"[{'warning' if note.is_warning else 'info'}] {note.text}" for note in mesh.notes)


def test_a_faint_field_is_cut_at_a_lower_level():
    mesh = extract_mesh(SolidField(ball(0.5), iso=1.0, peak=4.0), SMALL)
    check_sound(mesh)
    assert said(mesh) == "[warning] Nothing in the field is denser than mesh.iso = 5, so the mesh was cut at 2.5."


def test_pieces_that_are_left_out_are_said_with_their_share_of_the_volume():
    share = (0.29 / 0.6) ** 3
    solid = union(ball(0.6, (-0.4, 0.0, 0.0)), ball(0.29, (0.65, 0.0, 0.0)), ball(0.1, (0.65, 0.8, 0.0)))
    mesh = extract_mesh(SolidField(solid), SMALL)
    words = said(mesh)
    assert words.startswith("[warning] 2 small pieces were left out (")
    assert float(words.split("the largest of them ")[1].split(" %")[0]) == pytest.approx(100 * share, rel=0.1)
    keep = float(words.split("mesh.keep_components=")[1].split(" ")[0])
    assert extract_mesh(SolidField(solid), dataclasses.replace(SMALL, keep_components=keep)).num_components == 2
    crumbs = extract_mesh(SolidField(union(ball(0.6, (-0.4, 0.0, 0.0)), ball(0.1, (0.65, 0.8, 0.0)))), SMALL)
    assert said(crumbs).startswith("[info] 1 small piece was left out")
    assert said(extract_mesh(SolidField(ball(0.6)), SMALL)) == ""


def test_a_floor_in_the_place_of_an_object_is_a_warning():
    wall = lambda points: (points[:, 2] + 0.93).abs() - 0.06  # noqa: E731
    words = said(extract_mesh(SolidField(union(wall, ball(0.15, (0.0, -0.7, 0.0)))), SMALL))
    assert "1 small piece was left out" in words and "a floor or a wall rather than an object; the object may be among" in words
    plate = extract_mesh(SolidField(block(0.8, 0.1, 0.8)), SMALL)
    assert said(plate) == ""


def test_colours_that_are_not_a_number_are_mended_from_their_neighbours():
    def half(points):
        red = torch.tensor([0.9, 0.1, 0.2]).expand(len(points), 3)
        return torch.where(points[:, :1] > 0.3, torch.nan, red)

    mesh = extract_mesh(SolidField(ball(0.6), paint=half), SMALL)
    np.testing.assert_allclose(mesh.colours, np.tile([0.9, 0.1, 0.2], (len(mesh.vertices), 1)), atol=1e-5)
    assert "[warning] The field has no colour (not a number) at " in said(mesh)
    grey = extract_mesh(SolidField(ball(0.6), paint=lambda points: torch.full_like(points, torch.nan)), SMALL)
    assert (grey.colours == 0.5).all() and f"at {len(grey.vertices):,} of {len(grey.vertices):,} vertices" in said(grey)


def many_balls(num_per_side: int, radius: float):
    """A grid of equal balls."""
    axis = torch.linspace(-0.9, 0.9, num_per_side)

    def distance(points):
        nearest = axis[((points + 0.9) / 1.8 * (num_per_side - 1)).round().clamp(0, num_per_side - 1).long()]
        return (points - nearest).norm(dim=-1) - radius

    return distance


def test_the_time_for_many_pieces_grows_with_the_faces_alone():
    few, many = (isosurface(density_grid(SolidField(many_balls(num, 0.35 / num)), 96), 5.0) for num in (2, 8))
    seconds = []
    for surface in (few, many):
        begin = time.process_time()
        (_, faces), _ = cleanup.keep_solids(*surface, share=0.15)
        seconds.append((time.process_time() - begin) / len(surface[1]))
        assert cleanup.component_labels(faces).max() + 1 == (8 if surface is few else 512)
    assert seconds[1] < 20 * seconds[0] + 1e-5


def test_nested_solids_are_dropped_whatever_stands_beside_them():
    nest = union(without(ball(0.4, (-0.5, 0.0, 0.0)), ball(0.32, (-0.5, 0.0, 0.0))), ball(0.24, (-0.5, 0.0, 0.0)))
    beside = union(nest, ball(0.24, (0.3, 0.0, 0.0)), ball(0.3, (-0.1, 0.69, 0.0)))
    mesh = extract_mesh(SolidField(beside), SMALL)
    check_sound(mesh)
    assert mesh.num_components == 3 and mesh.euler_number == 6


def test_a_field_of_noise_is_cut_on_a_coarser_grid_in_seconds():
    def checkerboard(points):
        return torch.where(((points + 1) * 31.75).round().sum(-1) % 2 == 0, -1.0, 1.0)

    begin = time.process_time()
    mesh = extract_mesh(SolidField(checkerboard))
    assert mesh.is_watertight and len(mesh.faces) <= 20_000
    assert time.process_time() - begin < 30


def test_the_memory_of_a_grid_grows_with_its_points():
    assert bytes_to_extract(MeshConfig(resolution=512)) == 64 * bytes_to_extract(MeshConfig(resolution=128)) > 2e9


def test_an_empty_field_raises():
    with pytest.raises(EmptyMesh, match=r"density reaches only 0\.1 where a surface needs 5"):
        extract_mesh(SolidField(ball(0.6), iso=0.01, peak=0.1), SMALL)


def test_not_a_number_raises():
    class Broken(SolidField):
        def density(self, points):
            return torch.where(points[:, 0] > 0.9, torch.nan, super().density(points))

    with pytest.raises(BrokenField, match="not a number at"):
        extract_mesh(Broken(ball(0.5)), SMALL)


def test_a_full_box_raises():
    with pytest.raises(BrokenField, match="in 100 % of the scene box"):
        extract_mesh(SolidField(ball(5.0)), SMALL)


@pytest.mark.parametrize(
    ("apart", "peak", "height"),
    [(0.05, 100.0, 0.4 + 0.05 + 0.24), (0.2, 100.0, 0.4), (0.05, 8.0, 0.4)],
    ids=["near", "too far", "fog"],
)
def test_small_dense_pieces_near_the_body_are_joined_to_it(apart, peak, height):
    """An antenna over a head: with its foot lost it would be left out for its size, and with it what the sentence asked for."""
    head, antenna = SolidField(ball(0.4)), SolidField(ball(0.12, (0.0, 0.4 + apart + 0.12, 0.0)), peak=peak)

    class Both:
        def density(self, points):
            return torch.maximum(head.density(points), antenna.density(points))

        colour = staticmethod(head.colour)

    mesh = extract_mesh(Both(), SMALL)
    check_sound(mesh)
    assert mesh.num_components == 1
    assert mesh.bounds[1][1] == pytest.approx(height, abs=VOXEL)
    alone = extract_mesh(Both(), dataclasses.replace(SMALL, bridge_gap=0))
    assert alone.bounds[1][1] == pytest.approx(0.4, abs=VOXEL)


@pytest.mark.parametrize(
    "change",
    [{"resolution": 4}, {"iso": 0.0}, {"smoothing": -1.0}, {"max_faces": 3}, {"keep_components": 2.0}, {"bridge_gap": 1.0}],
)
def test_bad_config_names_the_option(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is "):
        MeshConfig(**change)


def test_tidy_removes_folds_doubles_and_slivers():
    sphere = sphere_mesh(0.5, subdivisions=2)
    num = len(sphere.vertices)
    spoiled = np.concatenate([sphere.faces, [[0, 1, 1]], [[5, 9, num]], [[9, 5, num]]])
    vertices, faces = cleanup.tidy(np.vstack([sphere.vertices, [[0.9, 0.9, 0.9]]]), spoiled)
    assert len(faces) == len(sphere.faces) and len(vertices) == num
    assert is_closed(faces)


def test_winding_number_tells_inside_from_outside():
    sphere = sphere_mesh(0.5)
    triangles = sphere.vertices[sphere.faces].astype(float)
    assert cleanup.winding_number(np.array([0.2, 0.1, -0.3]), triangles) == pytest.approx(1, abs=1e-3)
    assert cleanup.winding_number(np.array([0.4, 0.4, 0.4]), triangles) == pytest.approx(0, abs=1e-3)


def test_taubin_smooths_without_shrinking():
    sphere = sphere_mesh(0.5)
    noise = np.random.default_rng(0).normal(size=(len(sphere.vertices), 1)) * 0.01
    rough = sphere.vertices * (1 + noise)
    smooth, _ = cleanup.taubin(rough.astype(float), sphere.faces, iterations=10)
    radii = np.linalg.norm(smooth, axis=1)
    assert radii.std() < 0.6 * np.linalg.norm(rough, axis=1).std()
    assert radii.mean() == pytest.approx(0.5, abs=0.002)


def test_vertex_normals_of_a_sphere_are_radial():
    sphere = sphere_mesh(0.5)
    np.testing.assert_allclose(vertex_normals(sphere.vertices, sphere.faces), sphere.normals, atol=0.02)


def test_mesh_rejects_arrays_that_do_not_fit():
    sphere = sphere_mesh(0.5, subdivisions=1)
    with pytest.raises(ValueError, match=r"colours has shape \(42, 4\)"):
        Mesh(sphere.vertices, sphere.faces, sphere.normals, np.zeros((42, 4)))
    with pytest.raises(ValueError, match="41 colours"):
        Mesh(sphere.vertices, sphere.faces, sphere.normals, sphere.colours[1:])
    with pytest.raises(ValueError, match="faces name vertices 1 to 42"):
        Mesh(sphere.vertices, sphere.faces + 1, sphere.normals, sphere.colours)


def test_mesh_answers_about_a_sphere():
    sphere = sphere_mesh(0.5, (0.1, 0.2, 0.3))
    np.testing.assert_allclose(sphere.bounds, [[-0.4, -0.3, -0.2], [0.6, 0.7, 0.8]], atol=1e-6)
    np.testing.assert_allclose(sphere.extents, 1, atol=1e-6)
    assert sphere.volume == pytest.approx(math.pi / 6, rel=0.01)
    assert sphere.area == pytest.approx(math.pi, rel=0.01)
    assert sphere.euler_number == 2 and sphere.num_components == 1 and sphere.is_watertight
    assert not Mesh(sphere.vertices, sphere.faces[1:], sphere.normals, sphere.colours).is_watertight
    assert not Mesh(sphere.vertices, sphere.faces[:0], sphere.normals, sphere.colours).is_watertight
