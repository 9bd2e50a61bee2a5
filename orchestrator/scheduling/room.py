"""Places and memory: what is free, what an eviction would free, and whether a job could ever fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.scheduling.model import PriorView, QueuedJob, RunningJob, View

__all__ = ["Room"]

GIGABYTE = 10**9


@dataclass
class Room:
    """The state of the machine while a plan is made: every start and eviction of the plan is taken off at once."""

    view: View
    num_free: int = 0
    bytes_free: int = 0
    priors: dict[str, PriorView] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, view: View) -> Room:
        """As it is now."""
        room = cls(view, view.capacity.num_workers, view.capacity.memory_bytes)
        for prior in view.priors:
            room.priors[prior.source] = prior
            room.bytes_free -= prior.memory_bytes
        for job in view.running:
            room.num_free -= 1
            room.bytes_free -= job.memory_bytes
            room._hold(job.prior)
        return room

    def without(self, job: RunningJob) -> None:
        """As if that job had made room; its prior stays, idle if nobody else uses it."""
        self.num_free += 1
        self.bytes_free += job.memory_bytes

    def is_resident(self, source: str) -> bool:
        """Loaded, or loading; a job without a prior, whose source is "", lacks none."""
        return not source or source in self.priors

    def never_fits(self, job: QueuedJob) -> str | None:
        """Why the job cannot run on this machine, however long it waits; None if it can."""
        needed = job.memory_bytes + self._prior_bytes(job.prior)
        if needed <= self.view.capacity.memory_bytes:
            return None
        return (
            f"It needs {job.memory_bytes / GIGABYTE:.1f} GB, and its prior {self._prior_bytes(job.prior) / GIGABYTE:.1f} GB, "
            f"but there are {self.view.capacity.memory_bytes / GIGABYTE:.1f} GB in all; give the orchestrator more (up "
            "--memory) or the job less."
        )

    def lacks(self, job: QueuedJob) -> str | None:
        """Why the job cannot start now, even if idle priors were evicted; None if it can."""
        if self.num_free < 1:
            return f"all {self.view.capacity.num_workers} workers are busy"
        evictable = sum(prior.memory_bytes for prior in self._idle(job.prior))
        missing = self._needed(job) - self.bytes_free - evictable
        return f"{missing / GIGABYTE:.1f} GB of memory are missing" if missing > 0 else None

    def take(self, job: QueuedJob) -> list[str]:
        """Start it, evicting idle priors, least recently used first, where memory is short. Returns the evicted ones."""
        evicted = []
        for prior in self._idle(job.prior):
            if self.bytes_free >= self._needed(job):
                break
            del self.priors[prior.source]
            self.bytes_free += prior.memory_bytes
            evicted.append(prior.source)
        self.num_free -= 1
        self.bytes_free -= job.memory_bytes
        self._hold(job.prior)
        return evicted

    def reserve(self, job: QueuedJob) -> None:
        """Keep a place for a job that does not fit yet, so that smaller ones do not overtake it for ever."""
        self.num_free -= 1
        self.bytes_free -= self._needed(job)

    def _hold(self, source: str) -> None:
        """The prior is needed from now on; one that is not resident is loaded."""
        self.in_use.add(source)
        if not self.is_resident(source):
            size = self._prior_bytes(source)
            self.priors[source] = PriorView(source=source, memory_bytes=size, last_used_at=self.view.now)
            self.bytes_free -= size

    def _idle(self, but: str) -> list[PriorView]:
        idle = [prior for source, prior in self.priors.items() if source not in self.in_use and source != but]
        return sorted(idle, key=lambda prior: (prior.last_used_at, prior.source))

    def _needed(self, job: QueuedJob) -> int:
        return job.memory_bytes + (0 if self.is_resident(job.prior) else self._prior_bytes(job.prior))

    def _prior_bytes(self, source: str) -> int:
        resident = self.priors.get(source)
        if not source:
            return 0
        return resident.memory_bytes if resident else self.view.prior_bytes.get(source, self.view.default_prior_bytes)
