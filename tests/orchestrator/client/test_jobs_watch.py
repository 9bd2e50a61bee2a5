"""`jobs watch` without numbers, over a real HTTP API: it ends when every job has."""

from __future__ import annotations

import re
import threading

import pytest

from jobs.states import FailureKind, State
from orchestrator.cli.main import main
from orchestrator.cli.verbs.queue import submit
from orchestrator.client.client import Client, NotRunningError
from orchestrator.daemon.reports import Failed, Succeeded
from tests.jobs.ledger.conftest import submission
from tests.orchestrator.client.test_waiting_client import ServedRig, rig

__all__ = ["rig"]


@pytest.mark.parametrize("has_failure", [False, True])
def test_all_that_have_not_ended_are_watched_and_those_that_come(rig: ServedRig, capsys, has_failure):
    jobs = rig.submit(*(submission(number) for number in range(1, 8)))
    done = Succeeded(metrics={})

    def go_on() -> None:
        rig.submit(submission(8))
        rig.workers.script = [done]
        for number, worker in list(rig.workers.started):
            fails = has_failure and number == jobs[0]
            worker.reports = [Failed(FailureKind.BAD_INPUT, "It cannot be.") if fails else done]

    threading.Timer(1.0, go_on).start()
    arguments = ["jobs", "watch", "--interval", "0.1", "--limit", "3", "--state", str(rig.folder.path)]
    assert main(arguments) == int(has_failure)
    out = capsys.readouterr().out
    assert re.search("… and [45] more that have not ended", out)  # of seven, or of eight where the eighth came first
    assert (f"job {jobs[0]} failed It cannot be." in out) == has_failure
    recent = rig.ledger.jobs.recent()
    assert len(recent) == 8 and {job.state for job in recent} <= {State.SUCCEEDED, State.FAILED}

    assert main(arguments) == 0, "what had ended before is nobody's news"
    assert "All jobs have ended" in capsys.readouterr().out


def test_paused_jobs_are_not_waited_for(rig: ServedRig, capsys):
    first, second = rig.submit(submission(1, is_paused=True), submission(2, is_paused=True))
    for numbers in ([], [str(first)]):
        assert main(["jobs", "watch", *numbers, "--interval", "0.1", "--state", str(rig.folder.path)]) == 0
    out = capsys.readouterr().out
    assert f"2 of these jobs are paused; 'dreamkiln jobs resume {second} {first}' goes on with them." in out
    assert f"1 of these jobs is paused; 'dreamkiln jobs resume {first}' goes on with it." in out


def test_many_jobs_are_queued_in_parts_and_the_same_command_queues_the_rest(rig: ServedRig, capsys, monkeypatch, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt\n" + "".join(f"a red table number {number}\n" for number in range(25)))
    monkeypatch.setattr(submit, "JOBS_PER_REQUEST", 10)
    arguments = [
        "submit",
        "text-to-3d",
        "--prompts",
        str(table),
        "--out",
        str(tmp_path / "runs"),
        "--state",
        str(rig.folder.path),
    ]
    post, posted = Client.post, []

    def fails_once(self, path, body=None, **others):
        posted.append(len(body["jobs"]))
        if len(posted) == 2:
            raise NotRunningError("It does not answer.")
        return post(self, path, body, **others)

    monkeypatch.setattr(Client, "post", fails_once)
    assert main(arguments) == 2
    assert "The first 10 of 25 jobs are queued; the same command queues the rest." in capsys.readouterr().err
    assert main(arguments) == 0
    assert capsys.readouterr().err.splitlines() == [f"queued {number} of 25" for number in (10, 20, 25)]
    assert posted == [10, 10, 10, 10, 5] and len(rig.ledger.jobs.recent()) == 25
