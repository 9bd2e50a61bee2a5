"""`import dreamkiln`: light, complete, and the same functions as the command line."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dreamkiln
from dreamkiln._packages import check_packages
from orchestrator.prior import local
from tests.fakes import FAST_OVERRIDES, load_fake_prior

ROOT = Path(__file__).parents[2]
SMALL = {"images.num_steps": 2, "runtime.kind": "inline", "runtime.num_threads": 1}


def python(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process that imports from these folders first, and then from this checkout."""
    path = os.pathsep.join(map(str, [*folders, ROOT]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(local, "load_prior", load_fake_prior)


def test_every_name_is_there_sorted_and_known_to_type_checkers():
    assert dreamkiln.__all__ == sorted(dreamkiln.__all__)
    assert all(getattr(dreamkiln, name).__doc__ for name in dreamkiln.__all__ if name not in ("Event",))
    tree = ast.parse((ROOT / "dreamkiln/__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == dreamkiln._HOME_OF and (ROOT / "dreamkiln/py.typed").exists()
    with pytest.raises(AttributeError, match=r"has no attribute 'txt_to_3d'; it has: .*text_to_3d"):
        _ = dreamkiln.txt_to_3d


def test_importing_it_brings_nothing_heavy():
    heavy = "{'torch', 'ray', 'hydra', 'numpy', 'typer', 'jobs', 'diffusion'}"
    done = python(f"import sys, dreamkiln; print({heavy} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


def test_help_reads_well():
    done = python("import dreamkiln; help(dreamkiln)")
    assert "dreamkiln.text_to_3d(" in done.stdout and "group.key" in done.stdout and done.returncode == 0


def test_a_package_of_the_same_name_is_named(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/__init__.py").touch()
    done = python("import dreamkiln", tmp_path)
    assert f"The package 'jobs' comes from {tmp_path}/jobs/__init__.py" in done.stderr and "of its own" in done.stderr
    check_packages()


def test_pictures_in_memory_are_those_of_the_job(tmp_path):
    outcome = dreamkiln.images("a red ball", {**SMALL, "images.num_images": 3}, seed=5, out=tmp_path / "run")
    from PIL import Image

    prior = dreamkiln.load_prior()
    pictures = dreamkiln.generate(prior, "a red ball", {"images.num_steps": 2}, num_images=3, seed=5)
    assert pictures.dtype == np.uint8 and pictures.shape == (3, 16, 16, 3)
    for index, picture in enumerate(pictures):
        with Image.open(outcome.folder / f"{index:09d}.png") as file:
            assert (np.asarray(file) == picture).all()


def test_a_table_here(tmp_path):
    (tmp_path / "t.txt").write_text("a red ball\na blue ball\n")
    job = dreamkiln.table_job(tmp_path / "t.txt", SMALL, out=tmp_path / "out", output_format="png")
    outcome = dreamkiln.run(job)
    assert isinstance(outcome, dreamkiln.BatchOutcome) and outcome.report["num_succeeded"] == 2


def test_a_mesh_in_memory_and_on_disk(tmp_path):
    seen = []
    settings = {"runtime.kind": "inline"}
    overrides = [*FAST_OVERRIDES, "fit.num_steps=3"]
    result = dreamkiln.fit(dreamkiln.load_prior(), "a red ball", settings, overrides=overrides, on_event=seen.append)
    assert result.field is not None and any(isinstance(event, dreamkiln.Checkpoint) for event in seen)
    for name in ("a.glb", "a.gltf", "a.obj", "a.ply", "a.stl", "a.3mf", "a.usdz"):
        assert tmp_path / name in dreamkiln.write_mesh(result.mesh, tmp_path / name)
    with pytest.raises(dreamkiln.InputError, match=r"a\.fbx has none of the suffixes"):
        dreamkiln.write_mesh(result.mesh, tmp_path / "a.fbx")


def test_wrong_values_are_one_sentence(tmp_path):
    with pytest.raises(dreamkiln.InputError, match=r"There is no setting 'fit\.nm_steps' \(did you mean num_steps"):
        dreamkiln.mesh_job("a red ball", {"fit.nm_steps": 3})
    with pytest.raises(dreamkiln.InputError, match=r"fit\.num_steps is 'many', but a whole number was expected"):
        dreamkiln.mesh_job("a red ball", {"fit.num_steps": "many"})
    with pytest.raises(dreamkiln.InputError, match="There is a mask"):
        dreamkiln.images_job("a red ball", mask="m.png")
    with pytest.raises(dreamkiln.InputError, match="No orchestrator is running"):
        dreamkiln.connect(tmp_path)


def test_scores(tmp_path):
    from tests.orchestrator.lab.evaluation.tiny_judge import save_tiny_judge

    outcome = dreamkiln.images("a red table", {**SMALL, "images.num_images": 2}, out=tmp_path / "run")
    judge = save_tiny_judge(tmp_path / "judge")
    report = dreamkiln.evaluate([outcome.folder], out=tmp_path / "report", judge=str(judge), num_threads=1)
    assert isinstance(report, dreamkiln.ImagesReport)
    assert json.loads((tmp_path / "report/report.json").read_text())["kind"] == "images"


@pytest.mark.parametrize("edits", [False, True], ids=["from noise", "from a picture"])
def test_a_row_of_a_table_and_a_prompt_leave_the_same_file(tmp_path, edits):
    from PIL import Image

    start = tmp_path / "start.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(start)
    settings = {**SMALL, "images.num_images": 1, "images.guidance_interval": [100, 900]}
    init = {"init_image": start} if edits else {}
    one = dreamkiln.images("a red ball", settings, seed=5, out=tmp_path / "one", **init)
    table = tmp_path / "t.csv"
    table.write_text("prompt,init_image\na red ball,start.png\n" if edits else "prompt\na red ball\n")
    del settings["images.num_images"]
    dreamkiln.run(dreamkiln.table_job(table, settings, seed=5, out=tmp_path / "many", output_format="png"))
    assert (tmp_path / "many/00000/000000000.png").read_bytes() == (one.folder / "000000000.png").read_bytes()
    markers = [json.loads((tmp_path / out / "_shards/00000.json").read_text()) for out in ("one", "many")]
    shared = ("shard", "first_index", "num_rows", "num_succeeded", "num_failed", "num_drawn_by_last_attempt")
    assert [markers[0][name] for name in shared] == [markers[1][name] for name in shared] == [0, 0, 1, 1, 0, 1]
