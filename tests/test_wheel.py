"""The wheel: built from what is under version control, installed without dependencies, used from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    wanted = ("dreamkiln/", "diffusion/", "jobs/", "nerf3d/", "orchestrator/", "pyproject.toml", "README.md", "LICENSE")
    for name in names:
        if name.startswith(wanted) and (ROOT / name).exists():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    if not names:
        pytest.skip("this is no checkout")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run("-m", "pip", "wheel", *options, folder / "source", cwd=folder)
    (built,) = folder.glob("dreamkiln-*.whl")
    return built


def test_it_holds_the_packages_their_data_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "dreamkiln",
        "diffusion",
        "jobs",
        "nerf3d",
        "orchestrator",
    }
    assert {"dreamkiln/py.typed", "orchestrator/settings/config/config.yaml", "diffusion/toybox_prior/model_index.json"} <= {
        *names
    }


def test_it_works_from_another_folder(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    assert (site / "bin/dreamkiln").exists()
    found = run(
        "-c", "import dreamkiln, jobs.specs; print(dreamkiln.__file__, jobs.specs.__file__)", cwd=tmp_path, PYTHONPATH=str(site)
    )
    assert found.split() == [str(site / "dreamkiln/__init__.py"), str(site / "jobs/specs.py")]
    options = ["--num-images", 1, "--steps", 1, "--runtime", "inline", "--out", "out", "runtime.num_threads=1"]
    run("-m", "dreamkiln", "images", "a red house", *options, cwd=tmp_path, PYTHONPATH=str(site))
    assert (tmp_path / "out/grid.png").exists()


@pytest.mark.slow
def test_a_full_install_draws_a_picture(wheel: Path, tmp_path: Path):
    """Every dependency from the registry, two gigabytes of them: nothing of this environment is seen."""
    run("-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    for packages in (["torch"], [wheel]):
        done = subprocess.run([*map(str, pip), *map(str, packages)], cwd=tmp_path, capture_output=True, text=True)
        if "NameResolutionError" in done.stderr or "No matching distribution" in done.stderr:
            pytest.skip(f"the registry cannot be reached: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for options in (["--num-images", "1", "--steps", "1", "--runtime", "inline", "--out", "out"], ["--version"]):
        words = ["images", "a red house", *options] if "--out" in options else options
        command = [tmp_path / "venv/bin/dreamkiln", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/grid.png").exists()
    checked = subprocess.run([python, "-m", "pip", "check"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
