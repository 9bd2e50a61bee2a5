"""Textures against colours and normals that are known: of a ball, of a chequered block."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, MeshConfig, draw_mesh, extract_mesh
from nerf3d.mesh.bake import texel_places
from nerf3d.mesh.cleanup import decimate, decimate_with_colours
from nerf3d.mesh.nearest import NearestSurface
from nerf3d.mesh.texture import Texture, UvMap, corner_tangents, read_bilinear
from tests.nerf3d.mesh.solids import SolidField, ball, block, sphere_mesh

RADIUS = 0.6
CONFIG = MeshConfig(resolution=64, max_faces=1000, texture_size=256, unwrap_seconds=60)


def rainbow(points):
    """The same along each ray from the middle, because rays look some way into the field."""
    return (points / points.norm(dim=-1, keepdim=True).clamp_min(1e-6) * 0.5 + 0.5).clamp(0, 1)


def chequered(points):
    """Red and blue cells, 0.4 wide, none of whose borders lies on a face of the block below."""
    odd = ((points / 0.4).floor().sum(-1, keepdim=True) % 2).bool()
    return torch.where(odd, torch.tensor([[0.9, 0.2, 0.1]]), torch.tensor([[0.1, 0.3, 0.9]]))


@pytest.fixture(scope="module")
def globe() -> Mesh:
    return extract_mesh(SolidField(ball(RADIUS), paint=rainbow), CONFIG)


def somewhere(mesh: Mesh, num: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Faces and barycentric weights of random places."""
    rng = np.random.default_rng(0)
    return rng.integers(0, len(mesh.faces), num), rng.dirichlet([1, 1, 1], num)


def mix(values: np.ndarray, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("kc,kci->ki", weights, values[faces])


def test_every_place_has_the_colour_of_the_field(globe):
    faces, weights = somewhere(globe)
    found = globe.texture.sample(globe.texture.base_colour, faces, weights)
    away = mix(globe.vertices, globe.faces[faces], weights)
    true = rainbow(torch.from_numpy(away)).numpy()
    assert np.abs(found - true).mean() < 1 / 255
    assert np.abs(found - true).max() < 6 / 255


def test_the_normal_map_brings_back_what_decimation_took(globe):
    faces, weights = somewhere(globe)
    places = mix(globe.vertices, globe.faces[faces], weights)
    true = places / np.linalg.norm(places, axis=1, keepdims=True)
    normals = mix(globe.normals, globe.faces[faces], weights)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    uv_map = globe.texture.uv_map
    tangents = mix(corner_tangents(globe.vertices, globe.normals, uv_map), uv_map.faces[faces], weights)
    tangent = tangents[:, :3] / np.linalg.norm(tangents[:, :3], axis=1, keepdims=True)
    third = np.cross(normals, tangent) * np.sign(tangents[:, 3:])
    read = globe.texture.sample(globe.texture.normal_map, faces, weights) * 2 - 1
    mapped = read[:, :1] * tangent + read[:, 1:2] * third + read[:, 2:] * normals
    mapped /= np.linalg.norm(mapped, axis=1, keepdims=True)

    def degrees(vectors):
        return np.degrees(np.arccos(np.clip((vectors * true).sum(1), -1, 1)))

    assert degrees(mapped).mean() < 1.2
    assert degrees(mapped).mean() < 0.75 * degrees(normals).mean()


def test_every_texel_is_filled_and_seams_do_not_show_at_any_mip_level(globe):
    picture = globe.texture.base_colour.astype(float)
    uv_map = globe.texture.uv_map
    texels, *_, nearest = texel_places(uv_map, 256, ring=2)
    assert len(texels) > 0.5 * picture[..., 0].size
    assert np.isin(nearest, texels).all()
    twice = np.flatnonzero(np.bincount(uv_map.vertices) > 1)  # vertices on seams
    for level in range(3):
        colours = read_bilinear(picture, uv_map.uvs)
        low, high = (np.full((len(globe.vertices), 3), fill) for fill in (np.inf, -np.inf))
        np.minimum.at(low, uv_map.vertices, colours)
        np.maximum.at(high, uv_map.vertices, colours)
        assert (high - low)[twice].mean() < (1.5, 2, 3)[level] / 255
        picture = (picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2]) / 4


