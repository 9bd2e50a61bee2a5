"""The order of the queue: who waited too long, then priority, then the user who has had least of their share."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterator

from orchestrator.scheduling.model import Policy, QueuedJob, View

__all__ = ["candidates"]


class _Queue:
    """One user's jobs of one priority, first come first served."""

    def __init__(self, user: str, priority: int, jobs: list[QueuedJob], served_at: float) -> None:
        self.user, self.priority = user, priority
        self.jobs = deque(sorted(jobs, key=lambda job: (job.ready_at, job.id)))
        self.served_at = served_at

    @property
    def waiting_since(self) -> float:
        """When it was last served, or when its first job came, whichever is later."""
        return max(self.served_at, self.jobs[0].ready_at)


def candidates(view: View, policy: Policy) -> Iterator[tuple[QueuedJob, str]]:
    """Every job that may run now, in the order in which they should start, each with the reason for its place.

    A user's share is weighted start-time fair queueing in its simplest form: the next job is that of the user whose
    (recent seconds + expected seconds of what runs and of what this very order gives them) / weight is least.
    """
    queues = _queues(view)
    charged: dict[str, float] = defaultdict(float, view.usage)
    # Charged too much, the number of jobs at once would decide and not what was used; too little, one user would get every
    # place that is free at one moment.
    expected = policy.expected_run if view.mean_run is None else view.mean_run
    for running in view.running:
        charged[running.user] += max(0.0, expected - (view.now - running.started_at))

    overdue = [queue for queue in queues.values() if view.now - queue.waiting_since >= policy.patience]
    for queue in sorted(overdue, key=lambda queue: (queue.waiting_since, queue.jobs[0].id)):
        waited = (view.now - queue.waiting_since) / 60
        job = queue.jobs.popleft()
        charged[job.user] += expected
        yield job, f"no job of {job.user} with priority {job.priority} was started for {waited:.0f} minutes"

    by_priority: dict[int, list[_Queue]] = defaultdict(list)
    for queue in queues.values():
        if queue.jobs:
            by_priority[queue.priority].append(queue)
    for priority in sorted(by_priority, reverse=True):
        yield from _in_fair_order(by_priority[priority], charged, view, expected)


def _in_fair_order(
    queues: list[_Queue], charged: dict[str, float], view: View, expected: float
) -> Iterator[tuple[QueuedJob, str]]:
    def rank(queue: _Queue) -> tuple[float, float, int]:
        return charged[queue.user] / view.weights.get(queue.user, 1.0), queue.jobs[0].ready_at, queue.jobs[0].id

    heap = [(rank(queue), index) for index, queue in enumerate(queues)]
    heapq.heapify(heap)
    while heap:
        (share, _, _), index = heapq.heappop(heap)
        queue = queues[index]
        job = queue.jobs.popleft()
        charged[queue.user] += expected
        place = f"of {len(heap) + 1} users, {job.user} has had and runs least ({share:.0f} s)" if heap else "next in line"
        yield job, f"priority {job.priority}; {place}"
        if queue.jobs:
            heapq.heappush(heap, (rank(queue), index))


def _queues(view: View) -> dict[tuple[str, int], _Queue]:
    jobs: dict[tuple[str, int], list[QueuedJob]] = defaultdict(list)
    for job in view.queued:
        if job.ready_at <= view.now:
            jobs[job.user, job.priority].append(job)
    return {key: _Queue(*key, found, view.last_starts.get(key, float("-inf"))) for key, found in jobs.items()}
