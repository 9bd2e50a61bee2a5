"""Hits of the analytic renderer against the signed distances of the same solids, and the frame of every kind."""

import pytest
import torch
from torch.testing import assert_close

from nerf3d.cameras import Cameras
from nerf3d.toybox import render, sketch
from nerf3d.toybox.items import build_parts
from nerf3d.toybox.kinds import CATALOGUE
from nerf3d.toybox.primitives import QUADRIC, TORUS, Parts
from nerf3d.toybox.sketch import OBJECT_RADIUS, Sketch

PALETTE = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
DIRECTIONS = torch.nn.functional.normalize(torch.empty(2000, 3).normal_(generator=torch.Generator().manual_seed(0)), dim=-1)
CAMERAS = Cameras.orbit([20, 140, 265], [-9, 25, 60])


def trace(parts: Parts, cameras: Cameras, size: int, monkeypatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distance along each unit ray (V, H, W), infinity for a miss, with the rays' origins and directions."""
    seen = {}
    shade = render._shade
    monkeypatch.setattr(render, "_shade", lambda keys, *rest: seen.update(keys=keys.clone()) or shade(keys, *rest))
    render.render_object(parts, cameras, size, supersample=1, images_per_chunk=len(cameras))
    keys = seen["keys"].view(len(cameras), size, size)
    depth = (keys >> 32).to(torch.int32).view(torch.float32)
    origins, directions = cameras.rays(size, size)
    cosine = -(directions * cameras.camera_to_world[:, None, None, :3, 2]).sum(-1)
    return torch.where(keys == render._NO_HIT, torch.inf, depth / cosine), origins, directions


def varied(name: str, seed: int = 0) -> Parts:
    kind = CATALOGUE[name]
    randoms = torch.empty(14).uniform_(generator=torch.Generator().manual_seed(seed)).tolist()
    return build_parts(kind, PALETTE, proportion=kind.proportions[seed % len(kind.proportions)], randoms=randoms)


@pytest.mark.parametrize("name", CATALOGUE)
def test_hits_lie_on_the_surface_and_nothing_is_passed_through(name, monkeypatch):
    parts = varied(name)
    distance, origins, directions = trace(parts, CAMERAS, 26, monkeypatch)
    hit = distance.isfinite()
    points = (origins + directions * distance.nan_to_num(posinf=0)[..., None])[hit]
    assert hit.sum() > 20
    assert parts.sdf(points).abs().max() < 1e-4
    steps = torch.linspace(1.8, 3.6, 61)
    before = steps < (distance - 2e-3)[..., None]
    inside = parts.sdf(origins[..., None, :] + directions[..., None, :] * steps[:, None]) < -1e-4
    assert not (before & inside).any()


def test_every_kind_is_centred_inside_the_sphere():
    for name in CATALOGUE:
        parts = varied(name, seed=1)
        surface = sketch.surface_points(parts.shape.numpy(), parts.params.numpy())
        points = torch.from_numpy(surface).float() @ parts.frame[:, :, :3].transpose(1, 2)
        points = (points + parts.frame[:, None, :, 3]).flatten(0, 1)
        assert points.norm(dim=-1).max() <= OBJECT_RADIUS, name
        assert_close(points.amax(0), -points.amin(0), atol=1e-5, rtol=0)
        outer = DIRECTIONS * (OBJECT_RADIUS + 0.005)
        assert not parts.occupancy(outer).any(), name


def test_surface_points_lie_on_their_parts():
    for name in CATALOGUE:
        parts = varied(name, seed=2)
        surface = torch.from_numpy(sketch.surface_points(parts.shape.numpy(), parts.params.numpy())).float()
        for k in range(len(parts)):
            points = surface[k] @ parts.frame[k, :, :3].T + parts.frame[k, :, 3]
            assert parts[k : k + 1].sdf(points).abs().max() < 1e-4, name


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_colourable_part_is_seen_from_somewhere(name):
    kind = CATALOGUE[name]
    parts = build_parts(kind, PALETTE)
    cameras = Cameras.orbit([0, 90, 180, 270] * 2, [10] * 4 + [55] * 4)
    rgb, alpha = render.render_object(parts, cameras, 32, supersample=1, shading="albedo", background=(0, 0, 0))
    for part, colour in zip(kind.parts, PALETTE, strict=False):
        seen = ((rgb - torch.tensor(colour)[:, None, None]).abs().amax(1) < 1e-3) & (alpha[:, 0] > 0)
        assert seen.sum((1, 2)).max() >= 8, part


def test_signed_bounds_never_exceed_the_distance():
    """The distance to a dense cloud of surface points is an upper limit of the true distance."""
    parts = varied("vase", seed=2)
    cloud = torch.empty(200_000, 3).uniform_(-0.8, 0.8, generator=torch.Generator().manual_seed(0))
    solid = cloud[parts.occupancy(cloud)]
    probes = torch.empty(200, 3).uniform_(-0.95, 0.95, generator=torch.Generator().manual_seed(1))
    probes = probes[parts.sdf(probes) > 0]
    assert (parts.sdf(probes) <= torch.cdist(probes, solid).amin(1)).all()


def test_ball_is_exact(monkeypatch):
    pen = Sketch()
    pen.ball(0, (0, 0, 0), 1.0)
    ball = pen.finish(stretch=(1, 1, 1), radius=0.5, palette=PALETTE)
    points = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0, -0.5, 0], [0.3, 0, 0.4]])
    assert_close(ball.sdf(points)[[0, 2, 3]], torch.tensor([-0.5, 0.0, 0.0]), atol=1e-6, rtol=0)
    distance, origins, directions = trace(ball, CAMERAS, 33, monkeypatch)
    along = -(origins * directions).sum(-1)
    expected = along - (0.25 - (2.7**2 - along**2)).sqrt()
    assert_close(distance, expected.nan_to_num(nan=torch.inf), atol=5e-5, rtol=0)


