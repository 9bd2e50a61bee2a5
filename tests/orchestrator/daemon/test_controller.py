"""The orchestrator's rounds, advanced by hand: a real ledger, workers that do what the test says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import OutputError
from jobs.events import Message, Progress
from jobs.ledger import JobRecord, Ledger, LedgerError, NewGroup, ShardRecord, Submission
from jobs.specs import ImagesSpec
from jobs.states import FailureKind, State
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.reports import Failed, Report, ShardsCommitted, Stopped, Succeeded
from orchestrator.host.state_folder import StateFolder
from orchestrator.run.folder import RunFolder
from orchestrator.scheduling import Capacity, PriorView
from orchestrator.scheduling.failures import failure_kind, sentence
from tests.jobs.ledger.conftest import Clock, submission

GB = 10**9


class ScriptedWorker:
    """Reports what the test appends; silent: does not answer at all."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.is_silent = False
        self.stops: list[bool] = []
        self.is_killed = False
        self.weights: list[float] = []

    def set_weight(self, weight: float) -> None:
        self.weights.append(weight)

    def poll(self) -> list[Report] | None:
        reports, self.reports = self.reports, []
        return None if self.is_silent else reports

    def stop(self, *, at_checkpoint: bool) -> None:
        self.stops.append(at_checkpoint)

    def kill(self) -> None:
        self.is_killed = True


class ScriptedWorkers:
    """Remembers the worker of every start."""

    def __init__(self) -> None:
        self.started: list[tuple[int, ScriptedWorker]] = []
        self.evicted: list[str] = []
        self.resident: list[PriorView] = []

    def start(self, job: JobRecord) -> ScriptedWorker:
        worker = ScriptedWorker()
        self.started.append((job.id, worker))
        return worker

    def priors(self) -> list[PriorView]:
        return self.resident

    def evict(self, source: str) -> None:
        self.evicted.append(source)


class Rig:
    """A controller with everything around it."""

    def __init__(self, folder: Path, *, workers: int = 2, make_workers: type[ScriptedWorkers] = ScriptedWorkers) -> None:
        self.clock = Clock()
        self.folder = StateFolder(folder)
        self.folder.create()
        self.ledger = Ledger.own(self.folder.default_ledger, clock=self.clock)
        self.workers: Any = make_workers()
        self.controller = Controller(
            self.ledger, self.workers, Capacity(num_workers=workers, memory_bytes=20 * GB), self.folder
        )

    def submit(self, *jobs: Submission) -> list[int]:
        return [submitted.id for submitted in self.ledger.jobs.submit(jobs)]

    def tick(self, seconds: float = 0.2) -> None:
        self.clock.advance(seconds)
        self.controller.tick(is_woken=True)

    def state(self, job: int) -> State:
        return self.ledger.jobs.get(job).state

    def worker(self, job: int) -> ScriptedWorker:
        """The job's newest one."""
        return next(worker for id, worker in reversed(self.workers.started) if id == job)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "state")
    yield made
    made.ledger.close()


@pytest.fixture
def one(rig: Rig) -> int:
    """A job that runs."""
    (job,) = rig.submit(submission(1))
    rig.tick()
    assert rig.state(job) == State.RUNNING
    return job


def test_progress_messages_and_success_reach_the_ledger_and_the_log(rig: Rig, one: int):
    rig.worker(one).reports = [
        Progress(stage="fit", step=3, total=9, metrics={"loss": 0.25}),
        Message(text="a word is unknown", level="warning"),
        Message(text="a library's word", level="log"),
    ]
    rig.tick(2)
    job = rig.ledger.jobs.get(one)
    assert (job.stage, job.step, job.metrics) == ("fit", 3, {"loss": 0.25})
    rig.worker(one).reports = [Succeeded(metrics={"num_faces": 12}, artefacts={"mesh.glb": (5, "a" * 64)})]
    rig.tick()
    assert rig.state(one) == State.SUCCEEDED and rig.controller.num_running == 0 and rig.worker(one).is_killed
    assert [artefact.name for artefact in rig.ledger.attempts.artefacts(one)] == ["mesh.glb"]
    assert "a library's word" not in [event.text for event in rig.ledger.jobs.events(one)]
    log = rig.folder.job_log(one).read_text()
    assert "fit 3/9 loss=0.25" in log and "warning: a word is unknown" in log and "log: a library's word" in log


