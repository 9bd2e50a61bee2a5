"""The tables. Times are seconds since 1970 in UTC; states and kinds are stored as their words."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "IS_QUEUED",
    "Artefact",
    "Attempt",
    "Base",
    "Event",
    "Group",
    "Job",
    "JobKey",
    "Owner",
    "PriorSize",
    "SchemaVersion",
    "Shard",
    "User",
]

IS_QUEUED = "state = 'queued'"
"""The rows of the index `ix_jobs_queue`; a query has to say it in these words to find them there."""

# SQLite counts up by itself only in a column of type INTEGER.
Identifier = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Python types to column types."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own protocol
        float: Double,
        int: BigInteger,
        str: Text,
        dict[str, Any]: JSON,
    }


class SchemaVersion(Base):
    """One row: which migrations this database has behind it."""

    __tablename__ = "schema_version"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    version: Mapped[int]


class Owner(Base):
    """One row: the orchestrator that may write. `epoch` counts owners, and so fences off earlier ones."""

    __tablename__ = "owner"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    epoch: Mapped[int]
    name: Mapped[str]
    started_at: Mapped[float]
    heartbeat_at: Mapped[float]


class User(Base):
    """Whose jobs they are, and how large their share is."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    weight: Mapped[float] = mapped_column(default=1.0)
    created_at: Mapped[float]


class Group(Base):
    """Several jobs that compete: best of N seeds."""

    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(Identifier, primary_key=True)
    name: Mapped[str]
    num_wanted: Mapped[int]
    metric: Mapped[str | None]
    largest_is_best: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[float]
    decided_at: Mapped[float | None]


class Job(Base):
    """One job. The lease (fence, holder, expiry) is its current attempt's; `not_before`: since when it may start."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("user", "idempotency_key", name="uq_jobs_user_key"),
        Index("ix_jobs_state", "state", "id"),
        Index("ix_jobs_group", "group_id"),
        Index("ix_jobs_user_state", "user", "state", "id"),
        Index("ix_jobs_kind_state", "kind", "state", "id"),
        Index("ix_jobs_user_kind_state", "user", "kind", "state", "id"),
        Index("ix_jobs_fingerprint", "fingerprint"),
        Index(
            "ix_jobs_queue",
            *("state", "user", "priority", "prior", "not_before", "id"),
            sqlite_where=text(IS_QUEUED),
            postgresql_where=text(IS_QUEUED),
        ),
    )

    id: Mapped[int] = mapped_column(Identifier, primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    user: Mapped[str] = mapped_column(String(200), ForeignKey("users.name"))
    spec: Mapped[dict[str, Any]]
    settings: Mapped[dict[str, Any]]
    fingerprint: Mapped[str] = mapped_column(String(64))
    prior: Mapped[str]
    out: Mapped[str]
    priority: Mapped[int] = mapped_column(Integer, default=0)
    memory_bytes: Mapped[int]
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    group_id: Mapped[int | None] = mapped_column(ForeignKey("groups.id"))

    state: Mapped[str] = mapped_column(String(16))
    desired_state: Mapped[str] = mapped_column("wish", String(16), default="run")
    reason: Mapped[str] = mapped_column(default="")
    failure_kind: Mapped[str | None] = mapped_column(String(32))
    is_dead_letter: Mapped[bool] = mapped_column(default=False)
    is_winner: Mapped[bool | None]
    not_before: Mapped[float]
    num_attempts: Mapped[int] = mapped_column(Integer, default=0)
    num_failures: Mapped[int] = mapped_column(Integer, default=0)
    max_failures: Mapped[int] = mapped_column(Integer, default=4)

    fence: Mapped[int] = mapped_column(default=0)
    lease_holder: Mapped[str | None]
    lease_expires_at: Mapped[float | None]
    owner_epoch: Mapped[int] = mapped_column(default=0)

    stage: Mapped[str] = mapped_column(default="")
    step: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    seconds_left: Mapped[float | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)

    created_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    updated_at: Mapped[float]
    seconds_run: Mapped[float] = mapped_column(default=0.0)


class Attempt(Base):
    """One go at a job, from its start to whatever ended it. `fence` is the token of its lease."""

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_ended", "ended_at"),)

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder: Mapped[str]
    outcome: Mapped[str] = mapped_column(String(16))
    failure_kind: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(default="")
    started_at: Mapped[float]
    ended_at: Mapped[float | None]


class Shard(Base):
    """A committed shard of a batch job. Its marker in the job's folder is what counts; here is who drew it. No rows are stored.

    `fence` is the token of the attempt that drew it, 0 where the ledger heard of it from a later one that found it.
    """

    __tablename__ = "shards"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    num_rows: Mapped[int]
    num_failed: Mapped[int]
    seconds: Mapped[float]
    worker: Mapped[str]
    num_attempts: Mapped[int] = mapped_column(Integer)
    fence: Mapped[int]
    recorded_at: Mapped[float]


class PriorSize(Base):
    """How much memory one copy of a prior takes, as its files' headers say."""

    __tablename__ = "prior_sizes"

    source: Mapped[str] = mapped_column(String(2000), primary_key=True)
    num_bytes: Mapped[int]
    measured_at: Mapped[float]


class JobKey(Base):
    """A further idempotency key of a job: it was asked for again under that key before it had ended."""

    __tablename__ = "job_keys"

    user: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), index=True)


class Artefact(Base):
    """A finished file."""

    __tablename__ = "artefacts"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(500), primary_key=True)
    num_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]


class Event(Base):
    """What happened to a job, in order: changes of state and sentences. Progress is kept on the job's row instead."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(Identifier, primary_key=True)
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(16))
    text: Mapped[str]
