"""What a worker tells the orchestrator, and what the orchestrator may ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs.events import Message, Progress
from jobs.ledger import JobRecord, ShardRecord
from jobs.states import FailureKind
from orchestrator.scheduling import Capacity, PriorView

__all__ = ["Failed", "Report", "ShardsCommitted", "Stopped", "Succeeded", "Worker", "Workers"]


@dataclass(frozen=True)
class ShardsCommitted:
    """Shards of a batch job that are committed, now or by an earlier attempt."""

    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Succeeded:
    """The job is done. artefacts: name -> (bytes, sha256)."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Mapping[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped:
    """It stopped because it was told to."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """It ended with an error, or its process died. details: a traceback for the job's log."""

    kind: FailureKind
    reason: str
    details: str = ""


Report = Progress | Message | ShardsCommitted | Succeeded | Stopped | Failed


class Worker(Protocol):
    """A process that runs one job."""

    def poll(self) -> Sequence[Report] | None:
        """What it has reported since; empty while it has nothing to say, None if it has not answered. Never blocks."""
        ...

    def stop(self, *, at_checkpoint: bool) -> None:
        """Ask it to stop at its next step, or after its next checkpoint; `Stopped` follows."""
        ...

    def set_weight(self, weight: float) -> None:
        """The job's share of the shared prior against other jobs, above 0."""
        ...

    def kill(self) -> None:
        """End it now; nothing follows."""
        ...


class Workers(Protocol):
    """Where jobs run."""

    @property
    def capacity(self) -> Capacity:
        """How many at once, in how much memory."""
        ...

    def start(self, job: JobRecord) -> Worker:
        """Begin; what goes wrong is reported by the worker."""
        ...

    def priors(self) -> Sequence[PriorView]:
        """The resident ones."""
        ...

    def evict(self, source: str) -> None:
        """Unload a prior that no job uses."""
        ...
