"""The renderer against a plain torch twin, analytic balls and the toybox."""

import dataclasses
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import nerfacc
import pytest
import torch
from torch.nn import functional as F
from torch.utils import cpp_extension

from nerf3d.cameras import Cameras
from nerf3d.errors import BackendUnavailable
from nerf3d.fields import DensePyramid, FieldConfig, HashGrid
from nerf3d.rendering import Lights, Occupancy, headlights, needs_compiling, nerfacc_backend, render, render_views
from nerf3d.rendering.background import LearnedBackground, sample_backgrounds, spherical_harmonics
from nerf3d.rendering.shading import sample_lights, shade
from nerf3d.rendering.volume import ray_interval
from nerf3d.streams import fit_stream, uniform
from nerf3d.toybox.items import build_parts, make_item
from nerf3d.toybox.kinds import KINDS
from nerf3d.toybox.render import render_object

CAMERAS = Cameras.orbit([10.0, 130.0], [15.0, 50.0])
GREY = torch.tensor([[0.2, 0.4, 0.6], [0.9, 0.8, 0.1]])


def random_field():
    field = DensePyramid(FieldConfig(resolutions=(6, 12), density_bias=-2.0, blob_scale=6.0))
    draws = fit_stream(0, "field")
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.normal_(0, 0.7, generator=draws)
    return field


def twin(field, occupancy, cameras, size, *, background, shading, lights, num_samples):
    """Mildenhall et al. 2020, equation 3, ray by ray in plain torch: no nerfacc, no culling of work."""
    images = []
    for view in range(len(cameras)):
        origins, directions = (r.reshape(-1, 3) for r in cameras[view].rays(size, size))
        bounds = None if occupancy is None else occupancy.bounds()
        near, far = ray_interval(origins, directions, radius=1.0, bounds=bounds)
        far = torch.maximum(near, far)
        delta = ((far - near) / num_samples)[:, None]
        t = near[:, None] + delta * (torch.arange(num_samples) + 0.5)
        points = (origins[:, None] + t[..., None] * directions[:, None]).reshape(-1, 3)
        samples = field.query(normals=True).samples(points)
        density = samples.density
        if occupancy is not None:
            density = density * occupancy.contains(points)
        alpha = 1 - torch.exp(-density.view(-1, num_samples) * delta)
        passed = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], -1), -1)
        weights = passed * alpha
        colour = samples.colour
        if shading == "lambert":
            dot = (samples.normals @ lights.direction[view]).clamp_min(0)
            colour = colour * (lights.ambient[view] + (1 - lights.ambient[view]) * dot)[:, None]
        colour = colour.view(-1, num_samples, 3)
        rgb = (weights[..., None] * colour).sum(1) + (1 - weights.sum(1, keepdim=True)) * background[view]
        depth = (weights * t).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1e-6)
        images.append(torch.cat([rgb, weights.sum(1, keepdim=True), depth], -1).T.reshape(5, size, size))
    return torch.stack(images)


@pytest.mark.parametrize("shading", ["albedo", "lambert"])
@pytest.mark.parametrize("culled", [False, True])
def test_render_equals_a_plain_torch_twin_in_values_and_gradients(shading, culled):
    field, lights = random_field(), sample_lights(CAMERAS, generator=fit_stream(0))
    occupancy = None
    if culled:
        occupancy = Occupancy(16, threshold=0.4)
        occupancy.refresh(lambda p: field.density(p) * (p[:, 0] > 0), seed=0, step=0, radius=0.95)
        assert 0.1 < occupancy.fraction() < 0.9
    options = {"background": GREY, "shading": shading, "lights": lights, "num_samples": 20}
    output = render(field, occupancy, CAMERAS, 9, **options)
    expected = twin(field, occupancy, CAMERAS, 9, **options)
    pull = uniform(expected.shape, fit_stream(0, "pull"))
    picture = torch.cat([output.rgb, output.alpha, output.depth], 1)
    torch.testing.assert_close(picture, expected, atol=1e-5, rtol=1e-4)
    (picture * pull).sum().backward()
    gradients = [p.grad.clone() for p in field.parameters()]
    field.zero_grad()
    (expected * pull).sum().backward()
    for gradient, parameter in zip(gradients, field.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-3)


