"""A folder of the user's own with files called like our packages, or like the standard library's: nothing of it is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import InputError
from orchestrator.host.state_folder import StateFolder
from orchestrator.runtimes.ray_start import _OwnPaths, start_ray
from tests.orchestrator.conftest import COMMAND, command_environment

PLANTED = "from pathlib import Path\nPath({path!r}).write_text(__name__)\nraise ImportError('planted')\n"


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    """The folder; a planted file that is run leaves `tmp_path`/ran."""
    folder = tmp_path / "mine"
    for name in ("jobs", "diffusion", "nerf3d"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(PLANTED.format(path=str(tmp_path / "ran")))
    for name in ("secrets", "ray", "hydra"):
        (folder / f"{name}.py").write_text(PLANTED.format(path=str(tmp_path / "ran")))
    return folder


def run(shadowed: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        arguments, cwd=shadowed, env=command_environment(), capture_output=True, text=True, timeout=300, **options
    )
    assert not (shadowed.parent / "ran").exists(), (shadowed.parent / "ran").read_text()
    return done


def test_neither_the_command_nor_the_orchestrator_looks_into_the_current_folder(shadowed):
    assert run(shadowed, *COMMAND, "settings", "fit").returncode == 0
    options = json.dumps({"state": str(shadowed.parent / "state"), "port": -5})
    done = run(shadowed, sys.executable, "-m", "orchestrator.daemon.daemon", input=options)
    assert "--port is -5" in done.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RAY_TMPDIR": "/nowhere/tmp"}, "Ray needs /nowhere/tmp, which does not exist: set RAY_TMPDIR to a folder"),
        ({"HOME": "/nowhere/home"}, "Ray needs /nowhere/home, which does not exist: set HOME, or RAY_AUTH_TOKEN"),
    ],
)
def test_a_place_that_ray_needs_is_named_with_what_to_set(monkeypatch, variables, words):
    for name in ("RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        start_ray()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("DREAMKILN_STATE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(InputError, match="no home folder for the orchestrator's state; set HOME or DREAMKILN_STATE"):
        StateFolder.find()


def test_workers_look_where_the_command_does():
    paths = _OwnPaths()
    paths.extend([sys.path[-1], "/nowhere"])
    assert paths == [sys.path[-1]]


@pytest.mark.slow
def test_workers_on_ray_do_not_look_into_the_current_folder(shadowed, tiny_prior):
    options = ("--prior", str(tiny_prior), "--num-images", "2", "--steps", "2", "--local", "--out", "o")
    done = run(shadowed, *COMMAND, "images", "a red table", *options)
    assert done.returncode == 0, done.stderr
    assert (shadowed / "o" / "000000001.png").exists()
