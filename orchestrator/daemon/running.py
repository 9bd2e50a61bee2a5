"""A job at work: its lease, its worker, and what that has been told."""

from __future__ import annotations

import dataclasses
from collections import deque

from jobs.events import Progress
from jobs.ledger import JobRecord, Lease
from jobs.states import DesiredState
from orchestrator.daemon.job_log import JobLog
from orchestrator.daemon.reports import Report, Worker

__all__ = ["Running", "Timing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds.

    Args:
        lease: without a sign of life a worker is lost after so long; `first_lease` until its first one, while its process
            starts.
        renew, heartbeat, schedule: between two of them.
        round: jobs are started for so long before the others are polled again.
        stop: a worker that was told to stop at its next step is killed after so long; its checkpoint is whole at any time.
        weigh: a prior is told its jobs' shares again after so long, because a replica that was started anew knows none.
        usage_window: how far back a user's share is counted.
        prune: between two looks for ended jobs that are to be forgotten, `prune_jobs` at once.
    """

    lease: float = 30.0
    first_lease: float = 180.0
    renew: float = 1.0
    heartbeat: float = 2.0
    schedule: float = 1.0
    round: float = 0.25
    stop: float = 1.0
    weigh: float = 60.0
    usage_window: float = 24 * 3600.0
    prune: float = 600.0
    prune_jobs: int = 200


@dataclasses.dataclass
class Running:
    """A job of this orchestrator at work.

    Args:
        pending: reports that the ledger has not taken yet. progress: the newest that it does not know of.
        polled_at, answered_at, renewed_at: when the worker was asked for reports last, when it answered, and when its lease was
            prolonged.
        weight: the share of the prior that it was given last, at `weighed_at`.
        told: what the worker was told last. kill_at: when it is killed if it has not stopped by then.
    """

    job: JobRecord
    lease: Lease
    worker: Worker
    log: JobLog
    started_at: float
    pending: deque[Report] = dataclasses.field(default_factory=deque)
    polled_at: float = 0.0
    answered_at: float = 0.0
    progress: Progress | None = None
    renewed_at: float = 0.0
    weight: float = 1.0
    weighed_at: float = 0.0
    told: DesiredState = DesiredState.RUN
    kill_at: float | None = None
