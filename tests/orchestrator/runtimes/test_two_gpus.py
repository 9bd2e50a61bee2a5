"""Two GPUs as Ray reports them: which of them each actor of a real Ray sees, on a machine that has none."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import ray

from orchestrator.daemon import ray_workers
from orchestrator.daemon.options import DaemonOptions
from orchestrator.runtimes.ray_runtime import RayRuntime
from tests.fakes import load_fake_prior

GB = 10**9


@pytest.fixture
def two_gpus(monkeypatch):
    """A Ray of our own that is told of two GPUs; torch in this process believes it."""
    start = ray.init
    monkeypatch.setattr(ray, "init", lambda **options: start(**options, num_gpus=2))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    sizes = (8 * GB, 24 * GB)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(total_memory=sizes[number]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def seen(*actors) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES in each actor's process."""
    return ray.get([actor.__ray_call__.remote(lambda _: os.environ.get("CUDA_VISIBLE_DEVICES")) for actor in actors])


def device(actor) -> str:
    return ray.get(actor.__ray_call__.remote(lambda self: self._device))


def test_a_command_and_an_orchestrator_use_both(two_gpus, tmp_path, monkeypatch):
    with RayRuntime(load_fake_prior, "fake", device="cuda", num_threads=1) as runtime:
        actors = [*runtime._replicas, runtime._job]
        assert seen(*actors) == ["1", "0"] and {device(actor) for actor in actors} == {"cuda"}
    options = DaemonOptions(state=str(tmp_path), device="cuda", num_workers=2, prior_replicas=2, num_threads=1)
    with ray_workers.RayWorkers(options, clock=lambda: 0.0, load_prior=load_fake_prior) as workers:
        assert seen(*workers._prior("fake")) == ["1", "0"], "one replica a GPU, the larger one first"
        assert seen(*workers._prior("another")) == ["1", "0"]
        workers.evict("fake")
        assert [workers._gpus.load(name) for name in "01"] == [0.5, 0.5]
        assert workers.capacity.gpus == (8 * GB, 24 * GB)
        workers.evict("another")
        # Two replicas of 13 GB at ease and 9 at least fit on the larger GPU alone, and leave room on the smaller one.
        takes = {"large": (13 * GB, 9 * GB)}
        monkeypatch.setattr(ray_workers, "bytes_on_gpu", lambda source: takes.get(source, (2 * GB, GB)))
        assert seen(*workers._prior("large")) == ["1", "1"] and seen(*workers._prior("small")) == ["0", "0"]
        workers._last_used |= {"large": 0.0, "small": 0.0}
        assert [view.gpus for view in workers.priors()] == [((1, 13 * GB), (1, 11 * GB)), ((0, 2 * GB), (0, 2 * GB))]
