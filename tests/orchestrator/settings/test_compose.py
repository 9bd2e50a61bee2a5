"""Hydra's groups and overrides as typed settings."""

from __future__ import annotations

import pytest

from diffusion.distillation import DistillationConfig
from jobs.errors import InputError
from nerf3d.fit import PRESETS, FitConfig
from nerf3d.mesh import MeshConfig
from nerf3d.regularisers import Schedule
from orchestrator.settings.compose import CONFIG_FOLDER, compose
from orchestrator.settings.groups import ExportSettings, RuntimeSettings


def test_without_overrides_every_setting_is_its_dataclass_default():
    settings = compose()
    assert settings.fit == FitConfig.preset("default")
    assert settings.distillation == DistillationConfig()
    assert settings.mesh == MeshConfig()
    assert settings.export == ExportSettings()
    assert settings.runtime == RuntimeSettings()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_the_fits_own_preset(preset):
    assert compose(options={"preset": preset}).fit == FitConfig.preset(preset)


def test_every_choice_of_every_group_composes():
    for folder in filter(lambda path: path.is_dir(), CONFIG_FOLDER.iterdir()):
        for file in folder.glob("*.yaml"):
            compose([f"{folder.name}={file.stem}"])


def test_overrides_come_after_presets_and_options_after_overrides():
    settings = compose(
        ["fit.num_steps=7", "images.num_steps=3", "field=hash_grid", "fit.sparsity=0.5", "fit.background.start=2"],
        options={"preset": "draft", "images.num_steps": 4, "prior.source": "/a b=c/${x}[1]", "runtime": "inline"},
    )
    assert (settings.fit.num_steps, settings.images["num_steps"], settings.fit.field.kind) == (7, 4, "hash_grid")
    assert settings.fit.sparsity == Schedule(0.5) and settings.fit.background.start == 2.0
    assert settings.prior.source == "/a b=c/${x}[1]" and settings.runtime.kind == "inline"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("runtime.num_threads=-1", "num_threads is -1"),
        ("runtime.checkpoint_every=0", "checkpoint_every is 0"),
        ("runtime.preview_every=-1", "preview_every is -1"),
        ("export.size_metres=0", "size_metres is 0.0"),
        ("export.turntable_size=33", "turntable_size is 33"),
        ("export.preview_size=8", "preview_size is 8"),
        ("export.turntable_frames=-1", "turntable_frames is -1"),
        ("export.formats=[fbx]", "no mesh format fbx"),
        ("hydra.run.dir=x", "no setting 'hydra.run.dir'"),
        ("base=draft", "no setting 'base'"),
    ],
)
def test_settings_that_are_refused(setting, reason):
    with pytest.raises(InputError, match=reason):
        compose([setting])
