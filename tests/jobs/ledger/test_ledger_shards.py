"""Shards in the ledger, on both databases."""

from __future__ import annotations

import pytest

from jobs.errors import InputError
from jobs.ledger import Ledger, StaleLease
from jobs.states import State
from tests.jobs.ledger.conftest import Clock, submission


@pytest.fixture
def job(ledger: Ledger) -> int:
    (submitted,) = ledger.jobs.submit([submission(kind="images")])
    return submitted.id


def test_rows_are_cut_without_gaps(ledger: Ledger, job: int):
    assert ledger.shards.plan(job, num_rows=25, shard_size=10) == 3
    shards = ledger.shards.of(job)
    assert [(shard.first_row, shard.num_rows) for shard in shards] == [(0, 10), (10, 10), (20, 5)]
    assert ledger.shards.plan(job, num_rows=25, shard_size=10) == 3, "planning again changes nothing"
    assert ledger.shards.counts(job).shards == {State.QUEUED: 3}
    with pytest.raises(InputError, match="was planned as 25 rows in shards of 10, not 26"):
        ledger.shards.plan(job, num_rows=26, shard_size=10)
    with pytest.raises(InputError, match="must be at least 1"):
        ledger.shards.plan(job, num_rows=0, shard_size=10)
    with pytest.raises(InputError, match="no job 99"):
        ledger.shards.plan(99, num_rows=1, shard_size=1)


def test_lease_commit_and_counts(ledger: Ledger, job: int):
    ledger.shards.plan(job, num_rows=25, shard_size=10)
    first, second = ledger.shards.lease(job, "w1", seconds=30, num=2)
    (third,) = ledger.shards.lease(job, "w2", seconds=30, num=2)
    assert [lease.shard for lease in (first, second, third)] == [0, 1, 2]
    assert ledger.shards.lease(job, "w3", seconds=30) == []
    with pytest.raises(InputError, match="9 rows that succeeded and 0 that failed"):
        ledger.shards.commit(first, num_rows_succeeded=9)
    ledger.shards.commit(first, num_rows_succeeded=8, num_rows_failed=2, seconds=3.5)
    ledger.shards.commit(third, num_rows_succeeded=5, seconds=1.5)
    counts = ledger.shards.counts(job)
    assert counts.shards == {State.RUNNING: 1, State.SUCCEEDED: 2}
    assert (counts.num_rows, counts.num_rows_succeeded, counts.num_rows_failed, counts.seconds) == (25, 13, 2, 5.0)
    with pytest.raises(StaleLease, match="shard 0"):
        ledger.shards.commit(first, num_rows_succeeded=10)


def test_a_lost_shard_goes_to_another_worker(ledger: Ledger, job: int, clock: Clock):
    ledger.shards.plan(job, num_rows=10, shard_size=10)
    (stale,) = ledger.shards.lease(job, "w1", seconds=30)
    clock.advance(20)
    stale = ledger.shards.renew(stale, seconds=30)
    clock.advance(31)
    assert ledger.shards.expire() == [(job, 0)]
    assert ledger.shards.get(job, 0).state == State.LOST
    assert ledger.shards.release(job) == 1
    (fresh,) = ledger.shards.lease(job, "w2", seconds=30)
    for write in (
        lambda: ledger.shards.renew(stale, seconds=1),
        lambda: ledger.shards.commit(stale, num_rows_succeeded=10),
        lambda: ledger.shards.fail(stale, "x", retry_at=None),
    ):
        with pytest.raises(StaleLease, match="held by w2 with token 2"):
            write()
    ledger.shards.commit(fresh, num_rows_succeeded=10)
    assert ledger.shards.get(job, 0).num_failures == 1


def test_failed_shards_wait_and_can_be_retried(ledger: Ledger, job: int, clock: Clock):
    ledger.shards.plan(job, num_rows=2, shard_size=1)
    first, second = ledger.shards.lease(job, "w", seconds=30, num=2)
    ledger.shards.fail(first, "the prior died", retry_at=clock.now + 10)
    ledger.shards.fail(second, "poison", retry_at=None)
    assert ledger.shards.lease(job, "w", seconds=30) == []
    clock.advance(10)
    (again,) = ledger.shards.lease(job, "w", seconds=30)
    assert again.shard == 0 and again.fence == 2
    assert ledger.shards.retry_failed(job) == 1
    (last,) = ledger.shards.lease(job, "w", seconds=30)
    assert last.shard == 1
    with pytest.raises(InputError, match="no shard 7"):
        ledger.shards.get(job, 7)
