"""3D recipes of families of priors: the numbers that follow from the published ones, who chooses, and whose value counts."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from diffusion.distillation import timestep_range
from jobs.errors import InputError
from nerf3d.fields.hash_grid import level_resolutions
from orchestrator.settings.compose import Settings, compose
from orchestrator.settings.recipes import RECIPES


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for part, content in {
        "scheduler/scheduler_config": {"_class_name": "PNDMScheduler"},
        "unet/config": {"cross_attention_dim": 768, "sample_size": 64},
        "vae/config": {"block_out_channels": [128, 256, 512, 512]},
    }.items():
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    return str(tmp_path)


def of(folder: str, *overrides: str, **options: str) -> Settings:
    return compose(overrides, options={"prior.source": folder, **options})


def test_stable_diffusion_is_distilled_as_threestudio_does(folder: str) -> None:
    """configs/dreamfusion-sd.yaml, step by step where it counts steps."""
    settings = of(folder)
    fit, distillation, field = settings.fit, settings.distillation, settings.fit.field
    assert settings.recipe == "dreamfusion-sd" and settings.text_to_3d("a cup", seed=0).recipe == "dreamfusion-sd"
    assert (fit.num_steps, fit.num_views, fit.render_size(0), fit.render_size(0.99), fit.num_samples) == (
        10_000,
        1,
        64,
        64,
        512,
    )
    assert (fit.radius_range, fit.fov_range, fit.elevations[0], fit.elevations[2]) == ((1.5, 2.0), (40, 70), -10, 45)
    assert distillation.guidance_scale - 1 == 100 and distillation.form == "sds" and distillation.weighting == "sigma2"
    assert {timestep_range(progress, distillation) for progress in (0.0, 0.5, 1.0)} == {(0.02, 0.98)}
    assert (distillation.front_degrees, distillation.back_degrees, distillation.overhead_degrees) == (45, 45, 60)
    unlit = [step for step in range(10_000) if not step >= fit.lit_from * fit.num_steps]
    assert len(unlit) == 2001  # ambient_only_steps
    orientation = [fit.orientation.value(step / fit.num_steps) for step in (0, 2500, 5000, 9999)]
    assert orientation == [10, 505, 1000, 1000]  # lambda_orient: [0, 10., 1000., 5000]
    assert fit.sparsity.value(0) == fit.sparsity.value(1) == 1 and fit.guide_weight.value(0.5) == 1
    for term in (fit.opaqueness, fit.background, fit.depth_variance, fit.density_variation, fit.outer_density):
        assert term.value(0) == term.value(0.7) == term.value(1) == 0
    distance = torch.linspace(0, 0.99, 12)
    ours = field.density_bias + field.blob_scale * (1 - distance / field.blob_radius).clamp_min(0)
    torch.testing.assert_close(ours, 10 * (1 - distance / 0.5), atol=1e-5, rtol=0)  # blob_magic3d
    resolutions = level_resolutions(field)
    assert resolutions[:2] == [16, int(16 * 1.447269237440378)] and resolutions[-1] == 4096
    assert fit.guide_size == 512 and settings.origins["fit.guide_size"] == "the prior's own size"
    assert settings.origins["fit.num_steps"] == settings.origins["distillation.form"] == "recipe dreamfusion-sd"


def test_the_second_stage_goes_on_at_a_higher_resolution(folder: str) -> None:
    first, both = of(folder), of(folder, preset="fine")
    assert both.recipe == "dreamfusion-sd-refined" and both.fit.num_steps == 15_000
    for step in range(0, 10_000, 500):
        there, here = (settings.fit for settings in (first, both))
        at, now = step / 10_000, step / 15_000
        assert here.render_size(now) == there.render_size(at) == 64
        assert here.orientation.value(now) == pytest.approx(there.orientation.value(at))
        assert (step >= here.lit_from * 15_000) == (step >= there.lit_from * 10_000)
        assert timestep_range(now, both.distillation) == (0.02, 0.98)
    assert both.fit.render_size(10_000 / 15_000) == 256
    assert timestep_range(10_000 / 15_000, both.distillation) == (0.02, 0.5)


def test_a_draft_is_shorter_and_says_so(folder: str) -> None:
    settings = of(folder, preset="draft")
    assert settings.fit.num_steps == 4000 and settings.fit.render_size(0) == 64
    assert settings.origins["fit.num_steps"].startswith("preset draft: two fifths")
    assert settings.fit.orientation.value(0.5) == 1000


def test_mvdream_anneals_both_ends_and_judges_groups(folder: str) -> None:
    settings = of(folder, recipe="mvdream-sd21")
    distillation = settings.distillation
    assert timestep_range(0, distillation) == (0.98, 0.98)
    assert timestep_range(0.8, distillation) == pytest.approx((0.02, 0.5))
    assert (distillation.guidance_scale, distillation.guidance_rescale, distillation.rescale_over) == (50, 0.5, "group")
    assert [settings.fit.render_size(progress) for progress in (0.0, 0.4999, 0.5)] == [64, 64, 256]


def test_what_the_user_chooses_takes_the_place_of_the_recipes(folder: str) -> None:
    told = of(folder, "fit.num_steps=300", "distillation=x0")
    assert told.fit.num_steps == 300 and told.distillation.form == "x0" and told.distillation.view_words == "eight"
    assert told.fit.num_samples == 512 and "fit.num_steps" not in told.origins
    pyramid = of(folder, "field=dense_pyramid")
    assert (pyramid.fit.field.kind, pyramid.fit.density_rate) == ("dense_pyramid", 0.12)
    toybox = of(folder, recipe="toybox")
    assert toybox.fit == dataclasses.replace(compose().fit, guide_size=512) and toybox.distillation == compose().distillation
    assert compose(["recipe=dreamfusion-sd"]).distillation.form == "sds"


def test_the_toybox_keeps_its_own_recipe_and_a_prior_may_name_one(folder: str) -> None:
    assert compose().recipe == "toybox" and not compose().origins
    (Path(folder) / "dreamkiln.json").write_text(json.dumps({"recipe": "mvdream-sd21"}))
    assert of(folder).recipe == "mvdream-sd21"
    (Path(folder) / "dreamkiln.json").write_text(json.dumps({"recipe": "mvdreams"}))
    with pytest.raises(InputError, match=r"names the recipe 'mvdreams'.*mvdream-sd21"):
        of(folder)


def test_every_recipe_sets_what_there_is_and_says_where_from() -> None:
    for name, recipe in RECIPES.items():
        assert compose([f"recipe={name}"]).recipe == name
        assert recipe.source and (not recipe.fine or recipe.fine in RECIPES)
    with pytest.raises(InputError, match=r"There is no recipe 'dreamfusion'.*dreamfusion-sd"):
        compose(["recipe=dreamfusion"])
