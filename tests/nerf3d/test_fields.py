"""Fields: blobs, sums of grids, hashes against slow twins, normals against the sphere."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nerf3d.fields import FieldConfig, make_field
from nerf3d.fields.dense_pyramid import DensePyramid, grid_vertices, read, volume_gradient
from nerf3d.fields.hash_grid import HashGrid, Read, level_resolutions
from nerf3d.streams import fit_stream, uniform

SMALL = FieldConfig(resolutions=(4, 7, 12))
HASHED = FieldConfig(kind="hash_grid", num_levels=3, log2_table_size=9, base_resolution=4, finest_resolution=16)


def points_in_box(count, key="points", low=-1.0, high=1.0):
    return uniform((count, 3), fit_stream(0, key), low, high)


def shuffled(field, spread=0.5):
    draws = fit_stream(0, "parameters")
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.normal_(0, spread, generator=draws)
    return field


@pytest.mark.parametrize("config", [SMALL, HASHED], ids=["dense_pyramid", "hash_grid"])
def test_answers_have_the_promised_shapes_and_ranges(config):
    field = shuffled(make_field(config))
    points = points_in_box(501, low=-1.3, high=1.3)
    density, colour = field(points)
    assert density.shape == (501,) and colour.shape == (501, 3)
    assert (density >= 0).all() and (colour >= 0).all() and (colour <= 1).all()
    assert (density[points.norm(dim=-1) >= config.radius] == 0).all()
    torch.testing.assert_close(field.density(points), density)
    torch.testing.assert_close(field.colour(points), colour)
    samples = field.query(normals=True).samples(points)
    torch.testing.assert_close(samples.density, density)
    assert (samples.normals.norm(dim=-1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("config", [SMALL, HASHED], ids=["dense_pyramid", "hash_grid"])
def test_a_new_field_is_a_blob_in_the_middle(config):
    density = make_field(config).density(torch.tensor([[0.0, 0, 0], [0.4, 0, 0], [0.8, 0, 0]]))
    assert density[0] > density[1] > density[2] > 0


@pytest.mark.parametrize("config", [SMALL, HASHED], ids=["dense_pyramid", "hash_grid"])
def test_no_points_give_no_answers(config):
    samples = make_field(config).query(normals=True).samples(torch.empty(0, 3))
    assert [tuple(v.shape) for v in samples] == [(0,), (0, 3), (0, 3)]


@pytest.mark.parametrize("config", [SMALL, HASHED], ids=["dense_pyramid", "hash_grid"])
def test_every_parameter_has_one_learning_rate(config):
    field = make_field(config)
    shared = [*field.density_parameters(), *field.colour_parameters()]
    assert {id(p) for p in shared} == {id(p) for p in field.parameters()} and len(shared) == len({id(p) for p in shared})


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="give one of dense_pyramid, hash_grid"):
        make_field(dataclasses.replace(SMALL, kind="octree"))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"resolutions": ()}, "at least one grid"),
        ({"resolutions": (16, 1)}, "two neighbours"),
        ({"num_levels": 0}, "num_levels is 0; give 1 to 32"),
        ({"log2_table_size": 60}, "log2_table_size is 60; give 4 to 24"),
        ({"base_resolution": 64, "finest_resolution": 32}, "finest_resolution is 32"),
        ({"radius": 0.0}, "radius is 0.0; give metres over 0"),
    ],
)
def test_settings_out_of_range_are_refused(bad, sentence):
    with pytest.raises(ValueError, match=sentence):
        FieldConfig(**bad)


def test_the_summed_volume_is_the_sum_of_the_levels():
    """At the finest grid's vertices, reading the one volume equals reading every level and adding."""
    field = shuffled(DensePyramid(SMALL))
    vertices = grid_vertices(12)
    points = vertices.reshape(-1, 3)
    expected = torch.zeros(len(points), 4)
    expected[:, 0] = field.start.reshape(-1)
    # Grids that do not nest are resampled twice, so only each level's own step to the next is exact: compare the last two.
    field.density_grids[0].data.zero_()
    field.colour_grids[0].data.zero_()
    for density, colour in zip(field.density_grids, field.colour_grids, strict=True):
        expected += read(torch.cat([density, colour], 1), points)
    torch.testing.assert_close(read(field.volume(), points), expected, atol=1e-5, rtol=1e-5)


def test_a_read_equals_eight_weighted_corners():
    draws = fit_stream(1, "volume")
    volume = uniform((1, 2, 5, 5, 5), draws)
    points = points_in_box(40)
    slow = torch.zeros(40, 2)
    for n, point in enumerate(points):
        place = (point + 1) / 2 * 4
        low = place.floor().clamp(max=3)
        for corner in itertools.product((0, 1), repeat=3):
            weight = 1.0
            for axis in range(3):
                part = float(place[axis] - low[axis])
                weight *= part if corner[axis] else 1 - part
            x, y, z = (int(low[a]) + corner[a] for a in range(3))
            slow[n] += weight * volume[0, :, z, y, x]
    torch.testing.assert_close(read(volume, points), slow)


