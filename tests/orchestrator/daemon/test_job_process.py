"""The inside of a worker's process, without Ray: tables of prompts, pictures to start from, stops."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from jobs import codec
from jobs.errors import InputError
from jobs.events import Progress
from jobs.kinds import spec_from_json
from jobs.ledger import ShardRecord
from jobs.specs import ExportSpec, ImagesSpec, TextTo3DSpec
from jobs.states import FailureKind
from jobs.texture import TextureSpec
from nerf3d.surface import PaintConfig
from orchestrator.daemon.job_process import JobProcess
from orchestrator.daemon.reports import Failed, Report, ShardsCommitted, Stopped, Succeeded
from orchestrator.prior.local import LocalPrior
from orchestrator.run.edit_pictures import EditPictures
from orchestrator.run.given_mesh import GivenMesh
from orchestrator.run.perform import perform
from orchestrator.run.texturing import texture_mesh
from orchestrator.settings.groups import ExportSettings, RuntimeSettings
from orchestrator.settings.job import JobSettings
from tests.fakes import FAST_FIT, FAST_MESH, FakePrior, load_fake_prior
from tests.orchestrator.batch.batch_fakes import contents, load_slow_prior, run, spec_of, write_table


def reports_of(process: JobProcess, until=lambda report: not isinstance(report, Progress)) -> list[Report]:
    found: list[Report] = []
    deadline = time.monotonic() + 60
    while not any(until(report) for report in found):
        assert time.monotonic() < deadline, found
        found += process.poll()
        time.sleep(0.01)
    return found


def has_ended(report: Report) -> bool:
    return isinstance(report, (Succeeded, Failed, Stopped))


def table_job(table: Path, out: Path, *, prior: LocalPrior | None = None, is_rows_retry: bool = False, spec=None) -> JobProcess:
    settings = {"batch": {"prompts": str(table), "num_workers": 1}}
    spec = spec or spec_of(table)[0]
    return JobProcess(spec.to_json(), settings, str(out), prior or LocalPrior(FakePrior()), is_rows_retry)


def shards_in(reports: list[Report]) -> list[ShardRecord]:
    return [shard for report in reports if isinstance(report, ShardsCommitted) for shard in report.shards]


def last_of(process: JobProcess) -> Report:
    return reports_of(process, has_ended)[-1]


def test_a_table_is_drawn_through_the_shared_prior_and_its_bad_rows_again_after_they_were_mended(tmp_path):
    table = write_table(tmp_path / "t.jsonl", 12, sampler={7: "dimm"})
    run(table, tmp_path / "alone")
    spec, _ = spec_of(table)
    first = reports_of(table_job(table, tmp_path / "queued"), has_ended)
    assert isinstance(first[-1], Succeeded) and first[-1].metrics["num_failed"] == 1 and first[-1].metrics["did"] == "drawn"
    assert max(report.step for report in first if isinstance(report, Progress) and report.stage == "draw") == 12
    drawn = shards_in(first)
    assert [(shard.index, shard.num_rows, shard.num_failed) for shard in drawn] == [(0, 5, 0), (1, 5, 1), (2, 2, 0)]
    assert all(shard.worker and shard.num_attempts == 1 for shard in drawn)
    found = shards_in(reports_of(table_job(table, tmp_path / "queued"), has_ended))
    assert found == [replace(shard, worker="", num_attempts=0) for shard in drawn], "nothing to do, and all of it is told"
    assert contents(tmp_path / "queued") == contents(tmp_path / "alone")

    write_table(table, 12)
    changed = last_of(table_job(table, tmp_path / "queued", spec=spec))
    assert isinstance(changed, Failed) and changed.kind == FailureKind.BAD_INPUT and "has changed since" in changed.reason
    mended = reports_of(table_job(table, tmp_path / "queued", spec=spec, is_rows_retry=True), has_ended)
    assert [(shard.index, shard.num_failed, bool(shard.worker)) for shard in shards_in(mended)] == [
        (0, 0, False),
        (1, 0, True),
        (2, 0, False),
    ]
    again = mended[-1]
    assert isinstance(again, Succeeded) and again.metrics["num_failed"] == 0 and again.metrics["num_drawn_by_last_attempt"] == 1


def test_told_to_make_room_a_table_ends_between_two_shards(tmp_path):
    table = write_table(tmp_path / "t.jsonl", 60)
    run(table, tmp_path / "alone")
    process = table_job(table, tmp_path / "queued", prior=load_slow_prior("slow"))
    reports_of(process, lambda report: isinstance(report, Progress) and report.stage == "draw" and report.step > 0)
    process.stop(at_checkpoint=True)
    stopped = last_of(process)
    assert isinstance(stopped, Stopped) and "the same command draws the rest" in stopped.reason
    num_committed = len(list((tmp_path / "queued" / "_shards").glob("*.json")))
    assert 0 < num_committed < 12 and f"{num_committed * 5} of 60 rows" in stopped.reason
    assert isinstance(last_of(table_job(table, tmp_path / "queued")), Succeeded)
    assert contents(tmp_path / "queued") == contents(tmp_path / "alone")


def test_a_job_that_was_begun_with_an_earlier_version_of_its_prior_ends_with_both_hashes_and_nothing_mixes(tmp_path):
    table = write_table(tmp_path / "t.jsonl", 60)
    process = table_job(table, tmp_path / "queued", prior=load_slow_prior("slow"))
    reports_of(process, lambda report: isinstance(report, Progress) and report.stage == "draw" and report.step > 0)
    process.stop(at_checkpoint=True)
    assert isinstance(last_of(process), Stopped)
    before = contents(tmp_path / "queued")
    newer = LocalPrior(FakePrior(weights_hash="e" * 64))
    failed = last_of(table_job(table, tmp_path / "queued", prior=newer))
    assert isinstance(failed, Failed) and failed.kind == FailureKind.BAD_INPUT
    assert "was begun with other weights of the prior (ffffffffffff, now eeeeeeeeeeee)" in failed.reason
    assert contents(tmp_path / "queued") == before


def test_told_to_stop_at_once_a_table_keeps_what_is_committed(tmp_path):
    table = write_table(tmp_path / "t.jsonl", 60)
    process = table_job(table, tmp_path / "queued", prior=load_slow_prior("slow"))
    reports_of(process, lambda report: isinstance(report, Progress) and report.stage == "draw" and report.step > 0)
    process.stop(at_checkpoint=False)
    begin = time.monotonic()
    assert isinstance(last_of(process), Stopped) and time.monotonic() - begin < 2
    assert isinstance(last_of(table_job(table, tmp_path / "queued")), Succeeded)


def test_an_editing_job_on_a_node_that_does_not_see_its_pictures_says_where_they_must_lie(tmp_path):
    pictures = EditPictures(np.full((16, 16, 3), 200, np.uint8))
    spec = ImagesSpec(prompt="a red ball", num_images=2, num_steps=2, **pictures.hashes)
    settings = {"pictures": str(tmp_path / "elsewhere")}
    failed = last_of(JobProcess(spec.to_json(), settings, str(tmp_path / "out"), LocalPrior(FakePrior())))
    assert isinstance(failed, Failed) and failed.kind == FailureKind.BAD_INPUT
    assert f"not at {tmp_path / 'elsewhere'} on this node" in failed.reason
    assert "a --state on a disk that every node mounts" in failed.reason and not (tmp_path / "out").exists()


def test_an_editing_job_finds_its_pictures(tmp_path):
    pictures = EditPictures(np.full((16, 16, 3), 200, np.uint8), np.full((16, 16), 255, np.uint8))
    (tmp_path / "pictures").mkdir()
    pictures.write(tmp_path / "pictures")
    spec = ImagesSpec(prompt="a red ball", num_images=2, num_steps=2, **pictures.hashes)
    settings = {"pictures": str(tmp_path / "pictures")}
    done = last_of(JobProcess(spec.to_json(), settings, str(tmp_path / "out"), LocalPrior(FakePrior())))
    assert isinstance(done, Succeeded) and {"init.png", "mask.png", "000000001.png"} <= set(done.artefacts)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["state"] == "succeeded"


@pytest.mark.parametrize("settings", [{}, {"batch": {"prompts": "/nowhere/t.jsonl"}}])
def test_a_table_that_is_not_there_is_bad_input(tmp_path, settings):
    spec, _ = spec_of(write_table(tmp_path / "t.jsonl", 2))
    done = last_of(JobProcess(spec.to_json(), settings, str(tmp_path / "out"), LocalPrior(FakePrior())))
    assert isinstance(done, Failed) and done.kind == FailureKind.BAD_INPUT


def test_an_export_needs_no_prior(tmp_path):
    spec = TextTo3DSpec(prompt="a red ball", fit=FAST_FIT, mesh=FAST_MESH)
    settings = {"export": ExportSettings(turntable_frames=0, preview_size=32), "load_prior": load_fake_prior}
    perform(spec, out=tmp_path / "run", runtime=RuntimeSettings(kind="inline", device="cpu"), **settings)
    wanted = ExportSpec(run=str(tmp_path / "run"), settings={"mesh.max_faces": "300", "export.formats": '["glb","ply"]'})
    assert spec_from_json(wanted.to_json()) == wanted and wanted.name.startswith("export-run-")
    last = last_of(JobProcess(wanted.to_json(), {}, str(tmp_path / "cut"), None))
    assert isinstance(last, Succeeded) and last.metrics["num_faces"] <= 300 and last.metrics["did"] == "start"
    assert set(last.artefacts) == {"mesh.glb", "mesh.ply", "preview.png"}
    refused = dataclasses.replace(wanted, settings={"fit.num_steps": "3"})
    last = last_of(JobProcess(refused.to_json(), {}, str(tmp_path / "no"), None))
    assert isinstance(last, Failed) and last.kind == FailureKind.BAD_INPUT and "cannot be changed by an export" in last.reason


def test_an_export_names_its_run_by_a_full_path():
    with pytest.raises(InputError, match="'runs/house' is not a full path"):
        ExportSpec(run="runs/house")


def test_a_mesh_is_painted_through_the_shared_prior_as_it_is_alone(tmp_path):
    trimesh.creation.icosphere(subdivisions=2).export(tmp_path / "ball.glb")
    given = GivenMesh.read(tmp_path / "ball.glb")
    paint = PaintConfig(num_steps=6, num_views=4, resolutions=(4, 8), texture_size=64, rate=0.3)
    spec = TextureSpec(prompt="a red ball", mesh_sha256=given.digest, texture=paint)
    export, runtime = ExportSettings(preview_size=16, turntable_frames=0), RuntimeSettings(kind="inline", device="cpu")
    texture_mesh(spec, given, out=tmp_path / "alone", export=export, runtime=runtime, load_prior=load_fake_prior)
    row = json.loads(json.dumps(codec.to_plain(JobSettings(export=export, runtime=runtime, mesh=str(given.path)))))
    job = (spec.to_json(), row, str(tmp_path / "queued"), LocalPrior(FakePrior()))
    reports = reports_of(JobProcess(*job), has_ended)
    assert isinstance(done := reports[-1], Succeeded) and {"mesh.glb", "preview.png"} <= set(done.artefacts)
    assert max(report.step for report in reports if isinstance(report, Progress) and report.stage == "paint") == 6
    assert (tmp_path / "queued/mesh.glb").read_bytes() == (tmp_path / "alone/mesh.glb").read_bytes()

    trimesh.creation.box().export(tmp_path / "ball.glb")
    changed = last_of(JobProcess(*job[:2], str(tmp_path / "late"), job[3]))
    assert isinstance(changed, Failed) and changed.kind == FailureKind.BAD_INPUT and "has changed since" in changed.reason
