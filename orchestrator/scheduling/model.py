"""What the policies look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Capacity", "GpuNeed", "Policy", "PriorView", "QueuedJob", "RunningJob", "View"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedJob:
    """A job that waits.

    Args:
        priority: larger goes first. memory_bytes: of its worker, the prior not counted.
        ready_at: when it could first have run: its submission, or the end of its last retry's delay. Later than now: not yet.
    """

    id: int
    user: str
    priority: int
    prior: str
    memory_bytes: int
    ready_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningJob:
    """A job that runs. is_yielding: it has been asked to make room, and will at its next checkpoint."""

    id: int
    user: str
    priority: int
    prior: str
    memory_bytes: int
    started_at: float
    is_yielding: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorView:
    """A prior that is resident.

    Args:
        last_used_at: decides which idle one is evicted first.
        gpus: for each replica its GPU's place in the capacity's, and how many of its bytes are counted for it.
    """

    source: str
    memory_bytes: int
    last_used_at: float
    gpus: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuNeed:
    """Bytes of a GPU that each of a prior's replicas must have, and takes where there are more."""

    least: int
    at_ease: int
    replicas: int = 1


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What there is in all: places for workers, and memory for workers and priors together.

    Args:
        gpus: bytes of each GPU that priors may have; none where they have none, or where its memory is not known.
        are_gpus_shared_out: whether which prior has which GPU is decided here, as on one machine, and not by Ray.
    """

    num_workers: int
    memory_bytes: int
    gpus: tuple[int, ...] = ()
    are_gpus_shared_out: bool = True


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The scheduler's constants, in seconds.

    Args:
        patience: a user's queue of one priority that was passed over for so long gets the next place. It bounds every wait.
        prior_patience: for so long a job whose prior would have to be loaded lets others of its priority go first, whose
            prior is resident.
        backfill: for so long smaller jobs may overtake one that does not fit; then room is kept for it.
        least_run: a job is left alone for so long before a more urgent one may take its place.
        expected_run: what a job that was just started is charged to its user's share, until it has run for longer; for as
            long as no job has ended that would tell.
    """

    patience: float = 3600.0
    prior_patience: float = 120.0
    backfill: float = 600.0
    least_run: float = 60.0
    expected_run: float = 180.0


@dataclass(frozen=True, kw_only=True)
class View:
    """One moment.

    Args:
        now: on the clock of all times here.
        usage: user -> seconds of work they were given lately; who is absent has used nothing.
        weights: user -> weight of their share, 1 by default.
        max_running: user -> how many jobs of theirs may be at work at once; who is absent has no bound of their own.
        last_starts: (user, priority) -> when a job of that queue was last started.
        mean_run: seconds that jobs ran lately, which is what is expected of the next; None where none has ended.
        prior_bytes: source -> bytes of a prior that may have to be loaded; `default_prior_bytes` where unknown.
        gpu_needs: source -> of a GPU, likewise; a prior that is absent is not counted there.
    """

    now: float
    capacity: Capacity
    queued: Sequence[QueuedJob]
    running: Sequence[RunningJob] = ()
    priors: Sequence[PriorView] = ()
    usage: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    max_running: Mapping[str, int] = field(default_factory=dict)
    last_starts: Mapping[tuple[str, int], float] = field(default_factory=dict)
    mean_run: float | None = None
    prior_bytes: Mapping[str, int] = field(default_factory=dict)
    default_prior_bytes: int = 10**9
    gpu_needs: Mapping[str, GpuNeed] = field(default_factory=dict)
