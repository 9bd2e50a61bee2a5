"""Which running jobs make room for a more urgent one. They yield at their next checkpoint, so no work is lost."""

from __future__ import annotations

import copy
from collections.abc import Container

from orchestrator.scheduling.model import Policy, QueuedJob, RunningJob, View
from orchestrator.scheduling.room import Room

__all__ = ["victims"]


def victims(job: QueuedJob, room: Room, view: View, policy: Policy, *, spared: Container[int]) -> list[RunningJob] | None:
    """The fewest jobs of lower priority whose places, with `room`, would do: lowest priority first, then last started.

    Args:
        room: what there will be once the jobs that already yield have left.
        spared: jobs that were asked in this round, for another.

    Returns:
        Jobs to ask, none if it is enough to wait; or None where no set of them would do.
    """
    trial = copy.copy(room)
    chosen: list[RunningJob] = []
    open_to = [
        running
        for running in view.running
        if not running.is_yielding
        and running.id not in spared
        and running.priority < job.priority
        and view.now - running.started_at >= policy.least_run
    ]
    open_to.sort(key=lambda running: (-running.priority, running.started_at, running.id))
    while trial.lacks(job) is not None:
        if not open_to:
            return None
        chosen.append(open_to.pop())
        trial.without(chosen[-1])
    return chosen