def test_a_worker_that_stops_is_not_killed_before_it_has(rig: Rig, one: int):
    rig.ledger.jobs.pause(one)
    rig.tick()
    worker = rig.worker(one)
    assert worker.stops == [False] and not worker.is_killed
    worker.reports = [Stopped("Stopped at step 4.")]
    rig.tick()
    assert rig.state(one) == State.PAUSED and rig.ledger.jobs.get(one).reason == "paused"
    rig.tick()
    assert len(rig.workers.started) == 1, "a paused job is not started"
    rig.ledger.jobs.resume(one)
    rig.tick()
    assert rig.state(one) == State.RUNNING


@pytest.mark.parametrize(("action", "state"), [("cancel", State.CANCELLED), ("pause", State.PAUSED)])
def test_a_worker_that_does_not_stop_is_killed_within_two_seconds(rig: Rig, one: int, action: str, state: State):
    getattr(rig.ledger.jobs, action)(one)
    for _ in range(7):
        rig.tick(0.25)
    assert rig.worker(one).is_killed and rig.state(one) == state


class Pressed(ScriptedWorkers):
    """Somebody asks something of a job whenever another one starts."""

    def __init__(self) -> None:
        super().__init__()
        self.ask: Callable[[], None] = lambda: None

    def start(self, job: JobRecord) -> ScriptedWorker:
        self.ask()
        return super().start(job)


def test_a_request_does_not_wait_for_the_rest_of_a_round(tmp_path: Path):
    rig = Rig(tmp_path / "state", workers=5, make_workers=Pressed)
    (first,) = rig.submit(submission(0))
    rig.tick()

    def pause_the_first() -> None:
        rig.ledger.jobs.pause(first)
        rig.controller.has_request.set()
        rig.workers.ask = lambda: None

    rig.workers.ask = pause_the_first
    others = rig.submit(*(submission(number) for number in range(1, 5)))
    rig.tick()
    assert rig.controller.wake.is_set() and not rig.worker(first).stops
    assert [rig.state(job) for job in others] == [State.RUNNING, *[State.QUEUED] * 3], "the request broke the round off"
    rig.tick()
    assert rig.worker(first).stops == [False] and all(rig.state(job) == State.RUNNING for job in others)
    rig.ledger.close()


def test_a_request_does_not_wait_until_all_are_polled_and_nobody_is_forgotten(rig: Rig):
    jobs = rig.submit(submission(1), submission(2))
    rig.tick()
    polled: list[int] = []

    def poll(job: int) -> list[Report]:
        polled.append(job)
        rig.controller.has_request.set()
        return []

    for job in jobs:
        rig.worker(job).poll = lambda job=job: poll(job)
    for _ in range(6):
        rig.tick()
    assert polled == jobs * 3


def test_a_job_that_was_resumed_before_it_stopped_is_queued_again(rig: Rig, one: int):
    rig.ledger.jobs.pause(one)
    rig.tick()
    rig.ledger.jobs.resume(one)
    rig.worker(one).reports = [Stopped("Stopped at step 4.")]
    rig.tick()
    assert rig.state(one) == State.RUNNING and len(rig.workers.started) == 2