def test_rays_without_samples_show_the_background_and_pass_no_gradient():
    field, occupancy = random_field(), Occupancy(8)
    occupancy.estimator.binaries.fill_(False)
    output = render(field, occupancy, CAMERAS, 5, background=GREY, shading="lambert")
    torch.testing.assert_close(output.rgb, GREY[:, :, None, None].expand(2, 3, 5, 5))
    assert (output.alpha == 0).all() and (output.depth == 0).all() and len(output.samples.weights) == 0
    output.rgb.sum().backward()
    assert all((p.grad == 0).all() for p in field.parameters())


def test_a_solid_ball_has_its_silhouette_and_depth():
    """A dense ball of radius 0.5 from 2.7 m: the middle ray enters at 2.2 m, the outline is a circle of known angle."""
    steep = {"blob_scale": 400.0, "blob_radius": 1.0, "density_bias": -200.0}
    field = DensePyramid(FieldConfig(resolutions=(64,), density_scale=30.0, **steep))
    camera = Cameras.orbit(0, 0)
    output = render(field, None, camera, 65, background=torch.zeros(1, 3), num_samples=256, shading="normal")
    output = dataclasses.replace(output, depth=output.depth.detach())
    assert abs(float(output.depth[0, 0, 32, 32]) - 2.2) < 0.03
    torch.testing.assert_close(output.normals[0, :, 32, 32], torch.tensor([0.0, 0, 1]), atol=0.05, rtol=0)
    _, directions = camera.rays(65, 65)
    inside = (directions[0] @ torch.tensor([0.0, 0, -1])).acos().sin() * 2.7 < 0.5
    wrong = (output.alpha[0, 0] > 0.5) != inside
    assert wrong.sum() <= 0.06 * inside.sum()


def test_stratified_samples_repeat_with_their_generator():
    field = random_field()
    first, again, other = (
        render(field, None, CAMERAS, 6, background=GREY, generator=fit_stream(seed)).rgb for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_render_views_in_chunks_equals_one_call():
    field, occupancy = random_field(), Occupancy(8)
    cameras = Cameras.orbit([0.0, 90.0, 180.0], [10.0, 20.0, 30.0])
    whole = render_views(field, occupancy, cameras, 8, background=GREY[0])
    parts = render_views(field, occupancy, cameras, 8, background=GREY[0], views_per_chunk=1)
    torch.testing.assert_close(whole, parts)
    assert whole[0].shape == (3, 3, 8, 8) and not whole[0].requires_grad


def test_ray_intervals_are_where_the_points_are_inside():
    draws = fit_stream(0, "rays")
    directions = F.normalize(uniform((300, 3), draws, -1, 1), dim=-1)
    directions[0] = torch.tensor([0.0, 0.0, -1.0])
    origins = uniform((300, 3), draws, -0.5, 0.5) - 3 * directions
    bounds = torch.tensor([[-0.3, -0.8, -0.2], [0.7, 0.1, 0.6]])
    near, far = ray_interval(origins, directions, radius=0.9, bounds=bounds)
    t = torch.linspace(0, 6, 1201)
    points = origins[:, None] + t[:, None] * directions[:, None]
    inside = (points.norm(dim=-1) < 0.9) & ((points > bounds[0]) & (points < bounds[1])).all(-1)
    claimed = (t > near[:, None]) & (t < far[:, None])
    at_an_end = ((t - near[:, None]).abs() < 1e-4) | ((t - far[:, None]).abs() < 1e-4)
    assert ((inside == claimed) | at_an_end).all() and inside.any()


def ball(radius, centre=(0.2, -0.1, 0.3)):
    return lambda p: 50.0 * ((p - torch.tensor(centre)).norm(dim=-1) < radius)


@pytest.mark.parametrize("radius", [0.06, 0.3, 0.6])
def test_occupancy_never_culls_what_is_dense(radius):
    occupancy = Occupancy(32)
    for step in range(6):
        occupancy.refresh(ball(radius), seed=0, step=step)
    points = uniform((200_000, 3), fit_stream(0, "inside"), -1, 1)
    dense = ball(radius)(points) > 0
    assert occupancy.contains(points)[dense].all()
    assert occupancy.fraction() < 0.1 + (radius + 0.13) ** 3
    lower, upper = occupancy.bounds()
    assert ((points[dense] > lower) & (points[dense] < upper)).all()
    assert (occupancy.contains(points) <= ((points >= lower) & (points <= upper)).all(-1)).all()


def test_occupancy_is_empty_beyond_its_radius_and_outside_the_box():
    occupancy = Occupancy(16)
    assert occupancy.contains(torch.tensor([[0.99, 0.99, 0.99]])).all()
    occupancy.refresh(lambda p: torch.ones(len(p)), seed=0, step=0, radius=0.5)
    outside = torch.tensor([[0.9, 0.0, 0.0], [0.6, 0.6, 0.6], [1.5, 0.0, 0.0], [-1.01, 0.0, 0.0]])
    assert not occupancy.contains(outside).any() and occupancy.contains(torch.zeros(1, 3)).all()


def test_occupancy_refresh_is_pure_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    grids = []
    for _ in range(2):
        occupancy = Occupancy(16)
        occupancy.refresh(ball(0.4), seed=5, step=8)
        grids.append(occupancy.estimator.occs.clone())
    assert torch.equal(*grids) and torch.equal(before, torch.get_rng_state())


def test_draws_from_the_cpus_global_generator_leave_every_cuda_generator_alone(monkeypatch):
    def reseeds_all(seed):
        raise AssertionError("torch.manual_seed also reseeds every CUDA device, which nothing puts back")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeds_all)
    Occupancy(4).refresh(random_field().density, seed=0, step=0)
    HashGrid(FieldConfig(kind="hash_grid", num_levels=2))


