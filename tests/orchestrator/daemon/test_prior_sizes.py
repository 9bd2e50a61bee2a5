"""The scheduler knows how large priors are before it places them: on a machine with room for one SDXL the second one waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.memory import hollow_file
from diffusion.checkpoints.architectures import SDXL
from diffusion.checkpoints.footprint import footprint
from jobs.ledger import JobRecord
from jobs.states import State
from orchestrator.daemon.prior_sizes import PriorSizes
from orchestrator.daemon.reports import Succeeded
from orchestrator.scheduling import Capacity, PriorView
from tests.jobs.ledger.conftest import submission
from tests.orchestrator.daemon.test_controller import GB, Rig, ScriptedWorker, ScriptedWorkers


class Cluster(ScriptedWorkers):
    """Priors are resident from their first job to their eviction, with as many bytes as published ones take."""

    def start(self, job: JobRecord) -> ScriptedWorker:
        if job.prior not in {prior.source for prior in self.resident}:
            self.resident.append(PriorView(source=job.prior, memory_bytes=GB, last_used_at=0.0))
        return super().start(job)

    def evict(self, source: str) -> None:
        super().evict(source)
        self.resident = [prior for prior in self.resident if prior.source != source]

    @property
    def used_bytes(self) -> int:
        return sum(footprint(prior.source).total for prior in self.resident)


@pytest.fixture
def two_priors(tmp_path: Path) -> list[str]:
    return [str(hollow_file(SDXL, tmp_path / f"sdxl-{name}.safetensors")) for name in "ab"]


@pytest.fixture
def rig(tmp_path: Path, two_priors) -> Iterator[Rig]:
    """Room for one of them, with a job."""
    made = Rig(tmp_path / "state", make_workers=Cluster)
    made.controller.capacity = Capacity(num_workers=4, memory_bytes=footprint(two_priors[0]).total * 3 // 2)
    yield made
    made.ledger.close()


def test_the_second_waits_for_the_first_and_then_evicts_it(rig: Rig, two_priors):
    first, second = rig.submit(*(replace(submission(n), prior=prior) for n, prior in enumerate(two_priors)))
    for _ in range(5):
        rig.tick()
        assert rig.workers.used_bytes <= rig.controller.capacity.memory_bytes
    assert [rig.state(first), rig.state(second)] == [State.RUNNING, State.QUEUED]
    assert "GB of memory are missing" in rig.controller.why_waiting(rig.ledger.jobs.get(second))
    rig.worker(first).reports.append(Succeeded())
    for _ in range(5):
        rig.tick()
        assert rig.workers.used_bytes <= rig.controller.capacity.memory_bytes
    assert rig.workers.evicted == [two_priors[0]] and rig.state(second) == State.RUNNING


def test_what_can_never_fit_is_refused_with_both_numbers(rig: Rig, two_priors):
    rig.controller.capacity = Capacity(num_workers=4, memory_bytes=8 * GB)
    (job,) = rig.submit(replace(submission(1), prior=two_priors[0]))
    rig.tick()
    assert rig.state(job) == State.FAILED
    size = footprint(two_priors[0]).total / GB
    assert f"its prior {size:.1f} GB, but there are 8.0 GB in all" in rig.ledger.jobs.get(job).reason


def test_sizes_are_kept_where_the_files_cannot_be_seen(rig: Rig, two_priors):
    sizes = PriorSizes(rig.ledger, replicas=2).of([two_priors[0], "nobody/nothing"])
    assert sizes == {two_priors[0]: 2 * footprint(two_priors[0]).total}
    Path(two_priors[0]).unlink()
    assert PriorSizes(rig.ledger).of([two_priors[0]]) == {two_priors[0]: sizes[two_priors[0]] // 2}