def test_failures_are_retried_by_kind(rig: Rig, one: int):
    rig.worker(one).reports = [Failed(FailureKind.PRIOR_DIED, "it is gone", "Traceback …")]
    rig.tick()
    job = rig.ledger.jobs.get(one)
    assert job.state == State.QUEUED and 2 <= job.not_before - rig.clock.now <= 2.4 and job.num_failures == 1
    assert "waits for its retry" in rig.controller.why_waiting(rig.ledger.jobs.get(one))
    rig.tick(3)
    assert rig.state(one) == State.RUNNING
    rig.worker(one).reports = [Failed(FailureKind.BAD_INPUT, "the prior's folder is empty")]
    rig.tick()
    job = rig.ledger.jobs.get(one)
    assert job.state == State.FAILED and job.is_dead_letter and "the prior's folder is empty" in job.reason
    assert "Traceback …" in rig.folder.job_log(one).read_text()


def test_a_job_that_brings_its_worker_down_ends_in_the_dead_letters_while_others_go_on(rig: Rig):
    poison, good = rig.submit(submission(1, max_failures=3), submission(2))
    rig.tick()
    for _ in range(40):
        if rig.state(poison) == State.RUNNING:
            rig.worker(poison).reports = [Failed(FailureKind.WORKER_LOST, "The process that ran the job ended.")]
        rig.tick(2)
    assert rig.ledger.jobs.get(poison).is_dead_letter and rig.state(good) == State.RUNNING
    assert len(rig.ledger.attempts.of(poison)) == 3


def test_attempts_that_leave_a_checkpoint_do_not_count(rig: Rig, tmp_path: Path):
    (job,) = rig.submit(submission(1, out=str(tmp_path), max_failures=2))
    left = tmp_path / "checkpoint.safetensors"
    for _ in range(5):
        rig.tick(5)
        assert rig.state(job) == State.RUNNING
        left.touch()
        os.utime(left, times=(rig.clock.now + 1, rig.clock.now + 1))
        rig.worker(job).reports = [Failed(FailureKind.WORKER_LOST, "x")]
        rig.tick(2)
    assert rig.ledger.jobs.get(job).num_failures == 0


def committed(index: int, *, worker: str = "process 1 on a") -> ShardsCommitted:
    shard = ShardRecord(index=index, num_rows=5, num_failed=0, seconds=0.5, worker=worker, num_attempts=int(bool(worker)))
    return ShardsCommitted((shard,))


@pytest.mark.parametrize("is_silent", [False, True])
def test_attempts_of_a_table_that_commit_a_shard_do_not_count(rig: Rig, is_silent: bool):
    (job,) = rig.submit(submission(1, kind="batch-images", out="s3://bucket/out", max_failures=2))
    for index in range(4):
        rig.tick(5)
        assert rig.state(job) == State.RUNNING
        rig.worker(job).reports = [committed(index)]
        if is_silent:
            rig.tick()
            rig.worker(job).is_silent = True
            rig.tick(200)
        else:
            rig.worker(job).reports.append(Failed(FailureKind.WORKER_LOST, "x"))
        rig.tick(2)
    assert rig.ledger.jobs.get(job).num_failures == 0 and rig.ledger.shards.summary(job).num_committed == 4


def test_attempts_of_a_table_that_only_find_shards_count(rig: Rig):
    (job,) = rig.submit(submission(1, kind="batch-images", out="s3://bucket/out", max_failures=2))
    for _ in range(2):
        rig.tick(5)
        rig.worker(job).reports = [committed(0, worker=""), Failed(FailureKind.WORKER_LOST, "x")]
        rig.tick(2)
    assert rig.ledger.jobs.get(job).is_dead_letter and rig.ledger.shards.summary(job).num_committed == 1


def test_silence_is_loss_and_a_late_word_is_refused(rig: Rig, one: int):
    rig.tick(2)
    silent = rig.worker(one)
    silent.is_silent = True
    rig.tick(40)
    assert silent.is_killed and rig.state(one) == State.QUEUED
    rig.tick(5)
    assert rig.state(one) == State.RUNNING and rig.worker(one) is not silent
    assert [attempt.outcome for attempt in rig.ledger.attempts.of(one)] == [State.LOST, State.RUNNING]
    assert "given up" in rig.folder.job_log(one).read_text()


