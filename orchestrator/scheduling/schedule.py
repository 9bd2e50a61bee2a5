"""One round of scheduling."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from orchestrator.scheduling.fair_share import candidates
from orchestrator.scheduling.model import Policy, QueuedJob, View
from orchestrator.scheduling.preemption import victims
from orchestrator.scheduling.room import Room

__all__ = ["NUM_LOOKAHEAD", "Plan", "schedule"]

NUM_LOOKAHEAD = 64
"""Jobs that one round looks past because they cannot start."""


@dataclass
class Plan:
    """Decisions of one round, each with its reason; to be carried out in this order.

    Args:
        refuse: jobs that can never run here. evict: priors to unload. start: jobs to start, in order. make_room: running jobs
            that shall yield at their next checkpoint. wait: why the next few jobs do not start; the others wait behind them.
    """

    refuse: dict[int, str] = field(default_factory=dict)
    evict: dict[str, str] = field(default_factory=dict)
    start: dict[int, str] = field(default_factory=dict)
    make_room: dict[int, str] = field(default_factory=dict)
    wait: dict[int, str] = field(default_factory=dict)


def schedule(view: View, policy: Policy | None = None) -> Plan:
    """Decide who starts, who makes room and who waits.

    Jobs are taken in the order of `fair_share.candidates`. Up to `NUM_LOOKAHEAD` that cannot start are looked past: a smaller
    job may overtake one that does not fit for `policy.backfill` seconds, then room is kept for that one; a job whose prior
    is resident may overtake one of its priority whose prior is not for `policy.prior_patience` seconds.
    """
    return _Round(view, policy or Policy()).run()


class _Round:
    """now: what is free. soon: what will be, once those that yield have left."""

    def __init__(self, view: View, policy: Policy) -> None:
        self._view, self._policy = view, policy
        self._plan = Plan()
        self._now, self._soon = Room.of(view), Room.of(view)
        self._num_running = Counter(job.user for job in view.running)
        self._held: dict[int, str] = {}
        for job in view.running:
            if job.is_yielding:
                self._soon.without(job)

    def run(self) -> Plan:
        """See `schedule`."""
        plan, postponed, level = self._plan, list[tuple[QueuedJob, str]](), None
        for job, reason in candidates(self._view, self._policy):
            if len(plan.wait) >= NUM_LOOKAHEAD:
                break
            if job.priority != level:
                self._start_postponed(postponed)
                level = job.priority
            if self._is_held(job):
                continue
            if never := self._now.never_fits(job):
                plan.refuse[job.id] = never
            elif lack := self._now.lacks(job):
                plan.wait[job.id] = lack
                self._provide_for(job)
            elif not self._now.is_resident(job.prior) and self._view.now - job.ready_at < self._policy.prior_patience:
                postponed.append((job, reason))
            else:
                self._start(job, reason)
        self._start_postponed(postponed)
        plan.wait = {**self._held, **plan.wait}
        return plan

    def _is_held(self, job: QueuedJob) -> bool:
        """Whether its user has as many jobs at work as they may. Such jobs keep no room and stand in nobody's way."""
        num, most = self._num_running[job.user], self._view.max_running.get(job.user)
        if most is None or num < most:
            return False
        if len(self._held) < NUM_LOOKAHEAD:
            self._held[job.id] = f"{job.user} has {num} at work, as many as may be at once"
        return True

    def _start(self, job: QueuedJob, reason: str) -> None:
        if self._is_held(job):
            return
        self._num_running[job.user] += 1
        # Evicted for an earlier job of this round, but there is room again: it stays, where no GPU may have been given away.
        stays = not self._view.capacity.gpus and self._plan.evict.pop(job.prior, None) is not None
        loads = "" if stays or self._now.is_resident(job.prior) else f"; its prior {job.prior!r} is loaded"
        for source in self._now.take(job):
            self._plan.evict[source] = f"idle, and job {job.id} needs its memory"
        self._soon.take(job)
        self._plan.start[job.id] = reason + loads

    def _start_postponed(self, postponed: list[tuple[QueuedJob, str]]) -> None:
        """Those whose prior is not resident get what the others of their priority have left."""
        for job, reason in postponed:
            if lack := self._now.lacks(job):
                loaded = self._now.is_resident(job.prior)
                self._plan.wait[job.id] = lack if loaded else f"{lack}; jobs whose prior is loaded go first for a while"
                self._provide_for(job)
            else:
                self._start(job, reason)
        postponed.clear()

    def _provide_for(self, job: QueuedJob) -> None:
        """For a job that cannot start: ask others to yield, or keep what is free from smaller ones."""
        plan, lack = self._plan, self._plan.wait[job.id]
        asked = victims(job, self._soon, self._view, self._policy, spared=plan.make_room)
        if asked is not None:
            for running in asked:
                plan.make_room[running.id] = f"job {job.id} of priority {job.priority} needs its place"
                self._soon.without(running)
            plan.wait[job.id] = f"{lack}; jobs of lower priority make room for it at their next checkpoint"
        elif self._view.now - job.ready_at >= self._policy.backfill and self._now.num_free > 0:
            plan.wait[job.id] = f"{lack}; room is kept for it"
        else:
            return
        self._now.reserve(job)
        self._soon.reserve(job)
