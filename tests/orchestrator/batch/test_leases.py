"""Leases on a store in memory: who gets the place, who notices that it was lost, and what a queued job does about it."""

from __future__ import annotations

import itertools
import json
import pickle
import threading
import time

import pytest

from jobs.errors import OutputError
from jobs.events import Progress
from jobs.states import FailureKind
from orchestrator.batch.storage.lease import LEASE, Lease, require_lease
from orchestrator.batch.storage.stores import open_store
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.scheduling.failures import failure_kind
from orchestrator.scheduling.retries import after_failure
from tests.orchestrator.batch.batch_fakes import run, write_table

_numbers = itertools.count()
FOREIGN = {"host": "elsewhere", "pid": 1, "token": "foreign", "renewed": 1}


@pytest.fixture
def store():
    return open_store(f"memory://leases-{next(_numbers)}/out")


def put(store, **fields):
    store.put({LEASE: json.dumps({**FOREIGN, **fields}).encode()})


def holder(store):
    with store.open(LEASE) as file:
        return json.loads(file.read())


def refusal_of(store) -> OutputError:
    renewals = itertools.count(2)
    put(store)
    lease = Lease(store, sleep=lambda seconds: put(store, renewed=next(renewals)))
    with pytest.raises(OutputError, match=r"in use by another dreamkiln process \(pid 1 on elsewhere\)") as caught, lease:
        pass
    return caught.value


def test_a_queued_job_that_meets_a_live_predecessor_is_tried_again_until_a_dead_one_would_be_taken_over(store):
    error = refusal_of(store)
    there = pickle.loads(pickle.dumps(error))
    assert failure_kind(error) == failure_kind(there) == FailureKind.PLACE_IN_USE
    decision = after_failure(failure_kind(error), job_id=1, num_failures=0, max_failures=4, now=0.0)
    assert decision.retry_at is not None
    assert holder(store)["token"] == "foreign", "the lease is its holder's"


def test_a_holder_with_signs_of_life_has_half_a_minute_to_end(store):
    waited = []
    put(store)

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) < 8:
            put(store, renewed=len(waited))
        else:
            store.remove([LEASE])

    with Lease(store, settle_seconds=0, sleep=sleep) as token:
        assert holder(store)["token"] == token
    assert sum(waited) == 20 and LEASE not in store.names()


def test_a_live_holder_is_waited_for_as_long_as_a_dead_one(store):
    waited, renewals = [], itertools.count(2)
    put(store)

    def sleep(seconds):
        waited.append(seconds)
        put(store, renewed=next(renewals))

    with pytest.raises(OutputError, match="in use"), Lease(store, sleep=sleep):
        pass
    assert sum(waited) == 30


def test_of_two_that_begin_at_once_one_holds(store, monkeypatch):
    """Both read before either has written."""
    both_have_read, outcomes = threading.Barrier(2), []
    wait = Lease._wait_for_holder

    def wait_and_meet(self):
        wait(self)
        both_have_read.wait(10)

    monkeypatch.setattr(Lease, "_wait_for_holder", wait_and_meet)
    have_ended = threading.Barrier(2)

    def begin():
        try:
            with Lease(store):
                outcomes.append("holds")
                have_ended.wait(10)
        except OutputError as error:
            outcomes.append(str(error))
            have_ended.wait(10)

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome == "holds" for outcome in outcomes) == [False, True], outcomes
    assert any("in use by another dreamkiln process" in outcome for outcome in outcomes) and LEASE not in store.names()


def test_a_holder_that_slept_leaves_a_foreign_lease_alone_and_knows_that_it_lost_the_place(store):
    with Lease(store, every_seconds=0.02, settle_seconds=0) as token:
        deadline = time.monotonic() + 10
        while holder(store)["renewed"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        require_lease(store, token)
        put(store)
        time.sleep(0.2)
        assert holder(store) == FOREIGN
        with pytest.raises(OutputError, match="in use by another dreamkiln process") as caught:
            require_lease(store, token)
        assert caught.value.is_in_use
    assert holder(store) == FOREIGN


class TakenOver(SilentDisplay):
    """Another one takes the place when the second shard is drawn and not committed."""

    def __init__(self, store) -> None:
        self.store = store

    def event(self, progress: Progress) -> None:
        if progress.stage == "draw" and progress.step >= 10:
            put(self.store)


def test_a_job_whose_place_was_taken_over_commits_nothing_more(store, tmp_path):
    table = write_table(tmp_path / "t.jsonl", 20)
    with pytest.raises(OutputError, match="in use by another dreamkiln process") as caught:
        run(table, store.location, display=TakenOver(store))
    assert failure_kind(caught.value) == FailureKind.PLACE_IN_USE
    assert store.names("_shards") == ["00000.json"] and holder(store) == FOREIGN
    with store.open("manifest.json") as file:
        assert json.loads(file.read())["state"] == "running", "as the one who took over has left it"
    store.remove([LEASE])
    assert run(table, store.location).report["num_succeeded"] == 20