def test_a_worker_that_lives_on_far_away_makes_no_dead_letter_of_its_job(rig: Rig, one: int, tmp_path: Path):
    """Cut off and given up, it goes on writing for a quarter of an hour; whoever follows meets its hold on the run folder."""

    def attempt() -> Report:
        try:
            with RunFolder(tmp_path / "run", spec, ()):
                return Succeeded()
        except OutputError as error:
            return Failed(failure_kind(error), sentence(error))

    spec, tries = ImagesSpec(prompt="a chair"), []
    with RunFolder(tmp_path / "run", spec, ()):
        rig.worker(one).is_silent = True
        rig.tick(40)
        while rig.clock.now - 1_800_000_000 < 900:
            rig.tick(1)
            if (worker := rig.worker(one)) not in tries and rig.state(one) == State.RUNNING:
                tries.append(worker)
                worker.reports = [attempt()]
    job, gaps = rig.ledger.jobs.get(one), [attempt.started_at for attempt in rig.ledger.attempts.of(one)]
    assert job.state == State.QUEUED and not job.is_dead_letter and "in use" in job.reason
    assert len(tries) > 2 * job.max_failures and job.num_failures < job.max_failures
    assert max(b - a for a, b in pairwise(gaps[1:])) <= 75
    while rig.state(one) != State.SUCCEEDED:
        rig.tick(1)
        if rig.state(one) == State.RUNNING and rig.worker(one) not in tries:
            tries.append(rig.worker(one))
            rig.worker(one).reports = [attempt()]
        assert rig.clock.now - 1_800_000_000 < 1000


