"""The fit: it finds a ball, repeats itself, resumes exactly, and says how it collapsed."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nerf3d.cameras import Cameras
from nerf3d.errors import FitCollapsed, StateMismatch
from nerf3d.fields import FieldConfig, make_field
from nerf3d.fit import PRESETS, FitConfig, FitState, draw_scene, fit, object_colours, sphere_share
from nerf3d.fit.loop import resized
from nerf3d.guide import GuideReply
from nerf3d.regularisers import Schedule
from nerf3d.rendering import LearnedBackground, render_views
from nerf3d.streams import fit_stream, uniform
from nerf3d.toybox.items import build_parts
from nerf3d.toybox.kinds import KINDS
from nerf3d.toybox.render import render_object
from tests.nerf3d.image_guide import ImageGuide

TINY = FitConfig(
    num_steps=10,
    num_views=2,
    render_sizes=((0.0, 12), (0.4, 16)),
    guide_size=16,
    num_samples=16,
    occupancy_resolution=16,
    occupancy_every=3,
    field=FieldConfig(resolutions=(8, 16)),
)
BALL = build_parts(KINDS["ball"], [(0.9, 0.7, 0.1)])


def ball_guide(config, seed=0, **options):
    return ImageGuide(BALL, config, seed, **options)


def finish(steps):
    """Runs a fit to its end: all progress reports and the result."""
    reports = []
    while True:
        try:
            reports.append(next(steps))
        except StopIteration as end:
            return reports, end.value


def test_a_ball_is_found_from_its_pictures():
    config = FitConfig(
        num_steps=70, num_views=3, render_sizes=((0.0, 24),), guide_size=24, num_samples=32,
        occupancy_resolution=32, field=FieldConfig(resolutions=(8, 16, 32)),
    )  # fmt: skip
    reports, result = finish(fit(config, ball_guide(config), seed=0))
    cameras = Cameras.orbit([0.0, 120.0, 240.0], [0.0, 20.0, 50.0])
    white = torch.ones(3)
    rgb, alpha = render_views(result.field, result.occupancy, cameras, 48, background=white)
    true_rgb, true_alpha = render_object(BALL, cameras, 48)
    ours, theirs = alpha > 0.5, true_alpha > 0.5
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9
    assert (rgb - true_rgb).abs().mean() < 0.05
    assert reports[-1].metrics["guide"] < reports[0].metrics["guide"] / 5
    assert [r.step for r in reports] == list(range(1, 71))


@pytest.mark.parametrize("kind", ["dense_pyramid", "hash_grid"])
def test_a_stopped_and_resumed_fit_equals_one_that_never_stopped(kind):
    field = dataclasses.replace(TINY.field, kind=kind, num_levels=3, log2_table_size=10, finest_resolution=32)
    config = dataclasses.replace(TINY, field=field)
    guide = ball_guide(config)
    _, whole = finish(fit(config, guide, seed=0))
    steps = fit(config, guide, seed=0)
    for _ in range(5):
        saved = next(steps).state.state_dict()
    torch.rand(3)  # the global generator moves on between two processes
    reports, resumed = finish(fit(config, guide, seed=0, state=saved))
    assert [r.step for r in reports] == [6, 7, 8, 9, 10]
    for name, value in whole.field.state_dict().items():
        assert torch.equal(resumed.field.state_dict()[name], value), name
    assert torch.equal(whole.occupancy.estimator.occs, resumed.occupancy.estimator.occs)


@dataclasses.dataclass(frozen=True)
class AskedInParts:
    """A guide that answers when it must; `order` is what happened."""

    guide: ImageGuide
    order: list[str]

    def __call__(self, rgb, views, **when):
        raise AssertionError("it is asked in parts")

    def ask(self, rgb, views, *, first_view, num_views, **when):
        self.order.append(f"ask {first_view} of {num_views}")

        def answer():
            self.order.append(f"answer {first_view}")
            lights = draw_scene(self.guide.config, seed=self.guide.seed, step=when["step"]).lights
            mine = dataclasses.replace(self.guide, lights=lights[first_view : first_view + len(views)])
            return mine(rgb, views, **when)

        return answer


def test_views_in_two_halves_descend_as_in_one_and_resume_exactly():
    config = dataclasses.replace(TINY, num_views=4)
    halves = dataclasses.replace(config, guide_parts=2)
    guide = AskedInParts(ball_guide(halves), [])
    whole = next(fit(config, ball_guide(config), seed=0)).metrics
    steps = fit(halves, guide, seed=0)
    first = next(steps).metrics
    assert guide.order == ["ask 0 of 4", "ask 2 of 4", "answer 0", "answer 2"]
    for name in ("loss", "guide", "opacity", "gradient_norm"):
        assert first[name] == pytest.approx(whole[name], rel=1e-5), name
    saved = [next(steps).state.state_dict() for _ in range(3)][-1]
    _, parted = finish(steps)
    _, resumed = finish(fit(halves, guide, seed=0, state=saved))
    for name, value in parted.field.state_dict().items():
        assert torch.equal(resumed.field.state_dict()[name], value), name


def test_a_guide_that_only_answers_at_once_is_refused_in_parts():
    config = dataclasses.replace(TINY, guide_parts=2)
    with pytest.raises(TypeError, match="guide_parts is 2, but a ImageGuide has no `ask`"):
        next(fit(config, ball_guide(config), seed=0))
    with pytest.raises(ValueError, match="guide_parts is 3; give a number that divides num_views, 4"):
        FitConfig(guide_parts=3)


def test_two_fits_are_bit_equal_and_another_seed_differs():
    fields = [finish(fit(TINY, ball_guide(TINY, seed), seed=seed))[1].field.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(fields[0][k], fields[1][k]) for k in fields[0])
    assert any(not torch.equal(fields[0][k], fields[2][k]) for k in fields[0])


@pytest.mark.parametrize(("kind", "follows"), [("dense_pyramid", False), ("hash_grid", True)])
def test_a_fields_first_weights_follow_the_seed_where_they_are_random(kind, follows):
    config = dataclasses.replace(TINY, field=dataclasses.replace(TINY.field, kind=kind, num_levels=2))
    first, again, other = (list(FitState.create(config, seed=seed).field.parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True)) is not follows


def test_a_saved_state_is_a_copy_of_plain_tensors():
    steps = fit(TINY, ball_guide(TINY), seed=0)
    saved = next(steps).state.state_dict()
    before = {k: v.clone() for k, v in saved.items()}
    next(steps)
    assert all(torch.equal(saved[k], before[k]) for k in saved)
    assert all(v.is_contiguous() and not v.requires_grad for v in saved.values())


def test_a_state_of_another_seed_or_field_is_refused():
    saved = next(fit(TINY, ball_guide(TINY), seed=0)).state.state_dict()
    with pytest.raises(StateMismatch, match="has seed 0, this one has 1"):
        next(fit(TINY, ball_guide(TINY), seed=1, state=saved))
    other = dataclasses.replace(TINY, field=FieldConfig(resolutions=(8,)))
    with pytest.raises(StateMismatch, match="the configuration that it was started with"):
        next(fit(other, ball_guide(other), seed=0, state=saved))
    with pytest.raises(StateMismatch, match="counters"):
        FitState.create(TINY, seed=0).load_state_dict({})


def test_the_gradient_form_descends_as_the_target_form_does():
    """With the gradient of the squared error the fit takes the very steps that the target form takes."""
    config = dataclasses.replace(TINY, background=Schedule(0.0))
    targets = finish(fit(config, ball_guide(config), seed=0))[1].field
    gradients = finish(fit(config, ball_guide(config, with_target=False), seed=0))[1].field
    for one, other in zip(targets.parameters(), gradients.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=0)


class Constant:
    """A guide that wants every picture to be one colour, or the background (None), or speaks nonsense."""

    def __init__(self, colour=None, gradient=None):
        self.colour, self.gradient = colour, gradient

    def __call__(self, rgb, views, *, background, step, num_steps):
        if self.gradient is not None:
            return GuideReply(torch.full_like(rgb, self.gradient))
        wanted = background if self.colour is None else torch.tensor(self.colour).expand(len(rgb), 3)
        target = wanted[:, :, None, None].expand_as(rgb)
        return GuideReply(2 * (rgb - target), target)


def test_a_fit_that_loses_its_object_says_so():
    config = dataclasses.replace(TINY, num_steps=60, density_rate=0.5)
    with pytest.raises(FitCollapsed, match=r"at step \d+: the object vanished .* under 0.005 .* lower sparsity") as error:
        finish(fit(config, Constant(), seed=0))
    assert error.value.kind == "empty" and error.value.step < 60


def test_a_fit_that_fills_up_says_so():
    config = dataclasses.replace(TINY, num_steps=60, density_rate=0.5)
    with pytest.raises(FitCollapsed, match=r"at step \d+: the volume filled up with fog .* higher sparsity") as error:
        finish(fit(config, Constant((0.5, 0.2, 0.1)), seed=0))
    assert error.value.kind == "full"


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf")])
def test_a_guide_that_is_not_finite_is_named(nonsense):
    with pytest.raises(FitCollapsed, match=r"at step 0: a number stopped being finite \(loss is") as error:
        finish(fit(TINY, Constant(gradient=nonsense), seed=0))
    assert error.value.kind == "not_finite"


def test_scenes_cover_all_sides_and_repeat():
    config = FitConfig()
    first, again = (draw_scene(config, seed=3, step=7) for _ in range(2))
    assert torch.equal(first.cameras.camera_to_world, again.cameras.camera_to_world)
    assert torch.equal(first.lights.direction, again.lights.direction) and torch.equal(first.background, again.background)
    gaps = first.cameras.azimuth_degrees.sort().values
    assert (gaps.diff() < 180).all()
    elevations = torch.cat([draw_scene(config, seed=0, step=s).cameras.elevation_degrees for s in range(200)])
    assert elevations.min() >= -10 and elevations.max() <= 65
    assert (elevations < 40).float().mean().item() == pytest.approx(0.78, abs=0.05)


def test_groups_are_evenly_spaced_on_one_background():
    config = FitConfig(num_views=8, group_views=4, group_jitter=8.0)
    elevations = []
    for step in range(50):
        scene = draw_scene(config, seed=0, step=step)
        azimuths = scene.cameras.azimuth_degrees.view(2, 4)
        gaps = (azimuths.diff(dim=1) % 360).flatten()
        torch.testing.assert_close(gaps, torch.full((6,), 90.0), rtol=0, atol=1e-3)
        backgrounds = scene.background.view(2, 4, 3)
        assert torch.equal(backgrounds, backgrounds[:, :1].expand_as(backgrounds))
        spread = scene.cameras.elevation_degrees.view(2, 4)
        assert (spread.amax(dim=1) - spread.amin(dim=1) <= 16).all()
        elevations.append(spread[:, 0])
    assert torch.cat(elevations).std() > 10
    assert len(scene.lights.direction.unique(dim=0)) == 8


def test_object_colours_are_those_of_dense_places():
    field = make_field(FieldConfig(resolutions=(8,), blob_scale=30.0, blob_radius=0.6))
    field.colour_grids[0].data[:, 0] = 9.0
    colours = object_colours(field, generator=fit_stream(0))
    assert len(colours) > 50 and (colours[: len(colours) // 2, 0] > 0.99).all()
    assert len(object_colours(field, generator=fit_stream(0), density=1e9)) == 0


def test_the_largest_opacity_is_the_disc_of_the_sphere():
    assert 0.7 < sphere_share(FitConfig()) < 0.9


def test_presets_are_named_and_unknown_ones_refused():
    assert [FitConfig.preset(n).num_steps for n in ("draft", "default", "fine")] == [160, 400, 1200]
    assert FitConfig.preset("draft", num_views=2).num_views == 2
    assert FitConfig.preset("draft", field=FieldConfig(kind="hash_grid")).density_rate == 0.01
    with pytest.raises(ValueError, match="choose one of draft, default, fine"):
        FitConfig.preset("finest")


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"num_steps": 0}, "num_steps is 0; give 1 to 1,000,000"),
        ({"num_views": 0}, "num_views is 0; give 1 to 1024"),
        ({"num_samples": 0}, "num_samples is 0; give 1 to 4096"),
        ({"elevations": (40.0, -10.0, 65.0)}, "three ascending angles"),
        ({"radius": -1.0}, "radius is -1.0; give a distance over 1 metre"),
        ({"fov_degrees": 180.0}, "fov_degrees is 180.0"),
        ({"density_rate": -1.0}, "density_rate is -1.0; give a learning rate"),
        ({"patience": -1.0}, "patience is -1.0; give a share"),
        ({"occupancy_resolution": 0}, "occupancy_resolution is 0"),
        ({"render_sizes": ((0.0, 0),)}, "4 to 1024 pixels each"),
        ({"render_sizes": ((0.0, 32), (0.6, 64), (0.4, 48))}, "in order"),
    ],
)
def test_settings_out_of_range_are_refused(bad, sentence):
    with pytest.raises(ValueError, match=sentence):
        FitConfig(**bad)


def test_a_guide_that_wants_smaller_pictures_sees_and_moves_every_ray():
    rendered = uniform((1, 3, 64, 64), fit_stream(0, "rendered")).requires_grad_()
    shown = resized(rendered, 16)
    assert shown.shape == (1, 3, 16, 16)
    assert shown.std() < 0.5 * F.interpolate(rendered, size=(16, 16), mode="bilinear").std()  # means, not single rays
    shown.sum().backward()
    assert rendered.grad.min() > 0.02 and rendered.grad.max() < 0.1  # 1/16 but for the border, where windows are cut
    enlarged = F.interpolate(rendered, size=(96, 96), mode="bilinear", align_corners=False)
    assert torch.equal(resized(rendered, 96), enlarged) and resized(rendered, 64) is rendered


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_renders_more_than_its_guide_is_shown(name):
    config = FitConfig.preset(name)
    assert max(size for _, size in config.render_sizes) <= config.guide_size


def test_render_sizes_start_at_the_first_step():
    assert [FitConfig().render_size(p) for p in (0.0, 0.39, 0.4, 0.99)] == [32, 32, 64, 64]
    with pytest.raises(ValueError, match="the size of the first step"):
        FitConfig(render_sizes=((0.2, 32),))


def test_distances_and_fields_of_view_are_drawn_from_their_ranges():
    config = dataclasses.replace(
        TINY, num_views=512, radius_range=(1.5, 2.0), fov_range=(40.0, 70.0), elevations=(-10.0, 45.0, 45.0), low_view_share=1.0
    )
    cameras = draw_scene(config, seed=0, step=0).cameras
    for values, (low, high) in ((cameras.radius, (1.5, 2.0)), (cameras.fov_degrees, (40.0, 70.0))):
        assert (
            low <= float(values.min()) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < float(values.max()) <= high
        )
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    torch.testing.assert_close(cameras.camera_to_world[:, :3, 3].norm(dim=-1), cameras.radius)
    by_fov = draw_scene(dataclasses.replace(config, radius_by_fov=True, radius_range=(0.8, 1.0)), seed=0, step=0).cameras
    half_height = by_fov.radius * (by_fov.fov_degrees / 2).deg2rad().tan()
    assert float(half_height.min()) >= 0.7999 and float(half_height.max()) <= 1.0001


def test_directions_on_the_sphere_cover_equal_areas():
    """threestudio's: the sine of the elevation is uniform between those of the range's ends, as shares of the half circle."""
    config = dataclasses.replace(TINY, num_views=1024, elevations=(-89.99, 89.99, 89.99), sphere_share=1.0)
    sines = draw_scene(config, seed=0, step=0).cameras.elevation_degrees.deg2rad().sin().sort().values
    torch.testing.assert_close(sines, torch.linspace(-1, 1, 1024), atol=0.08, rtol=0)


def test_a_share_of_the_lit_steps_is_lit_and_lights_stand_around():
    config = dataclasses.replace(TINY, num_steps=1000, lit_from=0.2, lit_share=0.75, textureless_share=0.5, lights="around")
    scenes = [draw_scene(config, seed=0, step=step) for step in range(1000)]
    shadings = [scene.shading for scene in scenes]
    assert set(shadings[:200]) == {"albedo"}
    for shading, share in (("albedo", 0.25), ("lambert", 0.375), ("textureless", 0.375)):
        assert shadings[200:].count(shading) / 800 == pytest.approx(share, abs=0.05)
    lights = torch.cat([scene.lights.direction for scene in scenes])
    cameras = torch.cat([scene.cameras.camera_to_world[:, :3, 3] for scene in scenes])
    torch.testing.assert_close(lights.norm(dim=-1), torch.ones(2000))
    # Of c + n with n standard normal and |c| = 2.7, directions gather around c.
    cosine = (lights * F.normalize(cameras, dim=-1)).sum(-1)
    expected = F.normalize(cameras + torch.randn(2000, 3, generator=fit_stream(9)), dim=-1)
    assert float(cosine.mean()) == pytest.approx(float((expected * F.normalize(cameras, dim=-1)).sum(-1).mean()), abs=0.02)
    assert bool((scenes[0].lights.ambient == 0.1).all())


def test_a_learned_background_takes_on_what_stands_behind_the_object_and_is_resumed():
    """The guide wants a ball before sky blue; the field starts empty of it, so the background has to become blue."""
    config = dataclasses.replace(TINY, backgrounds="learned", background_rate=0.1, num_steps=60, patience=1.0)
    sky = torch.tensor([0.2, 0.5, 0.9])

    def guide(rgb, views, *, background, step, num_steps):
        assert background.shape == (len(rgb), 3)
        return GuideReply(2 * (rgb - sky[:, None, None]), None)

    steps = fit(config, guide, seed=0)
    for _ in range(30):
        progress = next(steps)
    saved = progress.state.state_dict()
    assert any(name.startswith("background.") for name in saved)
    *_, progress = steps
    before, seen = (background(Cameras.orbit([0.0, 120.0], 20.0), 8).detach().mean((0, 2, 3)) for background in (
        LearnedBackground(seed=0), progress.state.background
    ))  # fmt: skip
    assert float((seen - sky).norm()) < 0.4 * float((before - sky).norm())
    *_, last = fit(config, guide, seed=0, state=saved)
    for name, value in progress.state.background.state_dict().items():
        assert torch.equal(last.state.background.state_dict()[name], value), name


def test_a_summed_guide_weighs_as_many_times_more_as_a_picture_has_values():
    from nerf3d.fit.loop import _guide_loss

    shown, reply = torch.rand(2, 3, 5, 5), GuideReply(torch.rand(2, 3, 5, 5), None)
    torch.testing.assert_close(_guide_loss(shown, reply, "sum"), 75 * _guide_loss(shown, reply, "mean"))
