"""`jobs watch` without numbers, over a real HTTP API: it ends when every job has."""

from __future__ import annotations

import threading

import pytest

from jobs.states import FailureKind, State
from orchestrator.cli.main import main
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
    assert "… and 4 more that have not ended" in out
    assert (f"job {jobs[0]} failed It cannot be." in out) == has_failure
    recent = rig.ledger.jobs.recent()
    assert len(recent) == 8 and {job.state for job in recent} <= {State.SUCCEEDED, State.FAILED}

    assert main(arguments) == 0, "what had ended before is nobody's news"
    assert "All jobs have ended" in capsys.readouterr().out
