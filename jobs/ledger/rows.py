"""What the tables' classes do to rows inside one transaction."""

from __future__ import annotations

import dataclasses

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.ledger.counting import note_move
from jobs.ledger.records import JobRecord, Lease, StaleLease
from jobs.ledger.tables import Attempt, Event, Job
from jobs.states import TERMINAL, DesiredState, FailureKind, State, check_transition

__all__ = ["end_attempt", "find_job", "held_job", "job_record", "move_job", "storable"]


def find_job(session: Session, job_id: int, *, lock: bool = False) -> Job:
    """Raises NotFound where there is no such job."""
    row = session.get(Job, job_id, with_for_update=True if lock else None) if 0 < job_id < 2**63 else None
    if row is None:
        last = session.scalar(select(func.max(Job.id)))
        known = f"the last one is {last}" if last else "none has been submitted yet"
        raise NotFound(f"There is no job {job_id}; {known}. 'dreamkiln jobs list' shows them.")
    return row


def held_job(session: Session, lease: Lease) -> Job:
    """The job that the lease is for. Raises StaleLease if it is no longer held by it."""
    row = find_job(session, lease.job_id, lock=True)
    if row.state != State.RUNNING or row.fence != lease.fence:
        now = f"held by {row.lease_holder} with token {row.fence}" if row.state == State.RUNNING else str(row.state)
        raise StaleLease(f"The lease of {lease.holder} on {lease} (token {lease.fence}) is over: it is {now} now.")
    return row


def move_job(session: Session, row: Job, state: State, reason: str, now: float) -> None:
    """Change the state and write it down. Raises IllegalTransition."""
    check_transition(State(row.state), state, what=f"Job {row.id}")
    note_move(session, row.user, row.state, state)
    reason = storable(reason)
    row.state = state
    row.reason = reason
    row.updated_at = now
    row.ended_at = now if state in TERMINAL else None
    session.add(Event(job_id=row.id, at=now, kind="state", text=f"{state}: {reason}"))


def end_attempt(
    session: Session,
    row: Job,
    state: State,
    reason: str,
    now: float,
    kind: FailureKind | None = None,
    *,
    worked_until: float | None = None,
) -> None:
    """The job's attempt is over and the job moves to `state`. One that is lost has ended its attempt before.

    Args:
        worked_until: where the attempt ended before anybody noticed; now.
    """
    if row.state == State.RUNNING:
        attempt = session.get(Attempt, (row.id, row.fence))
        assert attempt is not None, f"job {row.id} runs without an attempt"
        attempt.ended_at = now if worked_until is None else min(now, worked_until)
        attempt.reason, attempt.failure_kind = storable(reason), kind
        # A failure that will be retried leaves the job queued, but the attempt has failed.
        attempt.outcome = State.FAILED if kind and state == State.QUEUED else state
        row.seconds_run += max(0.0, attempt.ended_at - attempt.started_at)
    # What its user asked for holds, also when the worker was lost or failed before it stopped.
    if state in (State.QUEUED, State.LOST) and row.desired_state in (DesiredState.CANCEL, DesiredState.PAUSE):
        state, reason = (State.CANCELLED, "cancelled") if row.desired_state == DesiredState.CANCEL else (State.PAUSED, "paused")
    move_job(session, row, state, reason, now)
    row.lease_holder = row.lease_expires_at = None
    row.seconds_left = None
    row.desired_state = DesiredState.RUN


def storable(text: str) -> str:
    """The text without what a database cannot hold: halves of surrogate pairs and, in PostgreSQL, NUL.

    Libraries and file systems say such things when they fail, as of files whose names are no UTF-8, and a failure must reach
    the ledger.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def job_record(row: Job) -> JobRecord:
    """The row as a value."""
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(JobRecord)}
    values |= {
        "state": State(row.state),
        "desired_state": DesiredState(row.desired_state),
        "failure_kind": FailureKind(row.failure_kind) if row.failure_kind else None,
    }
    return JobRecord(**values)
