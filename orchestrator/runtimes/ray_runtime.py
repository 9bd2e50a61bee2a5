"""Ray for one command: one actor holds the prior, another runs the job, the command's own process writes every file.

By default it is a Ray on this machine that lives as long as the command; with an address, a running cluster, of whose nodes
none but the command's own needs to see the run folder.

What Ray 2.60 does that shaped this file (seen here, see the tests):

- An actor takes 1 CPU to be placed unless told otherwise; on one core two such actors would wait for ever. Ours ask for
  a share each, because they take turns.
- An exception that leaves an actor comes back as a generated subclass; ours travel as values instead.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.errors import JobFailed
from jobs.events import Event
from jobs.prior_client import PriorClient, PriorInfo
from orchestrator.host.gpus import Gpus, device_in_actor, use_gpu
from orchestrator.host.signals import signals_deferred
from orchestrator.host.threads import use_threads
from orchestrator.prior.actor import MAX_CONCURRENCY, PriorActor
from orchestrator.prior.client import RayPrior
from orchestrator.prior.deaths import last_words
from orchestrator.prior.source import PriorLoader
from orchestrator.prior.wire import Raised
from orchestrator.runtimes.base import Asked, Attempt, bytes_of_gpus, bytes_on_gpu, run_recipe
from orchestrator.runtimes.placement import Placement, on_cluster
from orchestrator.runtimes.ray_start import living_nodes, start_ray, stop_ray

__all__ = ["PriorActor", "Raised", "RayPrior", "RayRuntime"]


class JobActor:
    """Runs one recipe and streams its events."""

    def __init__(self, prior: RayPrior, device: str, num_threads: int, gpu: str = "") -> None:
        use_gpu(gpu)
        self._prior = prior
        self._device = device
        self._checkpoint = Asked()
        use_threads(num_threads)

    def ask_for_checkpoint(self) -> None:
        """One more checkpoint, after the step that is being done; answered beside `run`."""
        self._checkpoint.ask()

    def warm_up(self, modules: Sequence[str]) -> None:
        """Import what the recipe will need, while the prior is still loading on another core."""
        for module in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)

    def run(self, attempt: Attempt) -> Iterator[Event | Raised]:
        """The recipe's events; an error is the last item."""
        prior = self._prior.for_job(attempt.spec.name)
        try:
            yield from run_recipe(attempt, prior, device=self._device, wants_checkpoint=self._checkpoint.take)
        except Exception as error:
            yield Raised(error)
        finally:
            prior.end()


class RayRuntime:
    """Starts or joins Ray on entering; on leaving ends it and all its processes, or leaves the cluster.

    Args:
        load_prior: see `PriorLoader`. source: what it is given. device: a torch device; "auto" on a cluster is cuda where any
            node has a GPU. num_threads: 0 for all cores, on a cluster for those that an actor was given.
        modules: what the job's actor imports while the prior's loads. runs_jobs: False where only the prior is asked, so that
            no actor is started for a job, which takes three seconds of a core.
        num_replicas: actors that hold the prior. If there are several, or they are on a cluster, one that dies is started
            again, and what it was asked is asked of another.
        address: of a running cluster; see `start_ray`.
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
        address: str = "",
        runs_jobs: bool = True,
    ) -> None:
        self._load_prior = load_prior
        self._modules = tuple(modules)
        self._source = source
        self._device = device
        self._num_threads = num_threads
        self._num_replicas = num_replicas
        self._address = address
        self._runs_jobs = runs_jobs
        self._job: Any = None

    def __enter__(self) -> RayRuntime:
        start_ray(self._address)
        try:
            with signals_deferred():
                self._make_actors(self._placement())
        except BaseException:
            stop_ray()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        with signals_deferred():
            # No actor has anything left to save, and waiting for their orderly end takes a second.
            for actor in (*self._replicas, *([self._job] if self._runs_jobs else [])):
                ray.kill(actor)
        stop_ray()

    def prior_info(self) -> PriorInfo:
        """Waits until the prior's actor has loaded it."""
        return self._prior.info()

    def prior(self) -> PriorClient:
        """The shared prior's client; it travels to other actors."""
        return self._prior

    def run(self, attempt: Attempt) -> Iterator[Event]:
        """The recipe's events, as the job's actor produces them; not where `runs_jobs` is False."""
        import ray
        from ray.exceptions import RayError

        try:
            for reference in self._job.run.options(num_returns="streaming").remote(attempt):
                item = ray.get(reference)
                if isinstance(item, Raised):
                    item.reraise()
                yield item
        except RayError as error:
            words = last_words(error) or type(error).__name__
            raise JobFailed(
                f"The process that ran the job died ({words}); the same command continues from the last checkpoint.",
                job=attempt.spec.name,
            ) from error

    def ask_for_checkpoint(self) -> None:
        """See `Runtime`."""
        if self._job is not None:
            self._job.ask_for_checkpoint.remote()

    def _placement(self) -> Placement:
        if self._address:
            nodes, num = living_nodes(), self._num_replicas
            return on_cluster(nodes, device=self._device, num_threads=self._num_threads, num_priors=num)
        each = {"num_cpus": 1 / (self._num_replicas + 1), "num_gpus": 0.0}
        threads, device = self._num_threads, device_in_actor(self._device)
        return Placement(device=device, job=each, prior=each, job_threads=threads, prior_threads=threads)

    def _gpus(self) -> Gpus:
        """Of this machine; on a cluster Ray chooses."""
        if self._address:
            return Gpus(())
        sizes = bytes_of_gpus() if self._device.startswith("cuda") else ()
        return Gpus.of(sum(node.get("GPU", 0.0) for node in living_nodes()), self._device, sizes=sizes)

    def _make_actors(self, placement: Placement) -> None:
        import ray

        gpus = self._gpus()
        at_ease, least = bytes_on_gpu(self._source) if placement.device.startswith("cuda") else (0, 0)
        is_retried = self._num_replicas > 1 or bool(self._address)
        make: Any = ray.remote(PriorActor).options(
            **placement.prior_options(at_ease), max_concurrency=MAX_CONCURRENCY, max_restarts=-1 if is_retried else 0
        )
        arguments = (self._load_prior, self._source, placement.device, placement.prior_threads)
        sizes = {"num_bytes": at_ease, "least_bytes": least}
        places = [gpus.for_prior(number, **sizes, apart_from=range(number)) for number in range(self._num_replicas)]
        self._replicas = [make.remote(*arguments, gpu=gpu) for gpu in places]
        self._prior = RayPrior(self._replicas, attempts=2 * self._num_replicas + 4 if is_retried else 1)
        for replica in self._replicas:
            replica.call.remote("info")
        if self._runs_jobs:
            threads = self._num_threads or placement.job_threads
            # `ask_for_checkpoint` must be answered while `run` is at work.
            kind: Any = ray.remote(JobActor).options(**placement.job_options(), max_concurrency=2)
            self._job = kind.remote(self._prior, placement.device, threads, gpus.for_job("job"))
            self._job.warm_up.remote(self._modules)
