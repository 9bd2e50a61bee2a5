"""`text-to-3d` and `images` where an orchestrator runs: over its real HTTP API; workers do what the test says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import DreamKilnError, Interrupted
from jobs.events import Message, Progress
from jobs.ledger import JobRecord, LedgerError
from jobs.states import FailureKind, State
from orchestrator.cli.main import main
from orchestrator.client import client as client_module
from orchestrator.client.client import Client
from orchestrator.client.prepared_job import PreparedJob, compose_here, prepare_images
from orchestrator.client.waiting_client import submit_and_wait
from orchestrator.daemon.http import snapshots
from orchestrator.daemon.http.routes import make_app
from orchestrator.daemon.http.server import ApiServer
from orchestrator.daemon.reports import Failed, Report, Succeeded
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.host.state_folder import Endpoint
from tests.orchestrator.conftest import COMMAND, command_environment
from tests.orchestrator.daemon.test_controller import Rig, ScriptedWorker, ScriptedWorkers

DONE = Succeeded(metrics={"did": "start", "seconds": {"draw": 2.5}}, artefacts={"grid.png": (9, "a" * 64)})


class ScriptedStarts(ScriptedWorkers):
    """Every worker begins with these reports."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Report] = []

    def start(self, job: JobRecord) -> ScriptedWorker:
        worker = super().start(job)
        worker.reports = list(self.script)
        return worker


class ServedRig(Rig):
    """With an HTTP API that may pause, and then listens elsewhere."""

    def serve(self) -> None:
        app = make_app(self.ledger, self.controller, self.folder, self.controller.close)
        self.server = ApiServer(app, host="127.0.0.1", port=0)
        self.server.start()
        self.folder.announce(Endpoint(url=self.server.url, pid=os.getpid(), ledger=self.ledger.where))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ServedRig]:
    """An orchestrator whose rounds go on by themselves."""
    made = ServedRig(tmp_path / "state", make_workers=ScriptedStarts)
    made.serve()
    over = threading.Event()

    def rounds() -> None:
        while not over.wait(0.05):
            made.tick()

    thread = threading.Thread(target=rounds)
    thread.start()
    yield made
    over.set()
    thread.join()
    made.server.stop()
    made.ledger.close()


def images(rig: Rig, tmp_path: Path, *arguments: str) -> int:
    out = ["--out", str(tmp_path / "out")]
    return main(["images", "a red table", *out, "--state", str(rig.folder.path), *arguments])


def test_the_orchestrator_does_the_job_and_the_command_says_what_it_always_says(rig: Rig, capsys, tmp_path):
    rig.workers.script = [Progress(stage="draw", step=1, total=2), Message(text="a word is unknown", level="warning"), DONE]
    assert images(rig, tmp_path) == 0
    captured = capsys.readouterr()
    assert "Job 1 of the orchestrator at http://127.0.0.1" in captured.err and "--local runs it here" in captured.err
    assert "warning: a word is unknown" in captured.err
    assert captured.out.splitlines() == [f"Done in 2 s: {tmp_path}/out", f"  {tmp_path}/out/grid.png"]
    assert rig.ledger.jobs.get(1).out == str(tmp_path / "out")
    assert images(rig, tmp_path, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] and answer["seconds"] == {"draw": 2.5} and answer["metrics"] == {}


@pytest.mark.parametrize(("kind", "code"), [(FailureKind.BAD_INPUT, 2), (FailureKind.COLLAPSED, 1)])
def test_a_failure_has_the_exit_code_it_has_without_an_orchestrator(rig: Rig, capsys, tmp_path, kind, code):
    rig.workers.script = [Failed(kind, "The fit ended empty.")]
    assert images(rig, tmp_path) == code
    assert capsys.readouterr().err.endswith("dreamkiln: The fit ended empty.\n")


def test_rows_without_a_picture_have_an_exit_code(rig: Rig, capsys, tmp_path):
    table = tmp_path / "t.txt"
    table.write_text("a red table\n🍄\n")
    report = {"num_rows": 2, "num_succeeded": 1, "num_failed": 1, "failures_by_cause": {"prompt": 1}, "did": "drawn"}
    figures = {"num_drawn_by_last_attempt": 1, "draw_seconds": 2.0, "images_per_second": 0.5, "cpu_seconds": None}
    rig.workers.script = [Succeeded(metrics={**report, **figures, "gpu_seconds": 0.0})]
    out = ["--out", str(tmp_path / "out")]
    assert main(["images", "--prompts", str(table), *out, "--state", str(rig.folder.path)]) == 3
    assert "1 of 2 rows have a picture" in capsys.readouterr().out
    assert main(["jobs", "list", "--state", str(rig.folder.path)]) == 0
    listed = capsys.readouterr().out
    assert "1 of 2 rows, 1 failed" in listed and "2 rows of t.txt" in listed
    assert main(["jobs", "show", "1", "--state", str(rig.folder.path)]) == 0
    assert "1 prompt: see" in capsys.readouterr().out


def prepared(tmp_path: Path) -> PreparedJob:
    return prepare_images("a red table", compose_here([], {}), seed=0, out=tmp_path / "out")


def test_the_same_job_is_joined_and_one_that_is_paused_goes_on(rig: Rig, tmp_path):
    job, client = prepared(tmp_path), Client(rig.folder)
    client.post("/v1/jobs", {"jobs": [job.request(state=rig.folder.path, is_paused=True)]})
    rig.workers.script = [DONE]
    outcome = submit_and_wait(job, client, state=rig.folder.path, user="me", display=SilentDisplay())
    assert outcome.artefacts == ("grid.png",) and len(rig.ledger.jobs.recent()) == 1


