"""A worker whose actor Ray has not placed yet: signs of life, one word about it, and silence when it takes too long."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from jobs.events import Message
from orchestrator.daemon import ray_workers
from orchestrator.daemon.ray_workers import RayWorker

pytestmark = pytest.mark.filterwarnings("ignore")  # ray warns in its own modules


class Unplaced:
    """Stands for the handle of an actor that has no place, and for what it is asked."""

    @property
    def poll(self):
        return self

    def remote(self):
        return self

    def future(self):
        return Future()


@pytest.fixture
def clock(monkeypatch):
    """Seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(ray_workers.time, "monotonic", lambda: now[0])
    return now


def test_a_job_that_waits_for_a_node_keeps_its_lease_and_says_so_once(clock):
    worker = RayWorker(Unplaced(), prior=None, place="2 cores, 0 GPUs, 1.5 GB")
    assert worker.poll() == []
    clock[0] = 60.0
    assert worker.poll() == [Message(text="Waits for a place on the cluster: 2 cores, 0 GPUs, 1.5 GB.")]
    clock[0] = 3000.0
    assert worker.poll() == []
    clock[0] = 4000.0
    assert worker.poll() is None, "the ledger finds it lost"


def test_on_our_own_ray_a_silent_worker_is_silent(clock):
    assert RayWorker(Unplaced(), prior=None).poll() is None
