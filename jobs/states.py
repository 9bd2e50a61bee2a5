"""What can happen to a job: its states, the legal ways between them, and the kinds of failure.

::

                 ┌────────── preempted, or retried later ──────────┐
                 v                                                 │
    submit -> queued ── start ──> running ──> succeeded ── retry ──┤ (of rows that failed)
                 │ ^                 │ ├────> failed ── retry ─────┤
                 │ └── resume ─┐     │ ├────> cancelled ── retry ──┤
                 ├── pause ──> paused <┤                           │
                 │             │       └────> lost ────────────────┘
                 └──> cancelled, failed       (its worker fell silent)
"""

from __future__ import annotations

from enum import StrEnum

from jobs.errors import InputError

__all__ = ["LEGAL", "TERMINAL", "DesiredState", "FailureKind", "IllegalTransition", "State", "check_transition"]


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class DesiredState(StrEnum):
    """What a user, or the scheduler, wants of a running job; its worker stops at the next step or checkpoint."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"
    YIELD = "yield"
    """Back to the queue at the next checkpoint: a more urgent job needs the room."""


class FailureKind(StrEnum):
    """Why an attempt ended; what follows is `orchestrator.scheduling.retries`."""

    BAD_INPUT = "bad input"
    COLLAPSED = "collapsed"
    PRIOR_DIED = "prior died"
    OUT_OF_MEMORY = "out of memory"
    DISK_FULL = "disk full"
    WORKER_LOST = "worker lost"
    PLACE_IN_USE = "place in use"
    """Another process writes into the job's folder: perhaps a worker that was given up for lost and lives on, far away."""
    UNEXPECTED = "unexpected"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
"""States that only a user's `retry` leaves; SUCCEEDED only that of a batch job with rows that have no picture."""

LEGAL: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.PAUSED, State.CANCELLED, State.FAILED}),
    State.RUNNING: frozenset(
        {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.PAUSED, State.QUEUED, State.LOST},
    ),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.LOST: frozenset({State.QUEUED, State.FAILED, State.CANCELLED, State.PAUSED}),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
    State.SUCCEEDED: frozenset({State.QUEUED}),
}


class IllegalTransition(InputError):
    """A job cannot be moved that way from where it stands, such as pausing one that has succeeded."""


def check_transition(before: State, after: State, *, what: str = "The job") -> None:
    """Return if `before` -> `after` is legal.

    Raises:
        IllegalTransition: it is not; the message names the states that can be reached.
    """
    if after in LEGAL[before]:
        return
    reachable = ", ".join(sorted(LEGAL[before]))
    way = "it has ended" if before == State.SUCCEEDED else f"from there it can only become {reachable}"
    raise IllegalTransition(f"{what} is {before} and cannot become {after}; {way}.")
