"""Places and memory: what is free, what an eviction would free, and whether a job could ever fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.scheduling.model import GpuNeed, PriorView, QueuedJob, RunningJob, View

__all__ = ["Room"]

GIGABYTE = 10**9


@dataclass
class Room:
    """The state of the machine while a plan is made: every start and eviction of the plan is taken off at once."""

    view: View
    num_free: int = 0
    bytes_free: int = 0
    gpus_free: list[int] = field(default_factory=list)
    priors: dict[str, PriorView] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, view: View) -> Room:
        """As it is now."""
        room = cls(view, view.capacity.num_workers, view.capacity.memory_bytes, list(view.capacity.gpus))
        for prior in view.priors:
            room._load(prior)
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
        need, gpus = self.view.gpu_needs.get(job.prior), self.view.capacity.gpus
        if need and gpus and (need.least > max(gpus) or self._homes(job.prior, list(gpus)) is None):
            return (
                f"Its prior needs {need.least / GIGABYTE:.1f} GB of a GPU at least{_each(need)}, but the largest of "
                f"{len(gpus)} has {max(gpus) / GIGABYTE:.1f} GB; take a smaller prior, or this one in half precision with "
                "'?dtype=float16'."
            )
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
        idle = self._idle(job.prior)
        missing = self._needed(job) - self.bytes_free - sum(prior.memory_bytes for prior in idle)
        if missing > 0:
            return f"{missing / GIGABYTE:.1f} GB of memory are missing"
        free = list(self.gpus_free)
        for gpu, num_bytes in (held for prior in idle for held in prior.gpus):
            free[gpu] += num_bytes
        if self._homes(job.prior, free) is None:
            need = self.view.gpu_needs[job.prior]
            return (
                f"its prior needs {need.least / GIGABYTE:.1f} GB of a GPU{_each(need)}, and {max(free) / GIGABYTE:.1f} GB of "
                "one are free"
            )
        return None

    def take(self, job: QueuedJob) -> list[str]:
        """Start it, evicting idle priors, least recently used first, where memory is short. Returns the evicted ones."""
        evicted = []
        for prior in self._idle(job.prior):
            if self.bytes_free >= self._needed(job) and self._homes(job.prior, self.gpus_free) is not None:
                break
            del self.priors[prior.source]
            self.bytes_free += prior.memory_bytes
            for gpu, num_bytes in prior.gpus:
                self.gpus_free[gpu] += num_bytes
            evicted.append(prior.source)
        self.num_free -= 1
        self.bytes_free -= job.memory_bytes
        self._hold(job.prior)
        return evicted

    def reserve(self, job: QueuedJob) -> None:
        """Keep a place for a job that does not fit yet, so that smaller ones do not overtake it for ever."""
        self.num_free -= 1
        self.bytes_free -= self._needed(job)
        if self.gpus_free and (need := self.view.gpu_needs.get(job.prior)) and not self.is_resident(job.prior):
            self.gpus_free[self.gpus_free.index(max(self.gpus_free))] -= need.least

    def _hold(self, source: str) -> None:
        """The prior is needed from now on; one that is not resident is loaded."""
        self.in_use.add(source)
        if not self.is_resident(source):
            size, gpus = self._prior_bytes(source), self._homes(source, self.gpus_free) or ()
            self._load(PriorView(source=source, memory_bytes=size, last_used_at=self.view.now, gpus=gpus))

    def _load(self, prior: PriorView) -> None:
        self.priors[prior.source] = prior
        self.bytes_free -= prior.memory_bytes
        for gpu, num_bytes in prior.gpus:
            self.gpus_free[gpu] -= num_bytes

    def _homes(self, source: str, free: list[int]) -> tuple[tuple[int, int], ...] | None:
        """For each replica that has to be loaded the GPU with the most free, and what it takes there; None without room."""
        need = self.view.gpu_needs.get(source)
        if need is None or not free or self.is_resident(source) or not self.view.capacity.are_gpus_shared_out:
            return ()
        left, homes = list(free), list[tuple[int, int]]()
        for _ in range(need.replicas):
            taken = [gpu for gpu, _ in homes]
            fitting = [gpu for gpu, num_bytes in enumerate(left) if num_bytes >= need.least]
            if not fitting:
                return None
            gpu = min(fitting, key=lambda gpu: (taken.count(gpu), -left[gpu], gpu))
            homes.append((gpu, need.least if need.replicas > len(left) else min(need.at_ease, left[gpu])))
            left[gpu] -= homes[-1][1]
        return tuple(homes)

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


def _each(need: GpuNeed) -> str:
    return f" for each of {need.replicas} replicas" if need.replicas > 1 else ""
