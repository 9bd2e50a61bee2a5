"""Camera geometry: where a camera stands, what it sees on which side, and its messages."""

import math

import pytest
import torch

from nerf3d.cameras import Cameras


def project(cameras: Cameras, point: tuple[float, float, float]) -> torch.Tensor:
    """Image-plane x (right) and y (up) of a world point, (V, 2), in units of half the image height."""
    local = torch.linalg.inv(cameras.camera_to_world) @ torch.tensor([*point, 1.0])
    return local[:, :2] / (-local[:, 2:3] * (cameras.fov_degrees.deg2rad() / 2).tan()[:, None])


def test_orbit_stands_where_the_formula_says():
    cameras = Cameras.orbit([0, 90, 30], [0, 0, 20], radius=2.0)
    az, el = math.radians(30), math.radians(20)
    expected = [
        [0, 0, 2],
        [2, 0, 0],
        [2 * math.cos(el) * math.sin(az), 2 * math.sin(el), 2 * math.cos(el) * math.cos(az)],
    ]
    torch.testing.assert_close(cameras.camera_to_world[:, :3, 3], torch.tensor(expected), atol=1e-6, rtol=0)
    rotation = cameras.camera_to_world[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(3, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(3))


def test_sides_of_the_object():
    front, left = Cameras.orbit([0], [0]), Cameras.orbit([90], [0])
    assert project(front, (0.5, 0, 0))[0, 0] > 0, "+X is on the right of the front view"
    assert project(front, (0, 0.5, 0))[0, 1] > 0, "+Y is up"
    assert project(left, (0, 0, 0.5))[0, 0] < 0, "seen from +X, the front (+Z) is on the left"


def test_rays_hit_pixel_centres_from_the_top_row():
    cameras = Cameras.orbit([0, 70], [0, 25], fov_degrees=40.0)
    origins, directions = cameras.rays(4, 6)
    assert origins.shape == directions.shape == (2, 4, 6, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 4, 6))
    tan = math.tan(math.radians(20))
    corner = torch.tensor([-tan * 5 / 4, tan * 3 / 4, -1.0])
    torch.testing.assert_close(directions[0, 0, 0], corner / corner.norm())
    seen = project(cameras, tuple((origins[1, 3, 5] + 2 * directions[1, 3, 5]).tolist()))
    torch.testing.assert_close(seen[1], torch.tensor([5 / 4, -3 / 4]), atol=1e-5, rtol=0)


def test_pose_vectors_are_mvdreams_matrices():
    """Blender's frame (z up, our front at -y), translation of length 1, whatever the distance."""
    azimuth, elevation = 30.0, 20.0
    matrix = Cameras.orbit(azimuth, elevation, radius=3.5).pose_vectors().view(4, 4).double()
    a, e = math.radians(azimuth), math.radians(elevation)
    position = torch.tensor([math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)], dtype=torch.float64)
    right = torch.tensor([math.cos(a), math.sin(a), 0.0], dtype=torch.float64)
    expected = torch.stack([right, torch.linalg.cross(position, right), position, position], dim=1)
    torch.testing.assert_close(matrix[:3], expected, rtol=0, atol=1e-6)
    assert matrix[3].tolist() == [0, 0, 0, 1]


def test_subsets_keep_everything_together():
    cameras = Cameras.orbit([0, 45, 90], [0, 10, 20])
    assert len(cameras) == 3 and len(cameras[1]) == 1 and len(cameras[1:]) == 2
    assert cameras[1].azimuth_degrees.item() == 45
    torch.testing.assert_close(cameras.to("cpu").camera_to_world, cameras.camera_to_world)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"elevation_degrees": 90.0}, "elevation_degrees reaches 90"),
        ({"radius": 0.0}, "radius is 0"),
        ({"fov_degrees": 180.0}, "fov_degrees is 180"),
        ({"azimuth_degrees": [0.0, 1.0, 2.0], "elevation_degrees": [0.0, 1.0]}, "elevation_degrees has 2 values"),
    ],
)
def test_impossible_orbits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cameras.orbit(**({"azimuth_degrees": 0.0, "elevation_degrees": 0.0} | arguments))