def test_a_light_mesh_with_its_texture_looks_like_the_full_one():
    field = SolidField(block(0.5, 0.3, 0.5), paint=chequered)
    config = dataclasses.replace(CONFIG, texture_size=512)
    cameras = Cameras.orbit([30, 200], 25)
    full = extract_mesh(field, dataclasses.replace(config, max_faces=10**6, texture_size=0))
    light = extract_mesh(field, dataclasses.replace(config, max_faces=300))
    bare = extract_mesh(field, dataclasses.replace(config, max_faces=300, texture_size=0))
    assert len(light.faces) <= 300 and light.is_watertight
    expected, textured, coloured = (draw_mesh(mesh, cameras, 128, shading="albedo")[0] for mesh in (full, light, bare))
    difference = (textured - expected).abs().mean()
    assert difference < 3 / 255
    assert difference < 0.5 * (coloured - expected).abs().mean()


def test_lods_are_lighter_and_have_textures_of_their_own():
    config = dataclasses.replace(CONFIG, texture_size=64, lods=(500, 200), normal_map=False)
    mesh = extract_mesh(SolidField(ball(RADIUS), paint=rainbow), config)
    assert [0.95 * budget <= len(lod.faces) <= budget for lod, budget in zip(mesh.lods, (500, 200), strict=True)] == [True] * 2
    assert all(lod.is_watertight and lod.texture.size == 64 and lod.texture.normal_map is None for lod in mesh.lods)


def test_the_nearest_place_of_a_ball_is_straight_inwards_and_never_across_a_thin_wall():
    shape = sphere_mesh(0.5, subdivisions=5)
    surface = NearestSurface(shape.vertices, shape.faces)
    directions = shape.vertices[::7] / np.linalg.norm(shape.vertices[::7], axis=1, keepdims=True)
    faces, weights = surface.locate(0.55 * directions, directions)
    np.testing.assert_allclose(mix(surface.vertices, surface.faces[faces], weights), 0.5 * directions, atol=2e-3)
    plate = extract_mesh(SolidField(block(0.5, 0.04, 0.5)), dataclasses.replace(CONFIG, texture_size=0, max_faces=10**6))
    surface = NearestSurface(plate.vertices, plate.faces)
    below = np.array([[0.1, -0.01, 0.1]])  # nearer to the lower side, but looking up
    faces, weights = surface.locate(below, np.array([[0.0, 1.0, 0.0]]))
    assert mix(surface.vertices, surface.faces[faces], weights)[0, 1] > 0.02


def test_without_a_texture_decimation_keeps_colour_borders():
    full = extract_mesh(
        SolidField(block(0.5, 0.3, 0.5), paint=chequered), dataclasses.replace(CONFIG, texture_size=0, max_faces=10**6)
    )
    cameras = Cameras.orbit([30, 200], 25)
    expected, cover = draw_mesh(full, cameras, 128, shading="albedo")
    surface = NearestSurface(full.vertices, full.faces)
    errors = []
    for vertices, faces in (
        decimate_with_colours(full.vertices, full.faces, full.colours, max_faces=2000, height=4 / 63),
        decimate(full.vertices, full.faces, max_faces=2000),
    ):
        normals = np.tile([0.0, 1.0, 0.0], (len(vertices), 1))
        nearest, weights = surface.locate(vertices, 0 * normals)
        mesh = Mesh(vertices, faces, normals, mix(full.colours, surface.faces[nearest], weights))
        assert mesh.is_watertight and 1900 <= len(faces) <= 2000
        picture, covered = draw_mesh(mesh, cameras, 128, shading="albedo")
        assert (covered - cover).abs().mean() < 0.01
        errors.append(float((picture - expected).abs().mean()))
    assert errors[0] < 0.5 * errors[1]


def test_bilinear_reading():
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 1] = 255
    uvs = np.array([[0.75, 0.25], [0.5, 0.25], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(read_bilinear(picture, uvs)[:, 0], [1, 0.5, 0.25, 1, 0], atol=1e-6)


def test_a_texture_belongs_to_as_many_faces_as_the_mesh_has(globe):
    short = UvMap(np.arange(3), np.zeros((3, 2)), np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match=r"faces came with a texture of 1"):
        dataclasses.replace(globe, texture=Texture(short, np.zeros((4, 4, 3), np.uint8)))


@pytest.mark.parametrize(
    ("settings", "message"), [({"texture_size": 1000}, "texture_size is 1000"), ({"lods": (10,)}, "lods is")]
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**settings)