def test_the_gradient_of_a_linear_volume_is_its_slope():
    slope = torch.tensor([0.3, -2.0, 1.0])
    volume = (grid_vertices(9) @ slope)[None, None]
    inner = volume_gradient(volume)[0, :, 1:-1, 1:-1, 1:-1]
    torch.testing.assert_close(inner, slope[:, None, None, None].expand_as(inner))


@pytest.mark.parametrize("kind", ["dense_pyramid", "hash_grid"])
def test_normals_of_a_ball_point_outward(kind):
    """The initial blob has spherical level sets, so its normals are the positions, normalised."""
    config = FieldConfig(kind=kind, resolutions=(48,), num_levels=2, blob_radius=0.9)
    field = make_field(config)
    if kind == "hash_grid":
        torch.nn.init.zeros_(field.density_head.weight)
    points = points_in_box(2000)
    points = points[(points.norm(dim=-1) > 0.3) & (points.norm(dim=-1) < 0.75)]
    normals = field.query(normals=True).samples(points).normals
    assert (normals * F.normalize(points, dim=-1)).sum(-1).min() > 0.99


def test_variation_is_the_mean_step_between_neighbours():
    field = DensePyramid(FieldConfig(resolutions=(6,), blob_scale=0.0))
    assert field.query().total_variation(fit_stream(0))[0] < 1e-6
    field.density_grids[0].data.copy_(3 * torch.arange(6.0)[None, None, :, None, None].expand(1, 1, 6, 6, 6))
    density, colour = field.query().total_variation(fit_stream(0))
    torch.testing.assert_close(density, torch.tensor(3.0))
    assert colour == 0


@pytest.mark.parametrize("config", [SMALL, HASHED], ids=["dense_pyramid", "hash_grid"])
def test_regularisers_of_a_query_reach_the_parameters(config):
    field = shuffled(make_field(config), 0.1)
    query = field.query()
    density, colour = query.total_variation(fit_stream(0))
    (density + colour + query.density_beyond(0.5, fit_stream(0))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in field.parameters())


def test_density_beyond_a_radius_ignores_what_is_inside():
    field = DensePyramid(FieldConfig(resolutions=(16,), density_bias=-40.0, blob_scale=60.0, blob_radius=0.6))
    assert field.query().density_beyond(0.7, fit_stream(0)) < 1e-6 < field.query().density_beyond(0.2, fit_stream(0))


def test_hash_grid_equals_a_slow_twin():
    """Instant-NGP's equations 2 to 4 in loops over plain integers."""
    field = shuffled(HashGrid(HASHED))
    points = points_in_box(12)
    slow = []
    for point in points.tolist():
        features = []
        for table, resolution in zip(field.tables, level_resolutions(HASHED), strict=True):
            place = [(c + 1) / 2 * resolution for c in point]
            low = [min(int(p), resolution - 1) for p in place]
            total = torch.zeros(2)
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (v + c for v, c in zip(low, corner, strict=True))
                weight = 1.0
                for p, v, c in zip(place, low, corner, strict=True):
                    weight *= (p - v) if c else 1 - (p - v)
                if (resolution + 1) ** 3 <= len(table):
                    row = (z * (resolution + 1) + y) * (resolution + 1) + x
                else:
                    row = (x ^ (y * 2654435761) ^ (z * 805459861)) % len(table)
                total = total + weight * table[row]
            features.append(total)
        slow.append(torch.cat(features))
    together = [Read(slice(0, len(field.tables)), torch.cat(list(field.tables)))]  # as on a GPU
    for reads in (field.reads(), together):
        torch.testing.assert_close(field.encode(points, reads), torch.stack(slow), atol=1e-5, rtol=1e-5)


def test_on_a_gpu_levels_cost_no_launches():
    class Calls(TorchDispatchMode):
        num = 0

        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            self.num += 1
            return function(*arguments, **(named or {}))

    found = []
    for num_levels in (2, 12):
        field = HashGrid(dataclasses.replace(HASHED, num_levels=num_levels))
        together = [Read(slice(0, num_levels), torch.cat(list(field.tables)))]
        with Calls() as calls:
            field.encode(points_in_box(12), together)
        found.append(calls.num)
    assert found[0] == found[1] < 50


def test_levels_grow_geometrically_to_the_finest():
    assert level_resolutions(FieldConfig(num_levels=5, base_resolution=16, finest_resolution=256)) == [16, 32, 64, 128, 256]
    assert level_resolutions(FieldConfig(num_levels=1)) == [16]


def test_a_hash_grid_is_a_function_of_its_seed():
    first, again = HashGrid(HASHED, seed=3), HashGrid(HASHED, seed=3)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
