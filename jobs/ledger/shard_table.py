"""Committed shards of batch jobs: a million rows cost a thousand of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sqlalchemy import func, insert, select

from jobs.ledger.database import Database
from jobs.ledger.records import Lease, ShardRecord, ShardSummary
from jobs.ledger.rows import held_job
from jobs.ledger.tables import Shard

__all__ = ["ShardTable"]

_COLUMNS = tuple(getattr(Shard, field.name) for field in dataclasses.fields(ShardRecord))


class ShardTable:
    """The table `shards`; `Ledger.shards`.

    A shard is committed by its marker in the job's folder; a row here follows it and says who drew the shard. What an
    attempt could not report before it died, the next one finds and reports.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, lease: Lease, shards: Sequence[ShardRecord]) -> None:
        """Note shards that are committed. Saying the same twice changes nothing.

        Those that were drawn replace what is known of them; those that were only found (`ShardRecord.worker` is empty) are
        noted where nothing is known.

        Raises:
            StaleLease: the job was given up for lost, given to another, or ended.
        """
        latest = {shard.index: shard for shard in shards}
        if not latest:
            return
        with self._database.write() as session:
            job = held_job(session, lease)
            rows = session.scalars(select(Shard).where(Shard.job_id == job.id, Shard.index.between(min(latest), max(latest))))
            known = {row.index: row for row in rows if row.index in latest}
            now, new = self._database.clock(), []
            for index, shard in latest.items():
                values = {**dataclasses.asdict(shard), "fence": lease.fence if shard.worker else 0, "recorded_at": now}
                if index not in known:
                    new.append({"job_id": job.id, **values})
                elif shard.worker:
                    for name, value in values.items():
                        setattr(known[index], name, value)
            if new:
                session.execute(insert(Shard), new)

    def of(self, job_id: int, *, after: int = -1, limit: int = 1000) -> list[ShardRecord]:
        """By index, from the one after `after` on."""
        query = select(*_COLUMNS).where(Shard.job_id == job_id, Shard.index > after).order_by(Shard.index).limit(limit)
        with self._database.read() as session:
            return [ShardRecord(**row) for row in session.execute(query).mappings()]

    def summary(self, job_id: int) -> ShardSummary:
        """Sums over the job."""
        query = (
            select(
                Shard.worker,
                func.count(),
                func.sum(Shard.num_rows),
                func.sum(Shard.num_failed),
                func.sum(Shard.seconds),
                func.count().filter(Shard.num_attempts > 1),
            )
            .where(Shard.job_id == job_id)
            .group_by(Shard.worker)
            .order_by(Shard.worker)
        )
        with self._database.read() as session:
            rows = session.execute(query).all()
        return ShardSummary(
            num_committed=sum(row[1] for row in rows),
            num_rows=sum(int(row[2]) for row in rows),
            num_failed=sum(int(row[3]) for row in rows),
            seconds=sum(float(row[4]) for row in rows),
            num_begun_again=sum(row[5] for row in rows),
            workers={row[0]: row[1] for row in rows if row[0]},
        )

    def has_any_of(self, job_id: int, fence: int) -> bool:
        """Whether the attempt with that token drew and committed one."""
        query = select(Shard.index).where(Shard.job_id == job_id, Shard.fence == fence).limit(1)
        with self._database.read() as session:
            return session.scalar(query) is not None