def test_threads_that_refresh_and_begin_side_by_side_draw_what_each_would_alone():
    def drawn(seed: int) -> list[torch.Tensor]:
        occupancy = Occupancy(resolution=16)
        for step in range(20):
            occupancy.refresh(lambda points: points[:, 0] + 2, seed=seed, step=step)  # each cell keeps where it was asked
        network = HashGrid(FieldConfig(num_levels=1, log2_table_size=4), seed=seed).trunk.weight.detach()
        return [occupancy.estimator.occs.clone(), network]

    alone = [drawn(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(drawn, range(8)))
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_empty_occupancy_has_bounds_without_volume():
    occupancy = Occupancy(8)
    occupancy.refresh(lambda p: torch.zeros(len(p)), seed=0, step=0)
    assert occupancy.fraction() == 0 and (occupancy.bounds() == 0).all()


def test_lambert_equals_the_toybox():
    """The toybox's own lit picture, from its albedo and normal pictures and our formula."""
    parts = build_parts(KINDS["mushroom"], [(0.8, 0.1, 0.1), (0.9, 0.9, 0.8), (0.2, 0.3, 0.9)][: len(KINDS["mushroom"].parts)])
    light = F.normalize(torch.tensor([0.3, 0.8, 0.5]), dim=0)
    options = {"supersample": 1, "background": (0.0, 0.0, 0.0), "ambient": 0.37, "light": light.tolist()}
    pictures = {s: render_object(parts, CAMERAS[0], 48, shading=s, **options)[0][0].reshape(3, -1).T for s in
                ("albedo", "normal", "lambert", "textureless")}  # fmt: skip
    hit = pictures["normal"].abs().sum(-1) > 0
    normals = (pictures["normal"][hit] - 0.5) * 2
    rows = {"direction": light.expand_as(normals), "ambient": torch.full((len(normals),), 0.37)}
    for shading in ("albedo", "lambert", "textureless"):
        ours = shade(pictures["albedo"][hit], normals, shading=shading, **rows)
        torch.testing.assert_close(ours, pictures[shading][hit], atol=1e-5, rtol=1e-5)


def test_preview_lights_equal_the_toybox():
    parts = build_parts(KINDS["ball"], [(0.5, 0.5, 0.5)])
    lights = headlights(CAMERAS, ambient=0.5)
    for view in range(2):
        default = render_object(parts, CAMERAS[view], 24)[0]
        given = render_object(parts, CAMERAS[view], 24, light=lights.direction[view].tolist(), ambient=0.5)[0]
        torch.testing.assert_close(default, given)


def test_lights_and_backgrounds_follow_the_toybox():
    """Means and spreads over many draws agree with those of training items."""
    items = [make_item(k) for k in range(1500)]
    cameras = Cameras.orbit([i.azimuth_degrees for i in items], [i.elevation_degrees for i in items])
    lights = sample_lights(cameras, generator=fit_stream(0))
    theirs = torch.tensor([i.light for i in items])
    towards = cameras.camera_to_world[:, :3, 3] / 2.7
    ours_cos, their_cos = (lights.direction * towards).sum(-1), (theirs * towards).sum(-1)
    torch.testing.assert_close(ours_cos.mean(), their_cos.mean(), atol=0.03, rtol=0)
    torch.testing.assert_close(ours_cos.std(), their_cos.std(), atol=0.03, rtol=0)
    torch.testing.assert_close(lights.ambient.mean(), torch.tensor([i.ambient for i in items]).mean(), atol=0.02, rtol=0)
    ours, theirs = sample_backgrounds(1500, generator=fit_stream(0)), torch.tensor([i.background for i in items])
    assert ours.min() >= 0 and ours.max() <= 1
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.06, rtol=0)


