"""Any order of calls, also by workers that were given up: the ledger agrees with a model of a few lines."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from jobs.errors import InputError
from jobs.ledger import Lease, Ledger, StaleLease
from jobs.states import LEGAL, TERMINAL, DesiredState, FailureKind, IllegalTransition, State
from tests.jobs.ledger.conftest import Clock, submission

LEASE_SECONDS = 30


class LedgerMachine(RuleBasedStateMachine):
    """The model: each job's state, desired state, token, the end of its lease, and its folder, which holds one job."""

    jobs = Bundle("jobs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.clock = Clock()
        self.ledger = Ledger.own(str(self.folder / "ledger.db"), clock=self.clock)
        self.state: dict[int, State] = {}
        self.desired: dict[int, DesiredState] = {}
        self.fence: dict[int, int] = {}
        self.expires: dict[int, float] = {}
        self.place: dict[int, int] = {}

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @rule(target=jobs, is_paused=st.booleans(), place=st.integers(0, 5), is_other=st.sampled_from([False, False, True]))
    def submit(self, is_paused: bool, place: int, is_other: bool):
        others = {"spec": {"prompt": "another"}} if is_other else {}
        asked = submission(place, is_paused=is_paused, **others)
        there = self.living_in(place)
        if there is not None and (self.desired[there] == DesiredState.CANCEL or self.ledger.jobs.get(there).spec != asked.spec):
            with pytest.raises(InputError, match=f"Job {there}, which is "):
                self.ledger.jobs.submit([asked])
            return multiple()
        (submitted,) = self.ledger.jobs.submit([asked])
        job = submitted.id
        assert submitted.is_new == (there is None)
        if there is not None:
            assert job == there
            return multiple()
        assert job not in self.state
        self.state[job] = State.PAUSED if is_paused else State.QUEUED
        self.desired[job], self.fence[job], self.place[job] = DesiredState.RUN, 0, place
        return job

    @rule(target=leases, job=jobs)
    def start(self, job: int):
        with self.legal_only(job, State.RUNNING) as is_legal:
            lease = self.ledger.attempts.start(job, "w", seconds=LEASE_SECONDS)
        if not is_legal:
            return multiple()
        assert lease.fence > self.fence[job]
        self.fence[job], self.expires[job] = lease.fence, self.clock.now + LEASE_SECONDS
        self.end(job, State.RUNNING)
        return lease

    @rule(lease=leases)
    def renew(self, lease: Lease):
        with self.fresh_only(lease) as is_fresh:
            _, desired_state = self.ledger.attempts.renew(lease, seconds=LEASE_SECONDS)
        if is_fresh:
            assert desired_state == self.desired[lease.job_id]
            self.expires[lease.job_id] = self.clock.now + LEASE_SECONDS

    @rule(lease=leases)
    def succeed(self, lease: Lease):
        with self.fresh_only(lease) as is_fresh:
            self.ledger.attempts.succeed(lease)
        if is_fresh:
            self.end(lease.job_id, State.SUCCEEDED)

    @rule(lease=leases, again=st.booleans())
    def fail(self, lease: Lease, again: bool):
        with self.fresh_only(lease) as is_fresh:
            self.ledger.attempts.fail(lease, FailureKind.UNEXPECTED, "x", retry_at=self.clock.now if again else None)
        if is_fresh:
            self.end(lease.job_id, State.QUEUED if again else State.FAILED)

    @rule(lease=leases)
    def release(self, lease: Lease):
        with self.fresh_only(lease) as is_fresh:
            self.ledger.attempts.release(lease, "x")
        if is_fresh:
            self.end(lease.job_id, State.QUEUED)

    @rule(job=jobs)
    def cancel(self, job: int):
        self.ask(job, State.CANCELLED, DesiredState.CANCEL, self.ledger.jobs.cancel)

    @rule(job=jobs)
    def pause(self, job: int):
        self.ask(job, State.PAUSED, DesiredState.PAUSE, self.ledger.jobs.pause)

    @rule(job=jobs)
    def resume(self, job: int):
        if self.state[job] == State.RUNNING and self.desired[job] == DesiredState.PAUSE:
            self.ledger.jobs.resume(job)
            self.desired[job] = DesiredState.RUN
        elif self.state[job] == State.PAUSED:
            self.ledger.jobs.resume(job)
            self.end(job, State.QUEUED)
        else:
            with pytest.raises(IllegalTransition):
                self.ledger.jobs.resume(job)

    @rule(job=jobs)
    def retry(self, job: int):
        if self.state[job] in (State.FAILED, State.CANCELLED) and self.living_in(self.place[job]) is None:
            self.ledger.jobs.retry(job)
            self.end(job, State.QUEUED)
        else:
            with pytest.raises(IllegalTransition):
                self.ledger.jobs.retry(job)

    @rule(seconds=st.sampled_from([1, 20, 40]))
    def wait(self, seconds: int):
        self.clock.advance(seconds)

    @rule()
    def expire(self):
        overdue = [job for job, state in self.state.items() if state == State.RUNNING and self.expires[job] < self.clock.now]
        for job in overdue:
            self.end(job, State.LOST)
        assert self.ledger.attempts.expire() == [job for job in overdue if self.state[job] == State.LOST]

    @rule(again=st.booleans())
    def settle(self, again: bool):
        for job in [job for job, state in self.state.items() if state == State.LOST]:
            self.ledger.attempts.settle_lost(job, reason="x", retry_at=self.clock.now if again else None)
            self.end(job, State.QUEUED if again else State.FAILED)

    @rule()
    def next_owner(self):
        """The orchestrator dies and another takes over: whatever ran is lost, once."""
        self.ledger.close()
        self.ledger = Ledger.own(str(self.folder / "ledger.db"), clock=self.clock)
        for job, state in self.state.items():
            if state == State.RUNNING:
                self.end(job, State.LOST)
        self.ledger.attempts.expire()

    @invariant()
    def they_agree(self):
        found = {job.id: (job.state, job.desired_state, job.fence) for job in self.ledger.jobs.recent(limit=1000)}
        assert found == {job: (state, self.desired[job], self.fence[job]) for job, state in self.state.items()}

    def living_in(self, place: int) -> int | None:
        """The job that has not ended there."""
        found = [job for job, state in self.state.items() if self.place[job] == place and state not in TERMINAL]
        assert len(found) <= 1
        return found[0] if found else None

    def end(self, job: int, state: State) -> None:
        if state in (State.QUEUED, State.LOST) and self.desired[job] in (DesiredState.CANCEL, DesiredState.PAUSE):
            state = State.CANCELLED if self.desired[job] == DesiredState.CANCEL else State.PAUSED
        assert state in LEGAL[self.state[job]]
        self.state[job], self.desired[job] = state, DesiredState.RUN

    def ask(self, job: int, state: State, desired_state: DesiredState, call) -> None:
        if self.state[job] == State.RUNNING:
            call(job)
            if self.desired[job] != DesiredState.CANCEL:
                self.desired[job] = desired_state
        elif self.state[job] == state:
            assert call(job) == state
        else:
            with self.legal_only(job, state) as is_legal:
                call(job)
            if is_legal:
                self.state[job] = state

    @contextlib.contextmanager
    def fresh_only(self, lease: Lease):
        is_fresh = self.state[lease.job_id] == State.RUNNING and self.fence[lease.job_id] == lease.fence
        with contextlib.nullcontext() if is_fresh else pytest.raises(StaleLease):
            yield is_fresh

    @contextlib.contextmanager
    def legal_only(self, job: int, state: State):
        is_legal = state in LEGAL[self.state[job]]
        with contextlib.nullcontext() if is_legal else pytest.raises(IllegalTransition):
            yield is_legal


LedgerMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