def test_torus_against_marching(monkeypatch):
    pen = Sketch()
    pen.ring(0, (0, 0, 0), 1.0, 0.3, turn=("x", 30))
    ring = pen.finish(stretch=(1, 0.8, 1.2), radius=0.7, palette=PALETTE)
    assert ring.shape.tolist() == [TORUS]
    distance, origins, directions = trace(ring, CAMERAS, 24, monkeypatch)
    steps = torch.arange(1.8, 3.6, 0.001)
    inside = ring.occupancy(origins[..., None, :] + directions[..., None, :] * steps[:, None])
    marched = torch.where(inside.any(-1), steps[inside.to(torch.uint8).argmax(-1)], torch.inf)
    both = distance.isfinite() & marched.isfinite()
    assert (distance.isfinite() ^ marched.isfinite()).sum() <= 2, "only grazing rays may differ"
    assert_close(distance[both], marched[both], atol=1.1e-3, rtol=0)


@pytest.mark.parametrize("middle", [0.5, 0.15])
def test_barrels_and_waists_have_the_named_radii(middle):
    """A waist bends inward: its lateral surface is not convex, and rays may pass it twice."""
    pen = Sketch()
    pen.tube(0, (0, 0, 0), (0, 1, 0), 0.3, 0.3, middle=middle)
    parts = pen.finish(stretch=(1, 1, 1), radius=0.6, palette=PALETTE)
    assert parts.shape.tolist() == [QUADRIC]
    scale = parts.frame[0, 1, 1]
    at = torch.tensor([[0.299, 0.499], [0.301, 0.499], [middle * 0.999, 0.0], [middle * 1.001, 0.0]]) * scale
    points = torch.stack([at[:, 0], at[:, 1], torch.zeros(4)], -1)
    assert parts.occupancy(points).tolist() == [True, middle > 0.3, True, False]


def test_waist_is_entered_behind_its_rim(monkeypatch):
    pen = Sketch()
    pen.tube(0, (0, 0, 0), (0, 1, 0), 0.3, 0.3, middle=0.12)
    parts = pen.finish(stretch=(1, 1, 1), radius=0.7, palette=PALETTE)
    distance, origins, directions = trace(parts, Cameras.orbit([10, 10], [25, 50]), 48, monkeypatch)
    hit = distance.isfinite()
    points = (origins + directions * distance.nan_to_num(posinf=0)[..., None])[hit]
    assert parts.sdf(points).abs().max() < 1e-4


def test_too_many_parts_are_refused():
    pen = Sketch()
    for _ in range(15):
        pen.ball(0, (0, 0, 0), 1.0)
    with pytest.raises(ValueError, match="15 parts; draw at most 14"):
        pen.finish(stretch=(1, 1, 1), radius=0.5, palette=PALETTE)
