"""The installed command, a real Ray, real kills: what comes out is what an undisturbed run makes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.client.client import Client
from orchestrator.host.state_folder import StateFolder
from tests.fakes import FAST_OVERRIDES
from tests.orchestrator.batch.batch_fakes import contents
from tests.orchestrator.conftest import ROOT

pytestmark = pytest.mark.slow

SETTINGS = (
    *FAST_OVERRIDES,
    "fit.num_steps=400",
    "runtime.checkpoint_every=10",
    "runtime.num_threads=1",
    "export.turntable_frames=0",
    "export.preview_size=16",
)


def digest(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["artefacts"]["mesh.glb"]["sha256"]


@pytest.fixture
def orchestrator(dreamkiln, tmp_path):
    """dreamkiln(verb, …) with --state and JSON answers; taken down at the end."""
    state = ("--state", tmp_path / "state")

    def call(*arguments, expect: int = 0):
        done = dreamkiln(*arguments, *state, "--json")
        assert done.returncode == expect, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    yield call
    with contextlib.suppress(AssertionError):
        call("down")


def wait_for(orchestrator, job: int, condition, seconds: float = 600) -> dict:
    deadline = time.monotonic() + seconds
    while not condition(shown := orchestrator("jobs", "show", job)):
        assert time.monotonic() < deadline, shown
    return shown


def is_fitting(shown: dict) -> bool:
    return shown["job"]["state"] == "running" and shown["job"]["stage"] == "fit" and shown["job"]["step"] > 10


def asked_at(shown: dict, state: str) -> float:
    """When the orchestrator was asked to bring the job there."""
    return next(
        event["at"] for event in reversed(shown["events"]) if event["text"].startswith(f"to be {state} at the next step")
    )


def kill_worker(orchestrator_pid: int) -> None:
    """SIGKILL for the process of the one job that runs."""
    descendants = psutil.Process(orchestrator_pid).children(recursive=True)
    (worker,) = [process for process in descendants if "JobProcess" in "".join(process.cmdline())]
    worker.send_signal(signal.SIGKILL)


def has_ended(shown: dict) -> bool:
    return shown["job"]["state"] in ("succeeded", "failed", "cancelled")


def test_pause_kill_and_restart_lose_nothing(orchestrator, dreamkiln, tiny_prior, tmp_path):
    command = ["a red table", "--prior", tiny_prior, "--strict", *SETTINGS]
    undisturbed = dreamkiln("text-to-3d", *command, "--out", tmp_path / "plain", "--runtime", "inline", timeout=900)
    assert undisturbed.returncode == 0, undisturbed.stderr

    up = orchestrator("up", "--num-workers", 2)
    assert not orchestrator("up")["is_new"]
    second = dreamkiln("up", "--state", tmp_path / "other", "--ledger", f"sqlite:///{tmp_path}/state/ledger.db")
    assert second.returncode == 2 and "owned by another orchestrator" in second.stderr and "Traceback" not in second.stderr

    out = tmp_path / "run"
    job = orchestrator("submit", "text-to-3d", *command, "--out", out)["jobs"][0]["id"]
    wait_for(orchestrator, job, is_fitting)
    orchestrator("jobs", "pause", job)
    shown = wait_for(orchestrator, job, lambda shown: shown["job"]["state"] == "paused")
    assert shown["attempts"][-1]["ended_at"] - asked_at(shown, "paused") < 2
    orchestrator("jobs", "resume", job)

    # The job's own process dies.
    wait_for(orchestrator, job, is_fitting)
    kill_worker(up["pid"])
    wait_for(orchestrator, job, lambda shown: shown["job"]["num_attempts"] == 3 and is_fitting(shown))

    # The orchestrator dies. Its Ray notices sooner or later; the next orchestrator does not wait for that.
    descendants = psutil.Process(up["pid"]).children(recursive=True)
    os.kill(up["pid"], signal.SIGKILL)
    refused = dreamkiln("jobs", "list", "--state", tmp_path / "state")
    assert refused.returncode == 2 and "'dreamkiln up' starts it again" in refused.stderr
    up = orchestrator("up", "--num-workers", 2)
    _, alive = psutil.wait_procs(descendants, timeout=1)
    assert not alive, "nothing of the dead one's is left"
    shown = wait_for(orchestrator, job, has_ended)
    assert shown["job"]["state"] == "succeeded", shown["job"]["reason"]
    assert [attempt["outcome"] for attempt in shown["attempts"]][1:] == ["failed", "lost", "succeeded"]
    assert digest(out) == digest(tmp_path / "plain")
    assert "Continuing from step" in (tmp_path / "state" / "logs" / f"{job}.log").read_text()

    descendants = psutil.Process(up["pid"]).children(recursive=True)
    orchestrator("down")
    _, alive = psutil.wait_procs(descendants, timeout=15)
    assert not alive


def test_a_loss_of_ones_own_is_queued_and_goes_on_after_a_kill(orchestrator, dreamkiln, tiny_prior, tmp_path):
    shutil.copy(ROOT / "examples/own_loss.py", tmp_path / "loss.py")
    command = ["text-to-3d", "a red table", "--prior", tiny_prior, "--strict", "distillation.form=loss.py:classifier_score"]
    command += [*SETTINGS, "fit.num_steps=150", "fit.density_rate=0.01"]
    plain = dreamkiln(*command, "--out", tmp_path / "plain", "--runtime", "inline", timeout=900)
    assert plain.returncode == 0, plain.stderr

    up = orchestrator("up", "--num-workers", 1)
    job = orchestrator("submit", *command, "--out", tmp_path / "queued")["jobs"][0]["id"]
    wait_for(orchestrator, job, is_fitting)
    kill_worker(up["pid"])
    shown = wait_for(orchestrator, job, has_ended)
    assert shown["job"]["state"] == "succeeded" and shown["job"]["num_attempts"] == 2, shown
    assert digest(tmp_path / "queued") == digest(tmp_path / "plain")
    manifest = json.loads((tmp_path / "queued/manifest.json").read_text())
    form = f"{tmp_path / 'loss.py'}:classifier_score"
    assert manifest["spec"]["distillation"]["form"] == form and set(manifest["code"]) == {form}


def test_cancel_and_bad_input_beside_good_work(orchestrator, dreamkiln, tiny_prior, tmp_path):
    orchestrator("up", "--num-workers", 2)
    nowhere = dreamkiln("submit", "images", "a table", "--prior", tmp_path / "nowhere", "--state", tmp_path / "state")
    assert nowhere.returncode == 2 and "is neither 'toybox' nor a folder" in nowhere.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = dreamkiln("submit", "images", "a table", "--prior", empty, "--state", tmp_path / "state")
    assert refused.returncode == 2 and "without a model_index.json" in refused.stderr
    gone = shutil.copytree(tiny_prior, tmp_path / "gone")
    missing = orchestrator("submit", "images", "a table", "--prior", gone, "--paused")["jobs"][0]["id"]
    shutil.rmtree(gone)
    orchestrator("jobs", "resume", missing)
    long = orchestrator("submit", "text-to-3d", "a blue table", "--prior", tiny_prior, *SETTINGS, "fit.num_steps=100000")
    good = orchestrator("submit", "images", "a red table", "--prior", tiny_prior, "--num-images", 3, "--steps", 2)
    job = long["jobs"][0]["id"]
    wait_for(orchestrator, job, is_fitting)
    orchestrator("jobs", "cancel", job)
    shown = wait_for(orchestrator, job, has_ended)
    assert shown["job"]["state"] == "cancelled" and shown["job"]["ended_at"] - asked_at(shown, "cancelled") < 2

    shown = wait_for(orchestrator, good["jobs"][0]["id"], has_ended)
    assert shown["job"]["state"] == "succeeded" and "grid.png" in {file["name"] for file in shown["artefacts"]}
    shown = wait_for(orchestrator, missing, has_ended)
    assert shown["job"]["is_dead_letter"] and str(gone) in shown["job"]["reason"]
    watched = dreamkiln("jobs", "watch", missing, "--state", tmp_path / "state")
    assert watched.returncode == 1 and "failed" in watched.stdout


def test_a_table_of_prompts_survives_its_process_and_its_bad_row_is_mended(orchestrator, dreamkiln, tiny_prior, tmp_path):
    table = tmp_path / "prompts.csv"
    rows = ["prompt,sampler", *(f"a red table,{'dimm' if row == 5 else ''}" for row in range(24))]
    table.write_text("\n".join(rows) + "\n")
    command = ["images", "--prompts", table, "--prior", tiny_prior, "--strict", "--shard-size", 2, "--steps", 60]
    undisturbed = dreamkiln(*command, "--out", tmp_path / "plain", "--runtime", "inline", "--num-workers", 2)
    assert undisturbed.returncode == 3, undisturbed.stderr

    up = orchestrator("up", "--num-workers", 2)
    out = tmp_path / "queued"
    job = orchestrator("submit", *command, "--out", out, "--num-workers", 2)["jobs"][0]["id"]
    markers = out / "_shards"
    wait_for(orchestrator, job, lambda shown: len(list(markers.glob("*.json"))) > 1)
    kill_worker(up["pid"])
    shown = wait_for(orchestrator, job, has_ended)
    assert shown["job"]["state"] == "succeeded" and shown["job"]["metrics"]["num_failed"] == 1, shown
    assert contents(out) == contents(tmp_path / "plain")

    table.write_text(table.read_text().replace("dimm", "ddim"))
    orchestrator("jobs", "retry", job)
    shown = wait_for(orchestrator, job, has_ended)
    assert shown["job"]["metrics"]["num_failed"] == 0 and shown["job"]["metrics"]["num_drawn_by_last_attempt"] == 1

    waited = dreamkiln(*command, "--out", out, "--num-workers", 2, "--state", tmp_path / "state")
    assert waited.returncode == 0 and "24 of 24 rows" in waited.stdout and "of the orchestrator at" in waited.stderr


def test_jobs_share_two_replicas_of_a_prior_and_outlive_one(orchestrator, dreamkiln, tiny_prior, tmp_path):
    command = ["images", "a red table", "--prior", tiny_prior, "--strict", "--num-images", 30, "--steps", 60]
    command += ["images.chunk_size=1"]  # a request for each image
    seeds = (0, 100)
    for seed in seeds:
        plain = dreamkiln(*command, "--seed", seed, "--out", tmp_path / f"plain-{seed}", "--runtime", "inline")
        assert plain.returncode == 0, plain.stderr

    up = orchestrator("up", "--num-workers", 2, "--prior-replicas", 2)
    command = ["submit", *command, "--paused"]
    answers = [orchestrator(*command, "--seed", seed, "--out", tmp_path / f"queued-{seed}") for seed in seeds]
    jobs = [answer["jobs"][0]["id"] for answer in answers]
    orchestrator("jobs", "resume", *jobs)
    client = Client(StateFolder(tmp_path / "state"))

    def shown(job: int) -> dict:
        return client.get(f"/v1/jobs/{job}")["job"]

    wait_until(lambda: all(shown(job)["step"] > 0 for job in jobs))
    replicas = prior_processes(up["pid"])
    assert len(replicas) == 2
    before = [sum(replica.cpu_times()[:2]) for replica in replicas]
    steps = [shown(job)["step"] for job in jobs]
    wait_until(lambda: all(shown(job)["step"] > step for job, step in zip(jobs, steps, strict=True)))
    spent = [sum(replica.cpu_times()[:2]) - seconds for replica, seconds in zip(replicas, before, strict=True)]
    assert min(spent) > 0.2 * max(spent), "each job asks a replica of its own"

    assert all(shown(job)["state"] == "running" for job in jobs)
    replicas[0].send_signal(signal.SIGKILL)  # in the middle of a request: there is always one under way
    wait_until(lambda: all(shown(job)["state"] != "running" for job in jobs))
    assert [(shown(job)["state"], shown(job)["num_attempts"]) for job in jobs] == [("succeeded", 1)] * 2
    for seed in seeds:
        assert pictures(tmp_path / f"queued-{seed}") == pictures(tmp_path / f"plain-{seed}")
    wait_until(lambda: len(prior_processes(up["pid"])) == 2)
    assert replicas[1] in prior_processes(up["pid"]) and replicas[0] not in prior_processes(up["pid"])


def wait_until(condition, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def prior_processes(orchestrator_pid: int) -> list[psutil.Process]:
    """Of the replicas that are alive, oldest first."""
    found = []
    for process in psutil.Process(orchestrator_pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "PriorActor" in "".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*.png"))}
