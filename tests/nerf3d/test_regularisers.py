"""Regularisers at points where their values are known, and the schedules of their weights."""

import math

import pytest
import torch

from nerf3d import regularisers
from nerf3d.regularisers import Schedule
from nerf3d.rendering import RaySamples


def samples(normals, directions, weights):
    count = len(weights)
    return RaySamples(torch.arange(count), torch.tensor(directions), torch.ones(count), torch.tensor(weights), normals)


def test_sparsity_is_a_tenth_when_empty_and_pulls_full_rays_most_evenly():
    torch.testing.assert_close(regularisers.sparsity(torch.zeros(2, 1, 3, 3)), torch.tensor(0.1))
    torch.testing.assert_close(regularisers.sparsity(torch.ones(2, 1, 3, 3)), torch.tensor(math.sqrt(1.01)))


def test_opaqueness_is_largest_at_one_half_and_finite_at_the_ends():
    values = [float(regularisers.opaqueness(torch.full((1, 1, 2, 2), v))) for v in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert values[2] == pytest.approx(math.log(2)) and values[0] < values[1] < values[2]
    assert values[1] == pytest.approx(values[3]) and math.isfinite(values[4])


def test_carving_counts_opacity_only_where_the_target_is_background():
    background = torch.tensor([[0.1, 0.5, 0.9]])
    target = background[:, :, None, None].repeat(1, 1, 1, 2)
    target[..., 1] = torch.tensor([0.9, 0.1, 0.1])[:, None]
    alpha = torch.ones(1, 1, 1, 2, requires_grad=True)
    loss = regularisers.background_carving(alpha, target, background)
    loss.backward()
    assert loss.item() == pytest.approx(0.5, abs=1e-4)
    assert alpha.grad.flatten().tolist() == pytest.approx([0.5, 0.0], abs=1e-4)


def test_orientation_counts_only_normals_that_face_away():
    normals = torch.tensor([[0.0, 0, -1], [0, 0, 1], [0, 0.6, 0.8]], requires_grad=True)
    ahead = [[0.0, 0.0, 1.0]] * 3
    loss = regularisers.orientation(samples(normals, ahead, [1.0, 0.5, 1.0]), 4)
    assert loss.item() == pytest.approx((0.5 + 0.64) / 4)
    loss.backward()
    assert normals.grad[0].abs().sum() == 0 and normals.grad[1, 2] > 0


def test_orientation_needs_normals():
    with pytest.raises(ValueError, match="render with a lit shading"):
        regularisers.orientation(samples(None, [[0.0, 0.0, 1.0]], [1.0]), 1)


def test_depth_variance_is_weighted_square_distance_from_the_mean():
    rays = RaySamples(
        torch.tensor([0, 0, 3]), torch.zeros(3, 3), torch.tensor([2.0, 2.4, 9.0]), torch.tensor([0.5, 0.5, 1.0]), None
    )
    depth = torch.tensor([2.2, 0.0, 0.0, 9.0]).view(1, 1, 2, 2)
    assert regularisers.depth_variance(rays, depth).item() == pytest.approx(0.04 / 4)


def test_schedules_hold_ramp_and_hold():
    assert [Schedule(0.3).value(p) for p in (0.0, 0.5, 1.0)] == [0.3, 0.3, 0.3]
    ramp = Schedule(1.0, 3.0, begin=0.2, until=0.6)
    assert [ramp.value(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([1, 1, 2, 3, 3])
    assert [Schedule(1.0, 2.0, begin=0.5, until=0.5).value(p) for p in (0.4, 0.5)] == [1.0, 2.0]


@pytest.mark.parametrize("begin, until", [(0.6, 0.5), (-0.1, 1.0), (0.0, 1.5)])
def test_schedules_outside_the_fit_are_refused(begin, until):
    with pytest.raises(ValueError, match="0 <= begin <= until <= 1"):
        Schedule(1.0, 2.0, begin=begin, until=until)
