"""Attempts: leases on jobs, and everything that a worker reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from jobs.events import Progress
from jobs.ledger.database import Database
from jobs.ledger.records import ArtefactRecord, AttemptRecord, Lease, StaleLease
from jobs.ledger.rows import end_attempt, find_job, held_job, move_job, storable
from jobs.ledger.tables import Artefact, Attempt, Event, Job
from jobs.states import DesiredState, FailureKind, IllegalTransition, State

__all__ = ["AttemptTable"]


class AttemptTable:
    """The tables `attempts` and `artefacts`, and the leases on the rows of `jobs`; `Ledger.attempts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # The worker's side: everything here but `start` needs the lease.

    def start(self, job_id: int, holder: str, *, seconds: float) -> Lease:
        """Lease a queued job for that long; queued -> running.

        Raises:
            IllegalTransition: it is not queued (any more).
        """
        with self._database.write() as session:
            now = self._database.clock()
            row = find_job(session, job_id, lock=True)
            move_job(session, row, State.RUNNING, f"attempt {row.num_attempts + 1} by {holder}", now)
            row.fence += 1
            row.num_attempts += 1
            row.lease_holder, row.lease_expires_at = holder, now + seconds
            row.owner_epoch = self._database.epoch or 0
            row.started_at = row.started_at or now
            row.desired_state = DesiredState.RUN
            row.stage, row.step, row.total = "", 0, 0  # what was shown of the attempt before is no longer true
            session.add(
                Attempt(job_id=job_id, fence=row.fence, holder=holder, outcome=State.RUNNING, reason="", started_at=now)
            )
            return Lease(job_id=job_id, fence=row.fence, holder=holder, expires_at=now + seconds)

    def renew(self, lease: Lease, *, seconds: float, progress: Progress | None = None) -> tuple[Lease, DesiredState]:
        """The worker lives: a longer lease, and its desired state.

        A lease that ran out but was given to nobody else may still be renewed: nothing can have gone wrong.

        Raises:
            StaleLease: the job was given up for lost, given to another, or ended.
        """
        found = self.renew_all({lease: progress}, seconds=seconds)[lease]
        if isinstance(found, StaleLease):
            raise found
        return found

    def renew_all(
        self, progress: Mapping[Lease, Progress | None], *, seconds: float
    ) -> dict[Lease, tuple[Lease, DesiredState] | StaleLease]:
        """What `renew` does for each of them, in one transaction: on a slow disk ten take as long as one."""
        found: dict[Lease, tuple[Lease, DesiredState] | StaleLease] = {}
        with self._database.write(is_move=True) as session:
            now = self._database.clock()
            columns = (Job.id, Job.state, Job.fence, Job.desired_state, Job.metrics)  # no spec: this happens every second
            query = select(*columns).where(Job.id.in_({lease.job_id for lease in progress})).with_for_update()
            rows = {row.id: row for row in session.execute(query)}
            told: list[dict[str, Any]] = []
            for lease, moved in progress.items():
                row = rows.get(lease.job_id)
                if row is None or row.state != State.RUNNING or row.fence != lease.fence:
                    try:
                        held_job(session, lease)
                    except StaleLease as error:
                        found[lease] = error
                        continue
                assert row is not None
                values = {} if moved is None else _moved(row.metrics, moved)
                told.append({"id": row.id, "lease_expires_at": now + seconds, "updated_at": now, **values})
                found[lease] = dataclasses.replace(lease, expires_at=now + seconds), DesiredState(row.desired_state)
            for some in ([one for one in told if len(one) == num] for num in {len(one) for one in told}):
                session.execute(update(Job), some)
        return found

    def say(self, lease: Lease, text: str, level: str = "info") -> None:
        """A sentence for the user. Raises StaleLease."""
        with self._database.write() as session:
            row = held_job(session, lease)
            session.add(Event(job_id=row.id, at=self._database.clock(), kind=level, text=storable(text)))

    def succeed(
        self, lease: Lease, *, metrics: Mapping[str, Any] | None = None, artefacts: Mapping[str, tuple[int, str]] | None = None
    ) -> None:
        """running -> succeeded. artefacts: name -> (bytes, sha256). Raises StaleLease."""
        with self._database.write() as session:
            now = self._database.clock()
            row = held_job(session, lease)
            end_attempt(session, row, State.SUCCEEDED, "done", now)
            row.metrics = dict(metrics or {})
            row.failure_kind = None
            for name, (num_bytes, sha256) in (artefacts or {}).items():
                session.merge(Artefact(job_id=row.id, name=name, num_bytes=num_bytes, sha256=sha256, created_at=now))

    def fail(self, lease: Lease, kind: FailureKind, reason: str, *, retry_at: float | None, counts: bool = True) -> None:
        """running -> queued, not before `retry_at`; or without one running -> failed, a dead letter.

        counts: towards `max_failures`; waiting for a full disk does not. Raises StaleLease.
        """
        with self._database.write() as session:
            self._fail(session, held_job(session, lease), kind, reason, retry_at, counts)

    def release(self, lease: Lease, reason: str) -> State:
        """The worker stopped as it was asked to: running -> cancelled, paused or, if it only made room, queued.

        What counts is the desired state of now, not of the moment when the worker began to stop. Returns the new state.
        Raises StaleLease.
        """
        with self._database.write() as session:
            row = held_job(session, lease)
            end_attempt(session, row, State.QUEUED, reason, self._database.clock())
            return State(row.state)

    # The owner's side.

    def expire(self) -> list[int]:
        """running -> lost where a lease has run out, or was given by an owner before this one. Returns the jobs.

        An attempt lasted until its lease ran out, at most: whoever notices may have been switched off for days.
        """
        with self._database.write() as session:
            now = self._database.clock()
            query = select(Job).where(
                Job.state == State.RUNNING,
                or_(Job.lease_expires_at < now, Job.owner_epoch < (self._database.epoch or 0)),
            )
            rows = session.scalars(query.with_for_update()).all()
            for row in rows:
                is_old = row.owner_epoch < (self._database.epoch or 0)
                silence = "its orchestrator ended" if is_old else f"{row.lease_holder} fell silent"
                end_attempt(session, row, State.LOST, silence, now, FailureKind.WORKER_LOST, worked_until=row.lease_expires_at)
                row.failure_kind = FailureKind.WORKER_LOST
            return [row.id for row in rows if row.state == State.LOST]

    def settle_lost(self, job_id: int, *, reason: str, retry_at: float | None, counts: bool = True) -> None:
        """lost -> queued, not before `retry_at`; or without one lost -> failed, a dead letter.

        Nothing where it is lost no more: its user has cancelled or paused it since.
        """
        with self._database.write() as session:
            row = find_job(session, job_id, lock=True)
            if row.state == State.LOST:
                self._fail(session, row, FailureKind.WORKER_LOST, reason, retry_at, counts)

    def set_desired_state(self, job_id: int, desired_state: DesiredState, reason: str) -> None:
        """What a running job's worker is told at its next sign of life; what its user asked goes before."""
        with self._database.write() as session:
            row = find_job(session, job_id, lock=True)
            if row.state != State.RUNNING:
                raise IllegalTransition(f"Job {job_id} is {row.state}, not running; nothing can be asked of its worker.")
            if row.desired_state not in (DesiredState.CANCEL, DesiredState.PAUSE, desired_state):
                row.desired_state = desired_state
                session.add(Event(job_id=job_id, at=self._database.clock(), kind="info", text=reason))

    def of(self, job_id: int) -> list[AttemptRecord]:
        """First to last."""
        with self._database.read() as session:
            rows = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.fence))
            return [_attempt(row) for row in rows]

    def artefacts(self, job_id: int) -> list[ArtefactRecord]:
        """By name."""
        with self._database.read() as session:
            rows = session.scalars(select(Artefact).where(Artefact.job_id == job_id).order_by(Artefact.name))
            return [
                ArtefactRecord(
                    job_id=row.job_id, name=row.name, num_bytes=row.num_bytes, sha256=row.sha256, created_at=row.created_at
                )
                for row in rows
            ]

    def _fail(self, session: Session, row: Job, kind: FailureKind, reason: str, retry_at: float | None, counts: bool) -> None:
        now = self._database.clock()
        row.num_failures += counts
        if retry_at is None:
            row.is_dead_letter = True
            end_attempt(session, row, State.FAILED, reason, now, kind)
        else:
            end_attempt(session, row, State.QUEUED, f"to be retried: {reason}", now, kind)
            row.not_before = retry_at
        row.failure_kind = kind


def _moved(metrics: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """What a job's row says of its progress."""
    return {
        "stage": progress.stage,
        "step": progress.step,
        "total": progress.total,
        "seconds_left": progress.seconds_left,
        "metrics": {**metrics, **{name: float(value) for name, value in progress.metrics.items()}},
    }


def _attempt(row: Attempt) -> AttemptRecord:
    return AttemptRecord(
        job_id=row.job_id,
        fence=row.fence,
        holder=row.holder,
        outcome=State(row.outcome),
        failure_kind=FailureKind(row.failure_kind) if row.failure_kind else None,
        reason=row.reason,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
