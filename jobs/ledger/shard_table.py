"""Shards of image jobs: a million rows cost a thousand of these."""

from __future__ import annotations

import dataclasses

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.orm import Session

from jobs.errors import InputError
from jobs.ledger.database import Database
from jobs.ledger.records import Lease, ShardCounts, ShardRecord, StaleLease
from jobs.ledger.tables import Job, Shard
from jobs.states import State, check_transition

__all__ = ["ShardTable"]

_INSERT_CHUNK = 10_000


class ShardTable:
    """The table `shards`; `Ledger.shards`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def plan(self, job_id: int, *, num_rows: int, shard_size: int) -> int:
        """Cut rows 0 … num_rows-1 into shards of `shard_size`, the last one shorter; returns how many there are.

        Planning again with the same numbers changes nothing, so that a resumed job may.

        Raises:
            InputError: the job has been planned with other numbers.
        """
        if num_rows < 1 or shard_size < 1:
            raise InputError(f"{num_rows} rows in shards of {shard_size} cannot be planned; both must be at least 1.")
        num_shards = -(-num_rows // shard_size)
        with self._database.write() as session:
            if session.get(Job, job_id) is None:
                raise InputError(f"There is no job {job_id} to plan shards for.")
            before = session.execute(
                select(func.count(), func.sum(Shard.num_rows), func.max(Shard.num_rows)).where(Shard.job_id == job_id)
            ).one()
            if before[0]:
                if (before[0], int(before[1]), before[2]) != (num_shards, num_rows, min(shard_size, num_rows)):
                    raise InputError(
                        f"Job {job_id} was planned as {int(before[1]):,} rows in shards of {before[2]:,}, not {num_rows:,} in "
                        f"shards of {shard_size:,}; the table has changed, so submit it as a new job."
                    )
                return num_shards
            for begin in range(0, num_shards, _INSERT_CHUNK):
                session.execute(
                    insert(Shard),
                    [
                        {
                            "job_id": job_id,
                            "index": index,
                            "first_row": index * shard_size,
                            "num_rows": min(shard_size, num_rows - index * shard_size),
                            "state": State.QUEUED,
                        }
                        for index in range(begin, min(begin + _INSERT_CHUNK, num_shards))
                    ],
                )
        return num_shards

    def lease(self, job_id: int, holder: str, *, seconds: float, num: int = 1) -> list[Lease]:
        """Up to `num` queued shards that may start now, lowest index first; queued -> running."""
        with self._database.write() as session:
            now = self._database.clock()
            query = (
                select(Shard)
                .where(Shard.job_id == job_id, Shard.state == State.QUEUED, Shard.not_before <= now)
                .order_by(Shard.index)
                .limit(num)
                .with_for_update(skip_locked=True)
            )
            leases = []
            for row in session.scalars(query):
                row.state, row.fence = State.RUNNING, row.fence + 1
                row.lease_holder, row.lease_expires_at = holder, now + seconds
                leases.append(Lease(job_id=job_id, shard=row.index, fence=row.fence, holder=holder, expires_at=now + seconds))
            return leases

    def renew(self, lease: Lease, *, seconds: float) -> Lease:
        """Raises StaleLease."""
        with self._database.write() as session:
            row = _held(session, lease)
            row.lease_expires_at = self._database.clock() + seconds
            return dataclasses.replace(lease, expires_at=row.lease_expires_at)

    def commit(self, lease: Lease, *, num_rows_succeeded: int, num_rows_failed: int = 0, seconds: float = 0.0) -> None:
        """running -> succeeded: its files are in place. Rows that failed are counted here and named in the shard's own file.

        Raises:
            StaleLease: the shard was given to another worker.
            InputError: the rows do not add up.
        """
        with self._database.write() as session:
            row = _held(session, lease)
            if num_rows_succeeded < 0 or num_rows_failed < 0 or num_rows_succeeded + num_rows_failed != row.num_rows:
                raise InputError(
                    f"{num_rows_succeeded} rows that succeeded and {num_rows_failed} that failed were reported of {lease}, "
                    f"which has {row.num_rows}."
                )
            _move(row, State.SUCCEEDED, "")
            row.num_rows_succeeded, row.num_rows_failed, row.seconds = num_rows_succeeded, num_rows_failed, seconds

    def fail(self, lease: Lease, reason: str, *, retry_at: float | None, counts: bool = True) -> None:
        """running -> queued, not before `retry_at`; or without one running -> failed, a dead letter. Raises StaleLease."""
        with self._database.write() as session:
            row = _held(session, lease)
            _move(row, State.FAILED if retry_at is None else State.QUEUED, reason)
            row.num_failures += counts
            row.not_before = retry_at or 0.0

    def release(self, job_id: int) -> int:
        """running and lost -> queued, for a job that was paused, or whose worker ended; returns how many."""
        return self._requeue(job_id, (State.RUNNING, State.LOST))

    def retry_failed(self, job_id: int) -> int:
        """failed -> queued, failures forgotten; returns how many."""
        return self._requeue(job_id, (State.FAILED,), num_failures=0, not_before=0.0)

    def expire(self) -> list[tuple[int, int]]:
        """running -> lost where a lease has run out; returns (job, index)."""
        with self._database.write() as session:
            query = select(Shard).where(Shard.state == State.RUNNING, Shard.lease_expires_at < self._database.clock())
            found = []
            for row in session.scalars(query.with_for_update()):
                reason = f"{row.lease_holder} fell silent"
                _move(row, State.LOST, reason)
                row.num_failures += 1
                found.append((row.job_id, row.index))
            return found

    def get(self, job_id: int, index: int) -> ShardRecord:
        """Raises InputError where there is no such shard."""
        with self._database.read() as session:
            row = session.get(Shard, (job_id, index))
            if row is None:
                raise InputError(f"Job {job_id} has no shard {index}.")
            return _record(row)

    def of(self, job_id: int, *, states: tuple[State, ...] = (), limit: int = 1000, after: int = -1) -> list[ShardRecord]:
        """By index, from the one after `after` on."""
        query = select(Shard).where(Shard.job_id == job_id, Shard.index > after).order_by(Shard.index).limit(limit)
        if states:
            query = query.where(Shard.state.in_(states))
        with self._database.read() as session:
            return [_record(row) for row in session.scalars(query)]

    def counts(self, job_id: int) -> ShardCounts:
        """Sums over the job; what `status` shows."""
        query = (
            select(
                Shard.state,
                func.count(),
                func.sum(Shard.num_rows),
                func.sum(Shard.num_rows_succeeded),
                func.sum(Shard.num_rows_failed),
                func.sum(Shard.seconds),
            )
            .where(Shard.job_id == job_id)
            .group_by(Shard.state)
        )
        with self._database.read() as session:
            rows = session.execute(query).all()
        return ShardCounts(
            shards={State(row[0]): row[1] for row in rows},
            num_rows=sum(int(row[2]) for row in rows),
            num_rows_succeeded=sum(int(row[3]) for row in rows),
            num_rows_failed=sum(int(row[4]) for row in rows),
            seconds=sum(float(row[5]) for row in rows),
        )

    def _requeue(self, job_id: int, states: tuple[State, ...], **values: float) -> int:
        with self._database.write() as session:
            changed = session.execute(
                update(Shard)
                .where(Shard.job_id == job_id, or_(*(Shard.state == state for state in states)))
                .values(state=State.QUEUED, lease_holder=None, lease_expires_at=None, **values)
            )
            return changed.rowcount  # type: ignore[attr-defined, no-any-return]


def _held(session: Session, lease: Lease) -> Shard:
    row = session.get(Shard, (lease.job_id, lease.shard), with_for_update=True)
    if row is None:
        raise InputError(f"There is no {lease}.")
    if row.state != State.RUNNING or row.fence != lease.fence:
        now = f"held by {row.lease_holder} with token {row.fence}" if row.state == State.RUNNING else row.state
        raise StaleLease(f"The lease of {lease.holder} on {lease} (token {lease.fence}) is over: it is {now} now.")
    return row


def _move(row: Shard, state: State, reason: str) -> None:
    check_transition(State(row.state), state, what=f"Shard {row.index} of job {row.job_id}")
    row.state, row.reason = state, reason
    row.lease_holder = row.lease_expires_at = None


def _record(row: Shard) -> ShardRecord:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(ShardRecord)}
    return ShardRecord(**values | {"state": State(row.state)})
