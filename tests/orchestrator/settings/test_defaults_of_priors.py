"""A command's image settings under another prior than the toybox."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs.specs import ImagesSpec
from orchestrator.settings.compose import compose


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": "PNDMScheduler"}))
    return str(tmp_path)


def test_no_value_of_the_toybox_reaches_another_prior(folder: str) -> None:
    settings = compose(options={"prior.source": folder})
    job = settings.image_job("a cat", seed=0)
    assert (job.sampler, job.num_steps, job.guidance_scale, job.guidance_rescale) == ("pndm", 50, 7.5, 0.0)
    assert settings.origins["images.sampler"] == "scheduler_config.json, PNDMScheduler"
    spacing = "scheduler_config.json, PNDMScheduler: the usual timesteps of that class"
    assert job.timestep_spacing is None and settings.origins["images.timestep_spacing"] == spacing


@pytest.mark.parametrize(
    ("tensor", "options", "size", "layer"),
    [
        ("cond_stage_model.transformer.x", "", 512, "last"),
        ("cond_stage_model.model.x", "?prediction_type=v_prediction", 768, "last but one"),
        ("conditioner.embedders.1.model.x", "", 1024, "last but one"),
    ],
)
def test_size_and_clip_layer_are_said(tensor: str, options: str, size: int, layer: str, tmp_path: Path) -> None:
    save_file({tensor: torch.zeros(1)}, tmp_path / "a.safetensors")
    settings = compose(["images.height=256"], options={"prior.source": f"{tmp_path / 'a.safetensors'}{options}"})
    assert settings.origins["images.width"] == f"the prior's own {size} pixels" and "images.height" not in settings.origins
    assert f"the text towers' {layer} layer, unless" in settings.origins["prior.source"]
    assert settings.fit.guide_size == size


def test_what_the_user_says_counts_even_where_it_is_the_toybox_s_value(folder: str) -> None:
    usual = ImagesSpec(prompt="any")
    settings = compose([f"images.num_steps={usual.num_steps}"], options={"prior.source": folder, "images.guidance_scale": 3.0})
    job = settings.image_job("a cat", seed=0)
    assert (job.num_steps, job.guidance_scale, job.sampler) == (usual.num_steps, 3.0, "pndm")
    assert "images.num_steps" not in settings.origins


def test_a_hash_grid_takes_its_own_rates_unless_told() -> None:
    """Those of `FitConfig.preset`; its network would break at a plain grid's."""
    settings = compose(["field=hash_grid"])
    assert (settings.fit.density_rate, settings.fit.colour_rate) == (0.01, 0.01)
    assert settings.origins["fit.density_rate"] == "the hash grid's own rate"
    told = compose(["field=hash_grid", "fit.density_rate=0.12"])
    assert (told.fit.density_rate, told.fit.colour_rate) == (0.12, 0.01)
    assert compose(["fit=draft"]).fit.density_rate == 0.12


def test_the_toybox_keeps_its_own() -> None:
    settings = compose()
    assert settings.image_job("a cat", seed=0) == ImagesSpec(prompt="a cat") and not settings.origins
