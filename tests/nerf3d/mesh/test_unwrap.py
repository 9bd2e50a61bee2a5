"""Surfaces laid flat: inside the picture, without overlap, apart from each other, in bounded time."""

from __future__ import annotations

import time

import numpy as np
import pytest
import trimesh

from nerf3d.mesh.raster import fragments
from nerf3d.mesh.texture import UvMap, corner_tangents
from nerf3d.mesh.unwrap import project_along_axes, unwrap

SIZE, PADDING = 256, 4


def solid(name: str) -> trimesh.Trimesh:
    if name == "ball":
        return trimesh.creation.icosphere(subdivisions=4, radius=0.7)
    return trimesh.creation.torus(0.6, 0.25, major_sections=64, minor_sections=32)


def charts_of(uv_map: UvMap) -> np.ndarray:
    """(M,) connected piece of the picture that each face lies in."""
    graph = trimesh.graph.connected_component_labels(uv_map.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2))
    return graph[uv_map.faces[:, 0]]


@pytest.mark.parametrize("method", ["xatlas", "axes"])
@pytest.mark.parametrize("name", ["ball", "torus"])
def test_charts_lie_apart_in_the_picture_and_hardly_overlap(name, method):
    mesh = solid(name)
    if method == "xatlas":
        uv_map, _ = unwrap(mesh.vertices, mesh.faces, size=SIZE, padding=PADDING, seconds=60)
    else:
        uv_map = project_along_axes(mesh.vertices, mesh.faces, size=SIZE, padding=PADDING)
    np.testing.assert_array_equal(uv_map.vertices[uv_map.faces], mesh.faces)
    assert uv_map.uvs.min() >= 0 and uv_map.uvs.max() <= 1
    charts, corners = charts_of(uv_map), uv_map.uvs[uv_map.faces].astype(np.float64) * SIZE
    hits = np.zeros(SIZE * SIZE, int)
    chart_at = np.full(SIZE * SIZE, -1)
    for face, pixel, _ in fragments(corners, SIZE, SIZE):
        np.add.at(hits, pixel, 1)
        chart_at[pixel] = charts[face]
    assert (hits > 1).sum() < 0.02 * (hits > 0).sum()
    assert (hits > 0).mean() > 0.35  # the picture is used
    rows, columns = np.divmod(np.flatnonzero(chart_at >= 0), SIZE)
    mine = chart_at[rows * SIZE + columns]
    for shift in range(1, PADDING):  # a texel's neighbours nearer than the padding belong to its own chart
        near = chart_at.reshape(SIZE, SIZE)[rows, (columns + shift) % SIZE]
        assert ((near == mine) | (near == -1) | (columns + shift >= SIZE)).all()
    # Texels are square and of one size: no face is stretched beyond what a projection stretches.
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    flat = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
    scale = np.sqrt(flat / mesh.area_faces)
    assert np.quantile(scale, 0.99) < 2.1 * np.quantile(scale, 0.01)


def test_many_charts_still_fit():
    soup = trimesh.util.concatenate(
        [
            trimesh.creation.box((0.02, 0.02, 0.02)).apply_translation(p)
            for p in np.random.default_rng(0).uniform(-1, 1, (400, 3))
        ]
    )
    uv_map = project_along_axes(soup.vertices, soup.faces, size=SIZE, padding=PADDING)
    assert uv_map.uvs.min() >= 0 and uv_map.uvs.max() <= 1
    spans = np.ptp(uv_map.uvs[uv_map.faces], axis=1)
    assert spans.max() > 0


def test_past_the_budget_a_plain_projection_takes_over(monkeypatch, tmp_path):
    endless = tmp_path / "endless.py"
    endless.write_text("import resource, sys\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass\n")
    monkeypatch.setattr("nerf3d.mesh.unwrap._CHARTING", endless)
    mesh = solid("ball")
    begin = time.monotonic()
    uv_map, note = unwrap(mesh.vertices, mesh.faces, size=SIZE, padding=PADDING, seconds=1)
    assert time.monotonic() - begin < 30
    assert note.is_warning and "could not be unwrapped within mesh.unwrap_seconds = 1 (xatlas was stopped by" in note.text
    np.testing.assert_array_equal(uv_map.vertices[uv_map.faces], mesh.faces)


def test_the_same_surface_gives_the_same_charts():
    mesh = solid("ball")
    first, second = (unwrap(mesh.vertices, mesh.faces, size=SIZE, padding=PADDING, seconds=60)[0] for _ in range(2))
    np.testing.assert_array_equal(first.uvs, second.uvs)
    np.testing.assert_array_equal(first.faces, second.faces)


def test_tangents_follow_u_and_the_sign_follows_v():
    """A square in the plane z = 0 that faces +z: u runs along +x, and v along -y as pictures do, or along +y."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    faces, normals = np.array([[0, 1, 2], [0, 2, 3]]), np.tile([0.0, 0.0, 1.0], (4, 1))
    for uvs, sign in ((vertices[:, :2] * (1, -1) + (0, 1), 1), (vertices[:, :2], -1)):
        tangents = corner_tangents(vertices, normals, UvMap(np.arange(4), uvs, faces))
        np.testing.assert_allclose(tangents, [[1, 0, 0, sign]] * 4, atol=1e-6)


def test_tangents_are_unit_and_square_to_the_normals():
    mesh = solid("torus")
    uv_map, _ = unwrap(mesh.vertices, mesh.faces, size=SIZE, padding=PADDING, seconds=60)
    normals = np.asarray(mesh.vertex_normals)
    tangents = corner_tangents(mesh.vertices, normals, uv_map)
    np.testing.assert_allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((tangents[:, :3] * normals[uv_map.vertices]).sum(1), 0, atol=1e-5)
    assert set(np.unique(tangents[:, 3])) <= {-1.0, 1.0}


def test_places_and_vertices_must_come_in_pairs():
    with pytest.raises(ValueError, match="2 places in the picture came with 3 vertices"):
        UvMap(np.arange(3), np.zeros((2, 2)), np.array([[0, 1, 2]]))
