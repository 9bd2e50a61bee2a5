"""Which piece of a field is the object: not the floor under it, and not a larger one that stands at the edge of the scene."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from nerf3d.mesh import MeshConfig, extract_mesh
from nerf3d.mesh.floor import without_floor

CONFIG = MeshConfig(resolution=64, max_faces=2000, texture_size=0)


def ball(points, centre, radius):
    return (points - torch.tensor(centre)).norm(dim=-1) - radius


@dataclasses.dataclass(frozen=True)
class Solid:
    """Dense where a distance is negative, within the sphere in which fields have density."""

    distance: object
    radius: float = 0.95

    def density(self, points):
        inside = points.norm(dim=-1) < self.radius
        return 30 * torch.sigmoid(-100 * self.distance(points)) * inside

    def colour(self, points):
        return torch.full_like(points, 0.5)


def floor(points, top, thickness=0.1):
    return torch.maximum(points[:, 1] - top, top - thickness - points[:, 1])


@pytest.mark.parametrize("radius", [0.95, 2.0])
def test_what_stands_on_a_floor_is_delivered_without_it(radius):
    field = Solid(lambda p: torch.minimum(floor(p, -0.4), ball(p, (0.0, -0.2, 0.1), 0.3)), radius)
    mesh = extract_mesh(field, CONFIG)
    assert any("A floor under the object" in note.text for note in mesh.notes)
    low, high = mesh.bounds
    np.testing.assert_allclose(high, [0.3, 0.1, 0.4], atol=0.04)
    np.testing.assert_allclose(low, [-0.3, -0.4, -0.2], atol=0.06)
    assert mesh.is_watertight and mesh.num_components == 1


@pytest.mark.parametrize(
    "distance",
    [
        lambda p: floor(p, -0.4),  # nothing stands on it
        lambda p: torch.maximum(p.norm(dim=-1) - 0.8, floor(p, 0.0)),  # a disc as large as objects get, with nothing on it
        lambda p: torch.minimum(torch.maximum(p[:, [0, 2]].norm(dim=-1) - 0.65, floor(p, -0.4)), ball(p, (0.0, 0.0, 0.0), 0.4)),
        lambda p: torch.minimum(  # a table: legs below a wide top
            floor(p, 0.1), torch.maximum(p[:, [0, 2]].norm(dim=-1) - 0.6, torch.maximum(p[:, 1], -0.8 - p[:, 1]))
        ),
        lambda p: p[:, 1],  # a half space
    ],
)
def test_what_is_no_floor_stays(distance):
    axis = torch.linspace(-1, 1, 48)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    levels = np.log1p(Solid(distance).density(points).reshape(48, 48, 48).numpy())
    bare, was_there = without_floor(levels, float(np.log(6)))
    assert bare is levels and not was_there


def test_the_piece_in_the_middle_wins_over_a_larger_one_at_the_edge():
    cloud = (0.0, 0.62, -0.62)
    field = Solid(lambda p: torch.minimum(ball(p, cloud, 0.32), ball(p, (0.0, 0.0, 0.1), 0.24)), 2.0)
    mesh = extract_mesh(field, CONFIG)
    np.testing.assert_allclose(mesh.bounds.mean(0), [0, 0, 0.1], atol=0.03)
    assert any("A larger piece was left out because another one stands in the middle" in note.text for note in mesh.notes)


def test_the_largest_wins_where_the_middle_is_empty_or_holds_a_crumb():
    pair = Solid(lambda p: torch.minimum(ball(p, (-0.6, 0.0, 0.0), 0.3), ball(p, (0.6, 0.0, 0.0), 0.28)))
    assert extract_mesh(pair, CONFIG).num_components == 2
    crumb = Solid(lambda p: torch.minimum(ball(p, (-0.6, 0.0, 0.0), 0.3), ball(p, (0.0, 0.0, 0.0), 0.1)))
    np.testing.assert_allclose(extract_mesh(crumb, CONFIG).bounds.mean(0), [-0.6, 0, 0], atol=0.05)


def test_pieces_of_one_size_are_one_object_wherever_they_stand():
    """27 balls, the one in the middle a little smaller than those around it."""
    steps = torch.tensor([-0.55, 0.0, 0.55])
    centres = torch.cartesian_prod(steps, steps, steps)
    radii = torch.where(centres.norm(dim=-1) > 0, 0.17, 0.16)
    lattice = Solid(lambda p: ((p[:, None] - centres).norm(dim=-1) - radii).amin(-1), 2.0)
    assert extract_mesh(lattice, CONFIG).num_components == 27


def fitted(side: int, distance, noise: float):
    """A pyramid's field of a solid whose vertices differ from it by noise, as those of a fit do."""
    from nerf3d.fields import DensePyramid, FieldConfig
    from nerf3d.fields.dense_pyramid import grid_vertices

    field = DensePyramid(FieldConfig(resolutions=(side,)))
    raw = (-100 * distance(grid_vertices(side).reshape(-1, 3))).clamp(-8, 8).reshape(side, side, side)
    raw = raw + noise * torch.empty(raw.shape).normal_(generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        field.density_grids[0].copy_((raw - field.start[0, 0])[None, None])
    return field


def roughness(field, config) -> float:
    """Degrees, root mean square over the area, between a ball's faces and the ball."""
    mesh = extract_mesh(field, config)
    corners = mesh.vertices[mesh.faces].astype(float)
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(facing, axis=1)
    away = corners.mean(1) / np.linalg.norm(corners.mean(1), axis=1, keepdims=True)
    angle = np.degrees(np.arccos(np.clip((facing * away).sum(1) / np.maximum(area, 1e-20), -1, 1)))
    return float(np.sqrt((area * angle**2).sum() / area.sum()))


def test_a_fits_noise_is_smoothed_in_the_fields_own_spacing_and_thin_parts_stay():
    """What looks like corduroy in clay is noise from vertex to vertex of the field, not of the finer grid it is cut on."""
    ball_field = fitted(40, lambda p: ball(p, (0.0, 0.0, 0.0), 0.5), 0.5)
    config = dataclasses.replace(CONFIG, resolution=96, max_faces=10**6)
    in_voxels = dataclasses.replace(config, smoothing=config.smoothing / (ball_field.spacing * 95 / 2))
    assert roughness(ball_field, config) < 0.6 * roughness(ball_field, in_voxels)
    leg = fitted(64, lambda p: torch.maximum(p[:, [0, 2]].norm(dim=-1) - 0.03, p[:, 1].abs() - 0.6), 0.3)
    mesh = extract_mesh(leg, dataclasses.replace(CONFIG, resolution=128))
    assert mesh.num_components == 1 and mesh.extents[1] > 1.1
