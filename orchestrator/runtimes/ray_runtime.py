"""A local Ray that lives as long as the command: an actor holds the prior (`prior_actor`), another runs the job.

What Ray 2.60 does that shaped this file (seen here, see the tests):

- An actor takes 1 CPU to be placed unless told otherwise; on one core two such actors would wait for ever. Ours ask for
  a share each, because they take turns.
- A signal that arrives inside `ray.init` ends the process with a segmentation fault and leaves Ray's processes behind;
  so signals wait until it has returned.
- An exception that leaves an actor comes back as a generated subclass; ours travel as values instead.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.errors import JobFailed
from jobs.events import Event
from jobs.prior_client import PriorClient, PriorInfo
from orchestrator.runtimes.base import Attempt, PriorLoader, run_recipe
from orchestrator.runtimes.prior_actor import MAX_CONCURRENCY, PriorActor, Raised, RayPrior
from orchestrator.runtimes.threads import available_cores, use_threads
from orchestrator.signals import signals_deferred

__all__ = ["PriorActor", "Raised", "RayPrior", "RayRuntime"]

# Read by Ray when it is imported and by its processes when they start; what the user has set already wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name this decides on every system whether Ray's ports bind to the loopback address alone. The documented
    # `_node_ip_address="127.0.0.1"` does not: Ray replaces it by the machine's outer address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # By default Ray lowers its workers' priority to nice 15: beside any other busy program the job would starve.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Messages up to this size travel inside the call. Through the object store, where Ray puts what is over 100 KB, a query of
    # four views and its answer would take about twice as long.
    "RAY_max_direct_call_object_size": str(1024**2),
    # A thread that waits for its next piece of work must not spin on a core that the other actor needs.
    "OMP_WAIT_POLICY": "PASSIVE",
}
_OBJECT_STORE_BYTES = 256 * 1024**2


class JobActor:
    """Runs one recipe and streams its events."""

    def __init__(self, prior: RayPrior, device: str, num_threads: int) -> None:
        self._prior = prior
        self._device = device
        use_threads(num_threads)

    def warm_up(self, modules: Sequence[str]) -> None:
        """Import what the recipe will need, while the prior is still loading on another core."""
        for module in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)

    def run(self, attempt: Attempt) -> Iterator[Event | Raised]:
        """The recipe's events; an error is the last item."""
        prior = self._prior.for_job(attempt.spec.name)
        try:
            yield from run_recipe(attempt, prior, device=self._device)
        except Exception as error:
            yield Raised(error)
        finally:
            prior.end()


class RayRuntime:
    """Starts Ray on entering, ends it and all its processes on leaving.

    Args:
        load_prior: see `PriorLoader`. source: what it is given. device: a torch device. num_threads: 0 for all cores.
        modules: what the job's actor imports while the prior's loads.
        num_replicas: actors that hold the prior. If there are several, one that dies is started again, and what it was asked is
            asked of another.
    """

    def __init__(
        self,
        load_prior: PriorLoader,
        source: str,
        *,
        device: str = "cpu",
        num_threads: int = 0,
        modules: Sequence[str] = (),
        num_replicas: int = 1,
    ) -> None:
        self._load_prior = load_prior
        self._modules = tuple(modules)
        self._source = source
        self._device = device
        self._num_threads = num_threads
        self._num_replicas = num_replicas

    def __enter__(self) -> RayRuntime:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray

        with signals_deferred():
            try:
                self._start(ray)
            except BaseException:
                ray.shutdown()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        with signals_deferred():
            # Neither actor has anything left to save, and waiting for their orderly end takes a second.
            for actor in (self._job, *self._replicas):
                ray.kill(actor)
            ray.shutdown()

    def prior_info(self) -> PriorInfo:
        """Waits until the prior's actor has loaded it."""
        return self._prior.info()

    def prior(self) -> PriorClient:
        """The shared prior's client; it travels to other actors."""
        return self._prior

    def run(self, attempt: Attempt) -> Iterator[Event]:
        """The recipe's events, as the job's actor produces them."""
        import ray
        from ray.exceptions import RayError

        try:
            for reference in self._job.run.options(num_returns="streaming").remote(attempt):
                item = ray.get(reference)
                if isinstance(item, Raised):
                    item.reraise()
                yield item
        except RayError as error:
            raise JobFailed(
                f"The process that ran the job died ({type(error).__name__}); the same command continues from the last "
                "checkpoint.",
                job=attempt.spec.name,
            ) from error

    def _start(self, ray: Any) -> None:
        ray.init(
            address="local",
            num_cpus=max(2, available_cores()),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            configure_logging=True,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
        share = 1 / (self._num_replicas + 1)
        options = {"num_cpus": share, "num_gpus": share if self._device.startswith("cuda") else 0}
        make = ray.remote(PriorActor).options(
            **options, max_concurrency=MAX_CONCURRENCY, max_restarts=-1 if self._num_replicas > 1 else 0
        )
        self._replicas = [
            make.remote(self._load_prior, self._source, self._device, self._num_threads) for _ in range(self._num_replicas)
        ]
        self._prior = RayPrior(self._replicas, attempts=1 if self._num_replicas == 1 else 2 * self._num_replicas + 4)
        self._job = ray.remote(JobActor).options(**options).remote(self._prior, self._device, self._num_threads)
        for replica in self._replicas:
            replica.call.remote("info")
        self._job.warm_up.remote(self._modules)
