"""The ledger's queue and the jobs at work, as the scheduler looks at them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from jobs.ledger import Ledger
from jobs.ledger.job_table import WaitingJob
from jobs.states import DesiredState
from orchestrator.daemon.running import Running
from orchestrator.scheduling import Capacity, GpuNeed, PriorView, QueuedJob, RunningJob, View

__all__ = ["view_of"]


def view_of(
    ledger: Ledger,
    queued: Sequence[WaitingJob],
    running: Iterable[Running],
    *,
    capacity: Capacity,
    priors: Sequence[PriorView],
    prior_bytes: Mapping[str, int],
    gpu_needs: Mapping[str, GpuNeed],
    usage_window: float,
    last_starts: Mapping[tuple[str, int], float],
    max_running: Mapping[str, int],
) -> View:
    """What `orchestrator.scheduling.schedule` decides on.

    Args:
        queued: see `JobTable.waiting`. prior_bytes, gpu_needs: source -> bytes, where they are known.
        usage_window: seconds back from now in which a user's share is counted.
        last_starts: (user, priority) -> when a job of theirs was started last.
        max_running: user -> jobs of theirs at once.
    """
    now = ledger.now()
    since = now - usage_window
    return View(
        now=now,
        capacity=capacity,
        queued=[_queued(job) for job in queued],
        running=[_running(one) for one in running],
        priors=[replace(prior, memory_bytes=prior_bytes.get(prior.source, prior.memory_bytes)) for prior in priors],
        prior_bytes=prior_bytes,
        gpu_needs=gpu_needs,
        usage=ledger.jobs.usage(since) if queued else {},
        mean_run=ledger.jobs.mean_run(since) if queued else None,
        weights=ledger.jobs.weights() if queued else {},
        last_starts=last_starts,
        max_running=max_running,
    )


def _queued(job: WaitingJob) -> QueuedJob:
    return QueuedJob(
        id=job.id,
        user=job.user,
        priority=job.priority,
        prior=job.prior,
        memory_bytes=job.memory_bytes,
        ready_at=job.not_before,
    )


def _running(running: Running) -> RunningJob:
    job = running.job
    return RunningJob(
        id=job.id,
        user=job.user,
        priority=job.priority,
        prior=job.prior,
        memory_bytes=job.memory_bytes,
        started_at=running.started_at,
        is_yielding=running.told != DesiredState.RUN,
    )