def test_backgrounds_keep_away_from_the_object():
    red = torch.tensor([[0.8, 0.1, 0.1]] * 9 + [[0.5, 0.5, 0.5]])
    backgrounds = sample_backgrounds(500, generator=fit_stream(0), avoid=red)
    assert (backgrounds - red[0]).norm(dim=-1).min() >= 0.15
    free = sample_backgrounds(500, generator=fit_stream(0))
    torch.testing.assert_close(sample_backgrounds(500, generator=fit_stream(0), avoid=red[:0]), free)
    assert (backgrounds != free).any(-1).float().mean() < 0.1


def test_unknown_shading_is_refused():
    with pytest.raises(ValueError, match="choose one of albedo, lambert, textureless, normal"):
        render(random_field(), None, CAMERAS, 4, background=GREY, shading="toon")


def test_traversal_refuses_rays_that_are_not_on_a_cuda_device():
    with pytest.raises(ValueError, match="put both on one CUDA device"):
        nerfacc_backend.march(Occupancy(4).estimator, torch.zeros(1, 3), torch.ones(1, 3), num_steps=10)


def test_a_killed_build_of_the_cuda_kernels_does_not_stop_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delattr(nerfacc, "csrc", raising=False)
    monkeypatch.setitem(sys.modules, "nerfacc.csrc", None)
    torchs_lock, header = tmp_path / "nerfacc_cuda" / "lock", tmp_path / "nerfacc_cuda" / "lerp_fix.h"
    torchs_lock.parent.mkdir()
    torchs_lock.touch()
    header.touch()  # killed while it was written

    def load(name, **_):
        assert not torchs_lock.exists() and "nerfacc_lerp" in header.read_text()
        return ModuleType(name)

    monkeypatch.setattr(cpp_extension, "load", load)
    nerfacc_backend.build_cuda_kernels()
    assert sys.modules["nerfacc.csrc"] is nerfacc.csrc and nerfacc.csrc.__name__ == "nerfacc_cuda"