def test_ctrl_c_cancels_the_job(rig: Rig, tmp_path):
    class Impatient(SilentDisplay):
        def event(self, progress: Progress) -> None:
            raise KeyboardInterrupt

    rig.workers.script = [Progress(stage="draw", step=1, total=2)]
    with pytest.raises(Interrupted, match=r"Cancelled job 1 at step 1 of 2 of draw in .*; the same"):
        submit_and_wait(prepared(tmp_path), Client(rig.folder), state=rig.folder.path, user="me", display=Impatient())
    assert rig.state(1) == State.CANCELLED and rig.worker(1).is_killed


@pytest.mark.parametrize(
    ("number", "state", "said"),
    [
        (signal.SIGINT, State.CANCELLED, "Cancelled job 1 at step 1 of 2 of draw"),
        (signal.SIGTERM, State.RUNNING, "job 1 goes on, and the same command joins it"),
    ],
)
def test_a_signal_to_the_command_itself(rig: Rig, tmp_path, number, state, said):
    """`timeout 8h dreamkiln images …` ends the command; only Ctrl-C is about the job."""
    rig.workers.script = [Progress(stage="draw", step=1, total=2)]
    arguments = ["images", "a red table", "--out", str(tmp_path / "out"), "--state", str(rig.folder.path)]
    environment = command_environment()
    process = subprocess.Popen([*COMMAND, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said_before = ""
    while "draw 1/2" not in said_before:
        said_before += (line := process.stderr.readline())
        assert line, said_before
    assert "Job 1 of the orchestrator" in said_before
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said in errors and "Traceback" not in errors
    assert rig.state(1) == state

    if state == State.RUNNING:
        threading.Timer(1.5, lambda: rig.worker(1).reports.append(DONE)).start()
        assert images(rig, tmp_path) == 0 and len(rig.ledger.jobs.recent()) == 1


class Restarts(SilentDisplay):
    """Pauses the HTTP API at the first progress, and lets it listen elsewhere once that was noticed."""

    def __init__(self, rig: ServedRig, *, goes_on: bool) -> None:
        self.said: list[str] = []
        self._rig, self._goes_on = rig, goes_on

    def event(self, progress: Progress) -> None:
        self._rig.server.stop()

    def message(self, text: str, level: str = "info") -> None:
        self.said.append(text)
        if "Trying again" in text and self._goes_on:
            self._rig.serve()
            self._rig.worker(1).reports.append(DONE)


def test_a_waiting_command_bears_a_restart_at_another_port(rig: ServedRig, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "SECONDS_BETWEEN_TRIES", 0.1)
    rig.workers.script = [Progress(stage="draw", step=1, total=2)]
    before, display = rig.server.url, Restarts(rig, goes_on=True)
    outcome = submit_and_wait(prepared(tmp_path), Client(rig.folder), state=rig.folder.path, user="me", display=display)
    assert outcome.artefacts == ("grid.png",) and rig.server.url != before
    assert [before in text and "Trying again for 60 s" in text for text in display.said] == [False, True]


def test_a_waiting_command_ends_when_nobody_answers_any_more(rig: ServedRig, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "SECONDS_BETWEEN_TRIES", 0.1)
    monkeypatch.setattr(client_module, "SECONDS_OF_PATIENCE", 0.5)
    rig.workers.script = [Progress(stage="draw", step=1, total=2)]
    display = Restarts(rig, goes_on=False)
    with pytest.raises(DreamKilnError, match=r"not answered .* job 1 goes on .* the same command joins it") as failed:
        submit_and_wait(prepared(tmp_path), Client(rig.folder), state=rig.folder.path, user="me", display=display)
    assert failed.value.exit_code == 1 and sum("Trying again" in text for text in display.said) == 1
    assert rig.state(1) == State.RUNNING


def test_a_database_that_restarts_ends_nobodys_wait(rig: ServedRig, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "SECONDS_BETWEEN_TRIES", 0.1)
    monkeypatch.setattr(snapshots, "SECONDS", 0.0)  # what was answered a moment ago needs no database
    faults = [LedgerError("The database does not answer.")] * 2
    events = rig.ledger.jobs.events

    def sometimes(job: int) -> object:
        if faults:
            raise faults.pop()
        return events(job)

    monkeypatch.setattr(rig.ledger.jobs, "events", sometimes)
    rig.workers.script = [Progress(stage="draw", step=1, total=2), DONE]
    assert images(rig, tmp_path) == 0 and not faults
    assert capsys.readouterr().err.count("The database does not answer. Trying again") == 1
    faults.append(LedgerError("The database does not answer."))
    assert main(["jobs", "watch", "1", "--state", str(rig.folder.path)]) == 1
    assert "The database does not answer." in capsys.readouterr().err, "a first look is answered at once"


def test_without_one_or_with_local_it_runs_here(rig: Rig, capsys, tmp_path, monkeypatch):
    def here(self: PreparedJob, *, display: object) -> None:
        raise SystemExit(7)

    monkeypatch.setattr(PreparedJob, "perform", here)
    for arguments in (["--local"], ["--runtime", "ray"]):
        with pytest.raises(SystemExit):
            images(rig, tmp_path, *arguments)
    rig.folder.announce(Endpoint(url="http://127.0.0.1:9", pid=1, ledger="x"))
    with pytest.raises(SystemExit):
        images(rig, tmp_path)
    assert "does not answer" in (err := capsys.readouterr().err) and "This command runs on its own." in err
