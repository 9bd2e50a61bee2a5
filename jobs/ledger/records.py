"""What the ledger gives back and takes: plain frozen values, never live rows."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.codec import canonical_json
from jobs.errors import DreamKilnError, InputError
from jobs.states import TERMINAL, DesiredState, FailureKind, State
from jobs.words.safe_text import check_stored, is_storable

if TYPE_CHECKING:
    from jobs.kinds import AnySpec

__all__ = [
    "ArtefactRecord",
    "AttemptRecord",
    "EventRecord",
    "GroupRecord",
    "JobRecord",
    "Lease",
    "NewGroup",
    "ShardRecord",
    "ShardSummary",
    "StaleLease",
    "Submission",
    "check_name",
]

MAX_PRIORITY = 1000
MAX_FAILURES = 1_000_000
MAX_WANTED = 1_000_000
MAX_MEMORY_BYTES = 10**15
GIGABYTE = 10**9


class StaleLease(DreamKilnError):
    """The writer's lease was taken away; what it wrote was refused, and it should stop."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job as it is asked for.

    Args:
        kind: "text-to-3d", "images" or "batch-images". spec: its JSON, as its `to_json` writes it.
        name: readable and safe as a file name. fingerprint: of the spec.
        out: the run folder, absolute; of a batch job also a URL.
        settings: JSON that says how to run and what to write, beside the spec.
        prior: which prior it asks. memory_bytes: what its worker needs, the prior not counted.
        user: whose share it takes. priority: larger goes first, -1000 to 1000.
        idempotency_key: the same key of the same user never makes a second job.
        max_failures: attempts that may fail before the job goes to the dead letters.
        is_paused: queue it without starting it.

    Raises:
        InputError: a value that is not allowed, named.
    """

    kind: str
    spec: Mapping[str, Any]
    name: str
    fingerprint: str
    out: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    prior: str = "toybox"
    memory_bytes: int = 2 * GIGABYTE
    user: str = "me"
    priority: int = 0
    idempotency_key: str | None = None
    max_failures: int = 4
    is_paused: bool = False

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InputError(f"The priority is {self.priority}, but -{MAX_PRIORITY} to {MAX_PRIORITY} is allowed.")
        if not 1 <= self.max_failures <= MAX_FAILURES:
            raise InputError(f"max_failures is {self.max_failures:.4g}; give 1 to {MAX_FAILURES:,} attempts.")
        if not 0 <= self.memory_bytes <= MAX_MEMORY_BYTES:
            raise InputError(f"memory_bytes is {self.memory_bytes:.4g}; give 0 to {MAX_MEMORY_BYTES:.0e} bytes.")
        check_name("user", self.user)
        if self.idempotency_key is not None:
            check_name("idempotency key", self.idempotency_key)
        for what, text in (("run folder", self.out), ("name", self.name), ("prior", self.prior)):
            check_stored(what, text)

    @classmethod
    def of(cls, spec: AnySpec, *, out: str, **others: Any) -> Submission:
        """The submission of a spec; `others` as above."""
        return cls(
            kind=spec.kind,
            spec=spec.to_json(),
            name=spec.name,
            fingerprint=spec.fingerprint(),
            prior=spec.prior,
            out=out,
            **others,
        )

    def digest(self) -> str:
        """sha256 (hex) of what an idempotency key stands for: the spec, the settings and the folder."""
        asked = {"kind": self.kind, "spec": self.spec, "settings": self.settings, "out": self.out}
        return hashlib.sha256(canonical_json(asked).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to work on a job until `expires_at`.

    Args:
        fence: larger with every lease of the same job; what carries an older one is refused.
    """

    job_id: int
    fence: int
    holder: str
    expires_at: float

    def __str__(self) -> str:
        return f"job {self.job_id}"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job's row; see `jobs.ledger.tables.Job`. Times are seconds since 1970, UTC."""

    id: int
    kind: str
    name: str
    user: str
    spec: Mapping[str, Any]
    settings: Mapping[str, Any]
    fingerprint: str
    prior: str
    out: str
    priority: int
    memory_bytes: int
    idempotency_key: str | None
    group_id: int | None
    state: State
    desired_state: DesiredState
    reason: str
    failure_kind: FailureKind | None
    is_dead_letter: bool
    is_winner: bool | None
    not_before: float
    num_attempts: int
    num_failures: int
    max_failures: int
    fence: int
    lease_holder: str | None
    lease_expires_at: float | None
    stage: str
    step: int
    total: int
    seconds_left: float | None
    metrics: Mapping[str, Any]
    created_at: float
    started_at: float | None
    ended_at: float | None
    updated_at: float
    seconds_run: float

    @property
    def is_terminal(self) -> bool:
        """Nothing more will happen unless a user asks."""
        return self.state in TERMINAL

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            key: dict(value) if isinstance(value, Mapping) else value
            for key, value in ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        }


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One go at a job. outcome: the state it left the job in, "running" while it lasts."""

    job_id: int
    fence: int
    holder: str
    outcome: State
    failure_kind: FailureKind | None
    reason: str
    started_at: float
    ended_at: float | None


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A shard of a batch job whose commit marker stands.

    Args:
        num_rows: all of its rows; `num_failed` of them have no picture. seconds: of work.
        worker: the process that drew it; "" for one that an attempt found committed, of which nobody had told the ledger.
        num_attempts: processes that began it in the attempt that committed it; 0 where it was found.
    """

    index: int
    num_rows: int
    num_failed: int
    seconds: float
    worker: str = ""
    num_attempts: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """A batch job's committed shards, summed.

    Args:
        num_rows: of these shards; `num_failed` of them have no picture. seconds: of work, of all workers together.
        num_begun_again: shards over which a process had died before another committed them.
        workers: process -> shards that it drew.
    """

    num_committed: int
    num_rows: int
    num_failed: int
    seconds: float
    num_begun_again: int
    workers: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ArtefactRecord:
    """A finished file of a job, its name relative to the run folder."""

    job_id: int
    name: str
    num_bytes: int
    sha256: str
    created_at: float


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """Something that happened to a job. kind: "state", "info" or "warning"."""

    id: int
    job_id: int | None
    at: float
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class NewGroup:
    """Jobs that compete, as they are asked for.

    Args:
        num_wanted: how many results are enough.
        metric: None: the first ones to finish win, and the rest is cancelled. Otherwise all run, and those with the best
            value of this metric win; `largest_is_best` says which end is best.

    Raises:
        InputError: nothing is wanted.
    """

    name: str
    num_wanted: int = 1
    metric: str | None = None
    largest_is_best: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.num_wanted <= MAX_WANTED:
            raise InputError(f"{self.num_wanted:.4g} winners are wanted of group {self.name!r}; give 1 to {MAX_WANTED:,}.")
        for what, text in (("group's name", self.name), ("group's metric", self.metric or "")):
            check_stored(what, text)


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """Jobs that compete; see `NewGroup`. decided_at: when the winners stood, None before."""

    id: int
    name: str
    num_wanted: int
    metric: str | None
    largest_is_best: bool
    created_at: float
    decided_at: float | None


def check_name(what: str, text: str) -> None:
    """Refuse what names no user and is no key. Raises InputError."""
    if not (0 < len(text) <= 200 and is_storable(text)):
        raise InputError(f"The {what} is {text[:60]!r}, but 1 to 200 printable characters were expected.")