def test_ninja_is_found_where_no_environment_is_activated(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delattr(nerfacc, "csrc", raising=False)
    monkeypatch.setitem(sys.modules, "nerfacc.csrc", None)
    assert not cpp_extension.is_ninja_available()
    monkeypatch.setattr(cpp_extension, "load", lambda name, **_: cpp_extension.verify_ninja_availability() or ModuleType(name))
    nerfacc_backend.build_cuda_kernels()
    nerfacc_backend.build_cuda_kernels()  # loaded: nothing to do
    assert nerfacc.csrc.__name__ == "nerfacc_cuda"


def test_threads_that_begin_side_by_side_load_the_kernels_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delattr(nerfacc, "csrc", raising=False)
    monkeypatch.setitem(sys.modules, "nerfacc.csrc", None)
    loads = []

    def load(name, **_):
        time.sleep(0.2)
        loads.append(name)
        return ModuleType(name)

    monkeypatch.setattr(cpp_extension, "load", load)
    with ThreadPoolExecutor(3) as pool:
        for built in [pool.submit(nerfacc_backend.build_cuda_kernels) for _ in range(3)]:
            built.result()
    assert loads == ["nerfacc_cuda"]


def test_kernels_that_do_not_build_say_what_is_missing(tmp_path, monkeypatch):
    def load(name, **_):
        raise OSError("CUDA_HOME environment variable is not set")

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delattr(nerfacc, "csrc", raising=False)
    monkeypatch.setattr(cpp_extension, "load", load)
    with pytest.raises(BackendUnavailable, match=r"CUDA_HOME .* not set\. Put nvcc .* torch cuts the rays"):
        nerfacc_backend.build_cuda_kernels()
    # A compiler is not asked twice, and what torch raises where it sees no GPU is a sentence.
    monkeypatch.setattr(cpp_extension, "load", lambda name, **_: [][0])
    with pytest.raises(BackendUnavailable, match="CUDA_HOME"):
        nerfacc_backend.build_cuda_kernels()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "other"))
    with pytest.raises(BackendUnavailable, match="torch sees no GPU to build for"):
        nerfacc_backend.build_cuda_kernels()


def test_kernels_need_compiling_on_cuda_until_they_are_built(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delitem(sys.modules, "nerfacc.csrc", raising=False)
    assert not needs_compiling("cpu") and needs_compiling("cuda") and needs_compiling(torch.device("cuda", 1))
    (tmp_path / "nerfacc_cuda").mkdir()
    (tmp_path / "nerfacc_cuda" / "nerfacc_cuda.so").touch()
    assert not needs_compiling("cuda")


@pytest.mark.requires_cuda
def test_flattened_samples_on_cuda_equal_batched_samples_on_cpu():
    field = random_field()
    occupancy = Occupancy(32)
    occupancy.refresh(field.density, seed=0, step=0, radius=0.95)
    on_cpu = render(field, occupancy, CAMERAS, 16, background=GREY, num_samples=512, radius=0.95)
    on_cuda = render(
        field.cuda(), occupancy.cuda(), CAMERAS.to("cuda"), 16, background=GREY.cuda(), num_samples=512, radius=0.95
    )
    torch.testing.assert_close(on_cuda.rgb.cpu(), on_cpu.rgb, atol=0.02, rtol=0)


def test_lights_can_be_indexed_by_view():
    lights = Lights(torch.eye(3), torch.tensor([0.1, 0.2, 0.3]))
    assert lights[1:].ambient.tolist() == pytest.approx([0.2, 0.3])


def test_spherical_harmonics_are_orthonormal():
    directions = F.normalize(torch.randn(200_000, 3, generator=fit_stream(3)), dim=-1)
    basis = spherical_harmonics(directions)
    torch.testing.assert_close(4 * torch.pi * basis.T @ basis / len(basis), torch.eye(9), atol=0.03, rtol=0)


def test_a_background_of_many_colours_stands_behind_its_own_pixels():
    field = random_field()
    learned = LearnedBackground(seed=1)(CAMERAS, 8).detach()
    plain = render(field, None, CAMERAS, 8, background=torch.zeros(len(CAMERAS), 3))
    picture = render(field, None, CAMERAS, 8, background=learned)
    torch.testing.assert_close(picture.rgb, plain.rgb + (1 - plain.alpha) * learned)
