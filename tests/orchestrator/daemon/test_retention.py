"""Ended jobs are forgotten with their logs, and nothing goes that the orchestrator did not make."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from orchestrator.daemon import daemon
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.retention import Pruned, Retention
from orchestrator.exports import write_png
from orchestrator.scheduling import Capacity
from tests.jobs.ledger.conftest import submission
from tests.orchestrator.daemon.test_controller import Rig

NAMES = ("a" * 16, "b" * 16 + "-" + "c" * 16)


@pytest.fixture
def rig(tmp_path: Path):
    made = Rig(tmp_path / "state", workers=0)
    yield made
    made.ledger.close()


def images(rig: Rig, number: int, pictures: Path):
    return submission(number, kind="images", settings={"pictures": str(pictures)})


def laid_down(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_png(np.zeros((4, 4, 3), np.uint8), folder / "init.png")
    os.utime(folder, (1, 1))
    return folder


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_goes_and_what_stays(rig: Rig, tmp_path: Path):
    pictures = [laid_down(rig.folder.path / "pictures" / name) for name in NAMES]
    elsewhere = laid_down(tmp_path / "mine")
    jobs = rig.submit(
        images(rig, 1, pictures[0]), images(rig, 2, pictures[1]), images(rig, 3, pictures[1]), images(rig, 4, elsewhere)
    )
    old, kept = [jobs[0], jobs[1], jobs[3]], jobs[2]
    for job in old:
        rig.ledger.jobs.cancel(job)
    for job in [*jobs, 77]:  # the last is a log of another ledger's
        rig.folder.job_log(job).write_text("x" * 10)
    (rig.folder.path / "logs" / "notes.txt").write_text("mine")
    rig.clock.advance(1000)
    rig.ledger.jobs.cancel(*rig.submit(submission(9)))
    retention, before = Retention(rig.ledger, rig.folder), everything(tmp_path)
    assert retention.prune(seconds=2000) == Pruned()
    size = (pictures[0] / "init.png").stat().st_size
    would = retention.prune(seconds=500, is_trial=True)
    assert would == Pruned(jobs=tuple(old), num_logs=3, num_pictures=1, num_bytes=30 + size)
    assert everything(tmp_path) == before and len(rig.ledger.jobs.recent()) == 5
    assert retention.prune(seconds=500) == would
    gone = {f"state/logs/{job}.log" for job in old} | {f"state/pictures/{NAMES[0]}", f"state/pictures/{NAMES[0]}/init.png"}
    assert before - everything(tmp_path) == gone
    assert kept in [job.id for job in rig.ledger.jobs.recent()]


def test_pictures_that_somebody_lays_down_again_stay(rig: Rig):
    folder = laid_down(rig.folder.path / "pictures" / NAMES[0])
    (job,) = rig.submit(images(rig, 1, folder))
    rig.ledger.jobs.cancel(job)
    rig.submit(submission(2))
    os.utime(folder)
    rig.clock.advance(1000)
    assert Retention(rig.ledger, rig.folder).prune(seconds=10) == Pruned(jobs=(job,))
    assert (folder / "init.png").exists()


def test_a_folder_of_logs_that_is_a_link_loses_nothing_but_those_logs(rig: Rig, tmp_path: Path):
    logs = rig.folder.path / "logs"
    logs.rmdir()
    (tmp_path / "big").mkdir()
    logs.symlink_to(tmp_path / "big")
    (job,) = rig.submit(submission(1))
    rig.ledger.jobs.cancel(job)
    rig.submit(submission(2))
    for name in (f"{job}.log", "2.log.gz", "mine"):
        (tmp_path / "big" / name).write_text("x")
    rig.clock.advance(1000)
    assert Retention(rig.ledger, rig.folder).prune(seconds=10).num_logs == 1
    assert everything(tmp_path / "big") == {"2.log.gz", "mine"}


def test_the_orchestrator_forgets_by_itself_a_few_jobs_a_round(rig: Rig):
    jobs = rig.submit(*(submission(number, is_paused=True) for number in range(500)))
    for job in jobs[:450]:
        rig.ledger.jobs.cancel(job)
    keeping = Controller(rig.ledger, rig.workers, Capacity(num_workers=0, memory_bytes=1), rig.folder, keep_seconds=3600)
    left = []
    for seconds in (1, 3600, 1, 1, 1):
        rig.clock.advance(seconds)
        keeping.tick(is_woken=True)
        left.append(sum(rig.ledger.jobs.counts().values()))
    # The newest event tells of job 450, which stays.
    assert left == [500, 300, 100, 51, 51]
    rig.tick(10**6)  # the rig's own controller keeps for ever
    assert sum(rig.ledger.jobs.counts().values()) == 51


def test_the_orchestrators_own_log_begins_anew_and_stays_private(tmp_path: Path):
    log = daemon._PrivateLog(tmp_path / "daemon.log", maxBytes=100, backupCount=1)
    for number in range(10):
        log.handle(logging.makeLogRecord({"msg": f"{number} {'x' * 58}"}))
    log.close()
    assert sorted((file.name, file.read_text()[0]) for file in tmp_path.iterdir()) == [
        ("daemon.log", "9"),
        ("daemon.log.1", "8"),
    ]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