def test_what_the_ledger_could_not_take_is_offered_again(rig: Rig, one: int, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise LedgerError("The ledger cannot be used: the server restarts.")

    rig.worker(one).reports = [Succeeded(metrics={"num_faces": 12})]
    with monkeypatch.context() as context:
        context.setattr(rig.ledger.attempts, "succeed", unreachable)
        with pytest.raises(LedgerError):
            rig.tick()
    rig.tick()
    assert rig.state(one) == State.SUCCEEDED and rig.ledger.jobs.get(one).metrics == {"num_faces": 12}


def test_more_urgent_work_takes_the_place_at_a_checkpoint(rig: Rig):
    low = rig.submit(submission(1), submission(2))
    rig.tick()
    rig.clock.advance(30)
    for _ in range(5):
        rig.tick(10)
    (urgent,) = rig.submit(submission(3, priority=9))
    rig.tick()
    asked = [job for job in low if rig.worker(job).stops]
    assert len(asked) == 1 and rig.worker(asked[0]).stops == [True], "at a checkpoint, and only one"
    assert "make room" in rig.controller.why_waiting(rig.ledger.jobs.get(urgent))
    rig.worker(asked[0]).reports = [Stopped("made room")]
    rig.tick()
    assert rig.state(urgent) == State.RUNNING and rig.state(asked[0]) == State.QUEUED


def test_the_first_of_a_group_wins_and_the_others_are_cancelled(rig: Rig):
    best = NewGroup(name="best of 3")
    jobs = [submitted.id for submitted in rig.ledger.jobs.submit([submission(n) for n in range(3)], group=best)]
    rig.tick()
    rig.worker(jobs[1]).reports = [Succeeded()]
    rig.tick()
    rig.tick()
    rig.worker(jobs[0]).reports = [Stopped("stopped")]
    rig.tick()
    assert [rig.state(job) for job in jobs] == [State.CANCELLED, State.SUCCEEDED, State.CANCELLED]
    assert [rig.ledger.jobs.get(job).is_winner for job in jobs] == [False, True, False]


def test_a_try_far_behind_another_at_the_same_step_ends_early_and_says_why(rig: Rig):
    best = NewGroup(name="best of 3", metric="prior_score")
    jobs = [submitted.id for submitted in rig.ledger.jobs.submit([submission(n) for n in range(3)], group=best)]
    rig.tick()
    rig.worker(jobs[0]).reports = [Succeeded(metrics={"prior_score": 0.51, "prior_score_50": 0.40})]
    rig.worker(jobs[1]).reports = [Progress(stage="fit", step=5, total=10, metrics={"prior_score_50": 0.35})]
    rig.tick()
    rig.worker(jobs[2]).reports = [Progress(stage="fit", step=5, total=10, metrics={"prior_score_50": 0.15})]
    for _ in range(3):
        rig.tick()
    assert not rig.worker(jobs[1]).stops and rig.worker(jobs[2]).stops == [False], "asked once"
    rig.worker(jobs[1]).reports = [Succeeded(metrics={"prior_score": 0.52})]
    rig.worker(jobs[2]).reports = [Stopped("stopped")]
    rig.tick()
    rig.tick()
    assert [rig.state(job) for job in jobs] == [State.SUCCEEDED, State.SUCCEEDED, State.CANCELLED]
    told = [event.text for event in rig.ledger.jobs.events(jobs[2])]
    assert "to be cancelled at the next step: hopeless: prior_score_50 0.15, where a better try had 0.4" in told
    assert [rig.ledger.jobs.get(job).is_winner for job in jobs] == [False, True, False]


def test_what_can_never_fit_fails_with_a_sentence_and_idle_priors_are_evicted(rig: Rig):
    rig.workers.resident = [PriorView(source="old", memory_bytes=15 * GB, last_used_at=0.0)]
    too_large, large = rig.submit(submission(1, memory_bytes=50 * GB), submission(2, memory_bytes=10 * GB))
    rig.tick(200)
    assert rig.state(too_large) == State.FAILED and "there are 20.0 GB in all" in rig.ledger.jobs.get(too_large).reason
    assert rig.workers.evicted == ["old"] and rig.state(large) == State.RUNNING


class Impatient(ScriptedWorkers):
    """Somebody acts while a round is being planned."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], object] = lambda: None

    def priors(self) -> list[PriorView]:
        self.act()
        return super().priors()


@pytest.mark.parametrize(("action", "state"), [("cancel", State.CANCELLED), ("pause", State.PAUSED)])
def test_what_can_never_fit_may_be_cancelled_while_its_refusal_is_planned(tmp_path: Path, action: str, state: State):
    rig = Rig(tmp_path / "state", make_workers=Impatient)
    (too_large,) = rig.submit(submission(1, memory_bytes=50 * GB))
    rig.workers.act = lambda: getattr(rig.ledger.jobs, action)(too_large)
    rig.tick()
    assert rig.state(too_large) == state and not rig.ledger.jobs.get(too_large).is_dead_letter
    rig.ledger.close()


def test_closing_queues_what_runs_and_starts_nothing(rig: Rig, one: int):
    rig.controller.close()
    (later,) = rig.submit(submission(2))
    rig.worker(one).reports = [Stopped("stopped")]
    rig.tick()
    assert rig.controller.num_running == 0
    assert rig.state(one) == rig.state(later) == State.QUEUED


def test_a_users_weight_is_divided_among_their_jobs_and_reaches_the_prior(rig: Rig):
    mine, other = rig.submit(submission(1, user="ada"), submission(2, user="bob"))
    rig.ledger.jobs.set_weight("ada", 3.0)
    rig.tick()
    assert rig.worker(mine).weights == [3.0] and rig.worker(other).weights == [1.0]
    rig.ledger.jobs.set_weight("ada", 5.0)
    rig.tick()
    rig.tick()
    assert rig.worker(mine).weights == [3.0, 5.0]
    rig.worker(other).reports.append(Succeeded())
    (second,) = rig.submit(submission(3, user="ada"))
    rig.tick()
    rig.tick()
    assert rig.worker(mine).weights[-1] == rig.worker(second).weights[-1] == 2.5
    num_told = len(rig.worker(mine).weights)
    rig.tick(61)  # a replica that was started anew meanwhile knows none
    assert rig.worker(mine).weights[num_told:] == [2.5]
