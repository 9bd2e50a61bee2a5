"""Workers on Ray: one actor per job, one per prior. Ray places, transports and watches them; what to run is our business."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from jobs.ledger import JobRecord
from jobs.states import FailureKind
from orchestrator.daemon.job_process import JobProcess
from orchestrator.daemon.reports import Failed, Report
from orchestrator.runtimes import ray_runtime
from orchestrator.runtimes.base import PriorLoader, resolve_device
from orchestrator.runtimes.prior_actor import MAX_CONCURRENCY, PriorActor, RayPrior
from orchestrator.runtimes.threads import available_cores
from orchestrator.scheduling import PriorView
from orchestrator.signals import signals_deferred

__all__ = ["RayWorkers"]

PRIOR_SHARE = 0.25  # of the CPUs, and half of a GPU: the priors; the workers share the rest
MAX_PRIORS = 4
PRIOR_ATTEMPTS = 5  # a prior that dies is started again, and asked again, before its jobs notice


class RayWorkers:
    """`orchestrator.daemon.reports.Workers` on a local Ray that ends with this process, or on a running cluster.

    Args:
        num_workers: jobs at once, so that each asks Ray for its part.
        address: of a running cluster; None starts a Ray of our own on this machine.
        device: of jobs and priors. num_threads: of torch in each prior; 0 for all cores.
        load_prior: what loads a prior; `orchestrator.prior_service.load_prior` by default.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        num_workers: int,
        clock: Any,
        address: str | None = None,
        device: str = "auto",
        num_threads: int = 0,
        prior_bytes: int = 10**9,
        load_prior: PriorLoader | None = None,
    ) -> None:
        from orchestrator import prior_service

        self._num_workers, self._address = num_workers, address
        self._device, self._num_threads, self._prior_bytes = resolve_device(device), num_threads, prior_bytes
        self._load_prior = load_prior or prior_service.load_prior
        self._clock = clock
        self._priors: dict[str, Any] = {}
        self._last_used: dict[str, float] = {}

    def __enter__(self) -> RayWorkers:
        for name, value in ray_runtime._ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray

        with signals_deferred():
            common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
            if self._address is not None:
                ray.init(address=self._address, namespace="dreamkiln", **common)
            else:
                ray.init(
                    address="local",
                    num_cpus=max(2, available_cores()),
                    include_dashboard=False,
                    object_store_memory=ray_runtime._OBJECT_STORE_BYTES,
                    **common,
                )
        self._num_cpus = float(ray.cluster_resources().get("CPU", 1.0))
        self._num_gpus = 1.0 if self._device.startswith("cuda") else 0.0
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        with signals_deferred():
            ray.shutdown()

    def start(self, job: JobRecord) -> RayWorker:
        """A new actor in a process of its own."""
        import ray

        self._last_used[job.prior] = self._clock()
        options = {
            "num_cpus": self._num_cpus * (1 - PRIOR_SHARE) / self._num_workers,
            "num_gpus": self._num_gpus / 2 / self._num_workers,
            "max_concurrency": 4,  # `poll` and `stop` must be answered at any time
            "max_restarts": 0,  # a new attempt is the ledger's decision
        }
        prior = RayPrior([self._prior(job.prior)], job=f"job {job.id}", attempts=PRIOR_ATTEMPTS)
        is_rows_retry = bool(job.metrics.get("num_failed"))  # said only by a batch job's end
        actor = ray.remote(JobProcess).options(**options).remote(job.spec, job.settings, job.out, prior, is_rows_retry)
        return RayWorker(actor, prior)

    def priors(self) -> Sequence[PriorView]:
        """Those that have an actor."""
        return [
            PriorView(source=source, memory_bytes=self._prior_bytes, last_used_at=self._last_used[source])
            for source in self._priors
        ]

    def evict(self, source: str) -> None:
        """End the prior's actor."""
        import ray

        if actor := self._priors.pop(source, None):
            ray.kill(actor)

    def _prior(self, source: str) -> Any:
        import ray

        if source not in self._priors:
            options = {
                "num_cpus": self._num_cpus * PRIOR_SHARE / MAX_PRIORS,
                "num_gpus": self._num_gpus / 2 / MAX_PRIORS,
                "max_concurrency": MAX_CONCURRENCY,
                "max_restarts": -1,  # it has no state but its weights
            }
            arguments = (self._load_prior, source, self._device, self._num_threads)
            self._priors[source] = ray.remote(PriorActor).options(**options).remote(*arguments)
        return self._priors[source]


class RayWorker:
    """A `JobProcess` in an actor."""

    def __init__(self, actor: Any, prior: RayPrior) -> None:
        self._actor, self._prior = actor, prior
        self._answer = actor.poll.remote()

    def poll(self) -> list[Report] | None:
        """See `Worker.poll`; the death of the process is its last report."""
        import ray
        from ray.exceptions import OutOfMemoryError, RayError

        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return None
        try:
            reports: list[Report] = ray.get(self._answer)
        except RayError as error:
            kind = FailureKind.OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else FailureKind.WORKER_LOST
            return [Failed(kind, f"The process that ran the job ended ({type(error).__name__}).", str(error))]
        self._answer = self._actor.poll.remote()
        return reports

    def stop(self, *, at_checkpoint: bool) -> None:
        """See `Worker.stop`."""
        self._actor.stop.remote(at_checkpoint)

    def kill(self) -> None:
        """End the process; may be called twice."""
        import ray

        ray.kill(self._actor)
        self._prior.end()
