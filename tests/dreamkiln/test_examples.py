"""The scripts of examples/, run as they stand, with a prior and settings that take a second."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.daemon.reports import Succeeded
from orchestrator.prior import local
from tests.fakes import FAST_OVERRIDES, load_fake_prior
from tests.orchestrator.client.test_waiting_client import ServedRig, rig  # noqa: F401 - a fixture

FOLDER = Path(__file__).parents[2] / "examples"
FAST = [*FAST_OVERRIDES, "fit.num_steps=3", "runtime.num_threads=1", "export.turntable_frames=0", "export.preview_size=16"]


@pytest.fixture
def example(tmp_path, monkeypatch) -> Callable[..., None]:
    """example("mesh", *settings), in an empty folder."""
    monkeypatch.setattr(local, "load_prior", load_fake_prior)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *settings: str) -> None:
        shutil.copy(FOLDER / f"{name}.py", tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *settings])
        runpy.run_path(str(tmp_path / f"{name}.py"), run_name="__main__")

    return run


def test_every_example_is_short_and_has_a_test():
    scripts = {file.stem: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.py")}
    assert set(scripts) == {"image", "mesh", "own_loss", "own_field", "table"}
    assert all(len(text.splitlines()) <= 35 for text in scripts.values())


def test_image(example, tmp_path):
    example("image", "images.num_steps=2")
    with Image.open(tmp_path / "duck-3.png") as picture:
        assert picture.size == (16, 16)


def test_mesh(example, tmp_path, capsys):
    example("mesh", *FAST)
    example("mesh", *FAST)
    assert capsys.readouterr().out.splitlines() == [f"{did}: mushroom/mesh.glb" for did in ("start", "nothing to do")]
    assert (tmp_path / "mushroom.ply").stat().st_size > 1000 and (tmp_path / "mushroom.stl").stat().st_size > 1000


@pytest.mark.parametrize(("name", "setting", "out"), [("own_loss", "form", "house"), ("own_field", "kind", "lamp")])
def test_own_code(example, tmp_path, name, setting, out):
    example(name, *FAST)
    manifest = (tmp_path / out / "manifest.json").read_text(encoding="utf-8")
    assert f'"{setting}": "{tmp_path / name}.py:' in manifest and '"code"' in manifest


def test_a_mirrored_field_makes_a_symmetric_mesh(example, tmp_path):
    import numpy as np

    import dreamkiln

    field = runpy.run_path(str(FOLDER / "own_field.py"))["MirroredPyramid"](dreamkiln.FieldConfig(resolutions=(4, 12)))
    for grid in field.parameters():
        grid.data.normal_()
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (100, 3))
    import torch

    there = torch.tensor(points, dtype=torch.float32)
    torch.testing.assert_close(field.density(there), field.density(there * torch.tensor([-1.0, 1.0, 1.0])))


def test_table(example, monkeypatch, capsys, rig: ServedRig):  # noqa: F811
    monkeypatch.setenv("DREAMKILN_STATE", str(rig.folder.path))
    rig.workers.script = [Succeeded(metrics={"num_rows": 3, "num_succeeded": 3, "num_failed": 0, "did": "drawn"})]
    example("table")
    assert capsys.readouterr().out.splitlines()[1] == "3 pictures in pictures"
