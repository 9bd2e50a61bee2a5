"""Run folders: whose they are, what is to do in them, what they remember."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from diffusion.schedule import NoiseSchedule
from jobs.errors import InputError, OutputError
from jobs.events import Checkpoint, Progress
from jobs.prior_client import PriorInfo
from jobs.specs import ImagesSpec
from orchestrator.run.folder import Plan, RunFolder, default_folder, plan_attempt

SPEC = ImagesSpec(prompt="a chair", num_images=2)
OTHER = dataclasses.replace(SPEC, seed=1)
INFO = PriorInfo(name="fake", weights_hash="a" * 64, image_size=16, schedule=NoiseSchedule())
EXPECTED = ("a.png", "b.mp4|b.webp")


def manifest(**changes):
    return {"fingerprint": SPEC.fingerprint(), "spec": SPEC.to_json(), "state": "succeeded", "artefacts": {}} | changes


@pytest.mark.parametrize(
    ("found", "present", "plan"),
    [
        (None, {}, Plan("start", EXPECTED)),
        (None, {"notes.txt": 1}, Plan("start", EXPECTED)),
        (manifest(state="running"), {"a.png": 1}, Plan("resume", ("b.mp4|b.webp",))),
        (manifest(state="interrupted"), {"a.png": 1, "b.webp": 1}, Plan("resume")),
        (manifest(), {"b.webp": 1}, Plan("resume", ("a.png",))),
        (manifest(), {"a.png": 1, "b.mp4": 1}, Plan("nothing to do")),
        (
            manifest(artefacts={"a.png": {"bytes": 9}}),
            {"a.png": 1, "b.mp4": 1},
            Plan("nothing to do", changed=("a.png",)),
        ),
    ],
)
def test_what_an_attempt_has_to_do(found, present, plan):
    assert plan_attempt(found, SPEC, EXPECTED, present, where="out") == plan


def test_another_jobs_folder_is_refused_with_the_difference():
    with pytest.raises(InputError, match=r"out belongs to another job \(seed 0, not 1\); choose another --out"):
        plan_attempt(manifest(), OTHER, EXPECTED, {}, where="out")


def test_files_of_ours_without_a_manifest_are_not_overwritten():
    with pytest.raises(OutputError, match=r"holds b\.webp but no manifest\.json"):
        plan_attempt(None, SPEC, EXPECTED, {"b.webp": 1}, where="out")


def test_what_a_killed_process_left_half_written_goes_and_nothing_else(tmp_path):
    (tmp_path / "_shards").mkdir()
    (tmp_path / "other-run").mkdir()
    halves = [tmp_path / ".writing-0123.safetensors", tmp_path / "_shards" / ".writing-4567.json"]
    others = [tmp_path / "other-run" / ".writing-89ab.png", tmp_path / ".hidden", tmp_path / "notes.txt"]
    for path in (*halves, *others):
        path.write_bytes(b"half")
    with RunFolder(tmp_path, SPEC, EXPECTED):
        assert not any(path.exists() for path in halves)
    assert all(path.exists() for path in others)


def test_a_job_that_never_began_leaves_no_folders(tmp_path):
    with RunFolder(tmp_path / "runs" / "one", SPEC, EXPECTED):
        pass
    assert list(tmp_path.iterdir()) == []
    with RunFolder(tmp_path / "runs" / "one", SPEC, EXPECTED):
        (tmp_path / "runs" / "two").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    with RunFolder(tmp_path / "runs", SPEC, EXPECTED):
        pass
    assert (tmp_path / "runs" / "two").exists()


def test_a_checkpoint_that_finds_the_disk_full_says_so_and_leaves_the_one_before(small_disk):
    with RunFolder(small_disk / "run", SPEC, EXPECTED) as folder:
        folder.begin(INFO, device="cpu")
        folder.save_checkpoint(Checkpoint(step=3, tensors={"x": np.arange(4.0)}))
        with pytest.raises(OutputError, match=r"checkpoint\.safetensors could not be written: the disk is full") as caught:
            folder.save_checkpoint(Checkpoint(step=4, tensors={"x": np.zeros(2**16)}))
        assert caught.value.is_disk_full and folder.load_checkpoint().step == 3


def test_a_folder_remembers(tmp_path):
    out = tmp_path / "deep" / "run"
    with RunFolder(out, SPEC, EXPECTED) as folder:
        folder.begin(INFO, device="cpu")
        assert json.loads((out / "manifest.json").read_text())["state"] == "running"
        folder.log(Progress(stage="draw", step=1, total=2, metrics={"loss": 0.123456789}))
        folder.save_checkpoint(Checkpoint(step=3, tensors={"x": np.arange(4.0)}, meta={"k": 1}))
        (out / "a.png").write_bytes(b"hello")
        folder.record([out / "a.png"])
        folder.stop("interrupted", "Ctrl-C")
    with RunFolder(out, SPEC, EXPECTED) as folder:
        assert folder.plan == Plan("resume", ("b.mp4|b.webp",))
        checkpoint = folder.load_checkpoint()
        assert checkpoint.step == 3 and checkpoint.meta == {"k": 1}
        np.testing.assert_array_equal(checkpoint.tensors["x"], np.arange(4.0))
        folder.begin(INFO, device="cpu")
        (out / "b.webp").write_bytes(b"bye")
        folder.record([out / "b.webp"])
        folder.finish(seconds={"draw": 1.0}, metrics={"faces": 3})
    final = json.loads((out / "manifest.json").read_text())
    assert final["state"] == "succeeded" and final["metrics"] == {"faces": 3} and final["timings"] == {"draw": 1.0}
    assert [attempt["state"] for attempt in final["attempts"]] == ["interrupted", "succeeded"]
    assert final["artefacts"]["a.png"] == {"bytes": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}
    assert final["prior"]["weights_hash"] == "a" * 64 and final["versions"]["torch"]
    (line,) = map(json.loads, (out / "progress.jsonl").read_text().splitlines())
    assert line["loss"] == 0.123457 and line["attempt"] == 1
    assert {path.name for path in out.iterdir()} == {
        "a.png",
        "b.webp",
        "manifest.json",
        "progress.jsonl",
        "checkpoint.safetensors",
    }


def test_a_line_cut_by_a_kill_does_not_swallow_the_next(tmp_path):
    with RunFolder(tmp_path, SPEC, EXPECTED) as folder:
        folder.begin(INFO, device="cpu")
        (tmp_path / "progress.jsonl").write_text('{"step": 1}\n{"st')
        folder.log(Progress(stage="draw", step=2, total=2))
    lines = (tmp_path / "progress.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["step"] == 2


def test_a_broken_checkpoint_is_no_checkpoint(tmp_path):
    with RunFolder(tmp_path, SPEC, EXPECTED) as folder:
        folder.begin(INFO, device="cpu")
        assert folder.load_checkpoint() is None
        folder.save_checkpoint(Checkpoint(step=3, tensors={"x": np.arange(4.0)}))
        path = tmp_path / "checkpoint.safetensors"
        path.write_bytes(path.read_bytes()[:-5])
        assert folder.load_checkpoint() is None


def test_other_weights_are_refused(tmp_path):
    with RunFolder(tmp_path, SPEC, EXPECTED) as folder:
        folder.begin(INFO, device="cpu")
    with (
        RunFolder(tmp_path, SPEC, EXPECTED) as folder,
        pytest.raises(InputError, match=r"begun with other weights of the prior \(aaaaaaaaaaaa, now bbbbbbbbbbbb\)"),
    ):
        folder.begin(dataclasses.replace(INFO, weights_hash="b" * 64), device="cpu")


def test_two_processes_do_not_share_a_folder(tmp_path):
    with (
        RunFolder(tmp_path, SPEC, EXPECTED),
        pytest.raises(OutputError, match="in use by another dreamkiln process"),
    ):
        RunFolder(tmp_path, SPEC, EXPECTED)
    with RunFolder(tmp_path, SPEC, EXPECTED):
        pass


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(OutputError, match=r"manifest\.json"):
        RunFolder(tmp_path, SPEC, EXPECTED)


def test_a_refused_folder_is_free_again(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    for _ in range(2):
        with pytest.raises(OutputError, match=r"holds a\.png"):
            RunFolder(tmp_path, SPEC, EXPECTED)


def test_default_folders_are_safe_and_differ():
    assert default_folder(SPEC).parts[0] == "runs" and len(default_folder(SPEC).parts) == 2
    assert default_folder(SPEC) != default_folder(OTHER)
    assert default_folder(ImagesSpec(prompt="../../x")).parts[0] == "runs"
