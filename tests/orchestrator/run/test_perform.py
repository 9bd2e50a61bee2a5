"""Whole jobs in this process: what they leave, and how they go on."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from datetime import datetime

import numpy as np
import pytest
from PIL import Image

from jobs.errors import CollapsedError, InputError, Interrupted, OutputError
from jobs.events import Progress
from jobs.specs import MESH_FORMATS, ImagesSpec, TextTo3DSpec
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.run.perform import perform
from orchestrator.settings.groups import ExportSettings, RuntimeSettings
from tests.fakes import FAST_FIT, FAST_MESH, load_fake_prior

INLINE = RuntimeSettings(kind="inline", num_threads=1, checkpoint_every=4)
SMALL = ExportSettings(preview_size=16, turntable_frames=2, turntable_size=16)
MESH_SPEC = TextTo3DSpec(prompt="a red ball", fit=dataclasses.replace(FAST_FIT, num_steps=10), mesh=FAST_MESH)
IMAGES_SPEC = ImagesSpec(prompt="a blue ball", num_images=5, num_steps=2, chunk_size=2, seed=3)


def run(spec, out, **changes):
    settings = {"export": SMALL, "runtime": INLINE, "load_prior": load_fake_prior} | changes
    return perform(spec, out=out, **settings)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def digests(folder):
    return {name: entry["sha256"] for name, entry in manifest(folder)["artefacts"].items()}


class StopAt(SilentDisplay):
    """Ctrl-C at a chosen step."""

    def __init__(self, stage: str, step: int) -> None:
        self.wanted = (stage, step)

    def event(self, progress: Progress) -> None:
        if (progress.stage, progress.step) == self.wanted:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("mesh")
    run(dataclasses.replace(MESH_SPEC, formats=MESH_FORMATS), out)
    return out


def test_a_mesh_job_leaves_what_its_manifest_says(finished):
    meshes = {f"mesh.{name}" for name in MESH_FORMATS}
    names = {*meshes, "mesh.mtl", "mesh.bin", "preview.png", "progress.png", "turntable.mp4"}
    assert set(digests(finished)) == names
    for name, entry in manifest(finished)["artefacts"].items():
        data = (finished / name).read_bytes()
        holds = entry.pop("holds", {"num_faces": 0})
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert holds["num_faces"] == (manifest(finished)["metrics"]["num_faces"] if name in meshes else 0)
    assert {p.name for p in finished.iterdir()} == {*names, "manifest.json", "progress.jsonl", "checkpoint.safetensors"}
    found = manifest(finished)
    assert found["state"] == "succeeded" and found["fingerprint"] == MESH_SPEC.fingerprint() and found["seed"] == 0
    assert set(found["timings"]) == {"start", "prepare", "fit", "mesh", "judge", "export"}
    (attempt,) = found["attempts"]
    begin, end = (datetime.fromisoformat(attempt[name]).timestamp() for name in ("started", "ended"))
    assert found["started"] == attempt["started"] and end - begin == pytest.approx(attempt["seconds"], abs=1.1)
    assert sum(found["timings"].values()) == pytest.approx(attempt["seconds"], abs=1.0)
    assert found["metrics"]["num_faces"] > 0 and found["device"] == "cpu" and found["prior"]["name"] == "fake"
    lines = [json.loads(line) for line in (finished / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "fit"] == list(range(11))


def test_the_same_job_twice_is_the_same_mesh(finished, tmp_path):
    run(MESH_SPEC, tmp_path)
    for name in ("mesh.glb", "preview.png"):
        assert digests(tmp_path)[name] == digests(finished)[name]


def test_a_stopped_fit_goes_on_to_the_same_mesh(finished, tmp_path):
    with pytest.raises(Interrupted, match=r"Stopped at step 9 of 10 of fit .* continues from step 8"):
        run(MESH_SPEC, tmp_path, display=StopAt("fit", 9))
    assert manifest(tmp_path)["state"] == "interrupted"
    outcome = run(MESH_SPEC, tmp_path)
    assert outcome.did == "resume" and outcome.messages == ("Continuing from step 8 of 10.",)
    assert digests(tmp_path)["mesh.glb"] == digests(finished)["mesh.glb"]


def test_a_killed_fit_goes_on_to_the_same_mesh(finished, tmp_path, monkeypatch):
    """SIGKILL writes no last words: the manifest still says running."""
    monkeypatch.setattr("orchestrator.run.folder.RunFolder.stop", lambda *_: None)
    with pytest.raises(Interrupted):
        run(MESH_SPEC, tmp_path, display=StopAt("fit", 6))
    assert manifest(tmp_path)["state"] == "running"
    run(MESH_SPEC, tmp_path)
    assert digests(tmp_path)["mesh.glb"] == digests(finished)["mesh.glb"]


def test_a_finished_job_only_makes_what_is_missing(finished):
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir() if path.name.startswith("mesh")}
    same = dataclasses.replace(MESH_SPEC, formats=MESH_FORMATS)
    assert run(same, finished).did == "nothing to do"
    digest = digests(finished)["mesh.ply"]
    (finished / "mesh.ply").unlink()
    outcome = run(same, finished)
    assert outcome.did == "resume" and outcome.messages == ("Continuing from step 10 of 10.",)
    assert digests(finished)["mesh.ply"] == digest
    after = {path.name: path.stat().st_mtime_ns for path in finished.iterdir() if path.name.startswith("mesh")}
    assert {name for name in before if before[name] != after[name]} == {"mesh.ply"}


def test_other_settings_are_refused_in_the_same_folder(finished):
    with pytest.raises(InputError, match=r"belongs to another job \(seed 0, not 1\)"):
        run(dataclasses.replace(MESH_SPEC, seed=1), finished)


def test_what_the_user_edited_is_left_alone(finished):
    (finished / "mesh.stl").write_bytes(b"mine")
    told = []

    class Listen(SilentDisplay):
        def message(self, text, level="info"):
            told.append(text)

    run(MESH_SPEC, finished, display=Listen())
    assert (finished / "mesh.stl").read_bytes() == b"mine" and "mesh.stl was changed" in told[0]


def test_other_export_settings_are_said_not_to_change_what_is_there(finished):
    told = []

    class Listen(SilentDisplay):
        def message(self, text, level="info"):
            told.append(text)

    before = digests(finished)
    outcome = run(MESH_SPEC, finished, display=Listen(), export=dataclasses.replace(SMALL, size_metres=2.0))
    assert outcome.did == "nothing to do" and digests(finished) == before and "other export settings" in told[0]


def test_images_carry_how_they_were_made(tmp_path):
    outcome = run(IMAGES_SPEC, tmp_path)
    assert outcome.artefacts[0] == "grid.png" and len(outcome.artefacts) == 6
    with Image.open(tmp_path / "000000004.png") as image:
        assert image.size == (16, 16)
        text = image.text
    assert text["prompt"] == "a blue ball" and text["seed"] == "7" and text["sampler"] == "dpmpp_2m"
    assert text["steps"] == "2" and text["guidance_scale"] == "3" and text["prior_hash"] == "f" * 64
    marker = json.loads((tmp_path / "_shards" / "00000.json").read_text())
    assert marker["num_rows"] == marker["num_drawn_by_last_attempt"] == 5


def test_stopped_images_go_on_to_the_same_pictures(tmp_path):
    run(IMAGES_SPEC, tmp_path / "whole")
    with pytest.raises(Interrupted, match="2 of 5 images"):
        run(IMAGES_SPEC, tmp_path / "parts", display=StopAt("draw", 2))
    outcome = run(IMAGES_SPEC, tmp_path / "parts")
    assert outcome.messages[0] == "Continuing: 2 of 5 images are there."
    pictures = {name: value for name, value in digests(tmp_path / "whole").items() if name.endswith(".png")}
    assert pictures.items() <= digests(tmp_path / "parts").items()


def test_a_lost_image_is_drawn_again(tmp_path):
    run(IMAGES_SPEC, tmp_path)
    before = digests(tmp_path)
    (tmp_path / "000000001.png").unlink()
    run(IMAGES_SPEC, tmp_path)
    assert digests(tmp_path)["000000001.png"] == before["000000001.png"]


def test_a_disk_that_fills_up_stops_the_job_with_a_sentence(tmp_path, monkeypatch):
    import orchestrator.host.atomic as atomic

    written = []
    replace = atomic.os.replace

    def full(source, target):
        written.append(target)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(OutputError, match=r"disk is full; free some space") as caught:
        run(IMAGES_SPEC, tmp_path)
    assert caught.value.exit_code == 2
    monkeypatch.undo()
    assert not list(tmp_path.glob(".writing-*"))
    run(IMAGES_SPEC, tmp_path)
    assert manifest(tmp_path)["state"] == "succeeded"


def test_a_collapse_is_in_the_manifest(tmp_path):
    field = dataclasses.replace(MESH_SPEC.fit.field, density_bias=-60.0, blob_scale=0.0)
    spec = dataclasses.replace(MESH_SPEC, fit=dataclasses.replace(MESH_SPEC.fit, field=field, num_steps=1))
    with pytest.raises(CollapsedError):
        run(spec, tmp_path)
    assert manifest(tmp_path)["state"] == "failed" and manifest(tmp_path)["attempts"][-1]["reason"]


def test_the_grid_shows_the_images(tmp_path):
    run(IMAGES_SPEC, tmp_path)
    with Image.open(tmp_path / "grid.png") as grid, Image.open(tmp_path / "000000000.png") as first:
        corner = np.asarray(grid)[4:20, 4:20]
        np.testing.assert_array_equal(corner, np.asarray(first))
