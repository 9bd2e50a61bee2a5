"""Committed shards in the ledger, on both databases."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.ledger import Lease, Ledger, ShardRecord, ShardSummary, StaleLease
from jobs.states import FailureKind
from tests.jobs.ledger.conftest import submission


@pytest.fixture
def lease(ledger: Ledger) -> Lease:
    """Of a batch job's first attempt."""
    (submitted,) = ledger.jobs.submit([submission(kind="batch-images")])
    return ledger.attempts.start(submitted.id, "w", seconds=30)


def drawn(index: int, **others) -> ShardRecord:
    values = {"num_rows": 10, "num_failed": 0, "seconds": 1.5, "worker": "process 1 on a", "num_attempts": 1}
    return ShardRecord(index=index, **values | others)


def found(index: int) -> ShardRecord:
    return ShardRecord(index=index, num_rows=10, num_failed=0, seconds=1.5)


def test_what_is_recorded_is_summed(ledger: Ledger, lease: Lease):
    assert ledger.shards.summary(lease.job_id) == ShardSummary(
        num_committed=0, num_rows=0, num_failed=0, seconds=0.0, num_begun_again=0, workers={}
    )
    ledger.shards.record(lease, [])
    ledger.shards.record(lease, [drawn(0, num_failed=2), drawn(1, worker="process 2 on b", num_attempts=2)])
    ledger.shards.record(lease, [drawn(2, num_rows=5)])
    assert ledger.shards.summary(lease.job_id) == ShardSummary(
        num_committed=3,
        num_rows=25,
        num_failed=2,
        seconds=4.5,
        num_begun_again=1,
        workers={"process 1 on a": 2, "process 2 on b": 1},
    )
    assert [shard.index for shard in ledger.shards.of(lease.job_id, after=0, limit=1)] == [1]
    assert ledger.shards.of(lease.job_id)[2] == drawn(2, num_rows=5)


def test_saying_it_twice_changes_nothing(ledger: Ledger, lease: Lease):
    for _ in range(2):
        ledger.shards.record(lease, [drawn(0), drawn(1)])
    assert ledger.shards.of(lease.job_id) == [drawn(0), drawn(1)]


def test_a_later_attempt_adds_what_it_finds_and_replaces_what_it_draws_again(ledger: Ledger, lease: Lease):
    ledger.shards.record(lease, [drawn(0), drawn(1, num_failed=3)])
    ledger.attempts.fail(lease, FailureKind.WORKER_LOST, "x", retry_at=0.0)
    again = ledger.attempts.start(lease.job_id, "w2", seconds=30)
    with pytest.raises(StaleLease, match=r"job 1 .*held by w2 with token 2"):
        ledger.shards.record(lease, [drawn(5)])
    ledger.shards.record(again, [found(0), found(2)])
    assert not ledger.shards.has_any_of(again.job_id, again.fence), "it has drawn none yet"
    mended = drawn(1, worker="process 9 on c")
    ledger.shards.record(again, [mended])
    assert ledger.shards.of(lease.job_id) == [drawn(0), mended, found(2)]
    assert ledger.shards.has_any_of(again.job_id, again.fence) and ledger.shards.has_any_of(lease.job_id, lease.fence)
    assert ledger.shards.summary(lease.job_id).workers == {"process 1 on a": 1, "process 9 on c": 1}


def test_a_shard_that_is_drawn_after_it_was_found_has_its_worker(ledger: Ledger, lease: Lease):
    ledger.shards.record(lease, [found(0)])
    ledger.shards.record(lease, [found(0), drawn(0), dataclasses.replace(drawn(1), num_attempts=3)])
    assert ledger.shards.of(lease.job_id) == [drawn(0), drawn(1, num_attempts=3)]


def test_shards_of_other_jobs_are_left_alone(ledger: Ledger, lease: Lease):
    (other,) = ledger.jobs.submit([submission(1, kind="batch-images")])
    ledger.shards.record(ledger.attempts.start(other.id, "w", seconds=30), [drawn(0, num_rows=7)])
    ledger.shards.record(lease, [drawn(0)])
    assert ledger.shards.of(other.id) == [drawn(0, num_rows=7)] and ledger.shards.of(lease.job_id) == [drawn(0)]
