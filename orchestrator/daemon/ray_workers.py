"""Workers on Ray: one actor per job, one per prior. Ray places, transports and watches them; what to run is our business."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jobs.events import Message
from jobs.ledger import JobRecord
from jobs.states import FailureKind
from orchestrator.batch.storage.urls import is_url
from orchestrator.daemon.job_process import JobProcess
from orchestrator.daemon.job_request import bytes_of_its_own_process
from orchestrator.daemon.options import DaemonOptions
from orchestrator.daemon.reports import Failed, Report
from orchestrator.host.gpus import Gpus
from orchestrator.host.shared_disk import remove_sentinel, write_sentinel
from orchestrator.metrics.meters import FitMeter
from orchestrator.prior.actor import MAX_CONCURRENCY, PriorActor
from orchestrator.prior.client import RayPrior
from orchestrator.prior.deaths import last_words
from orchestrator.prior.source import PriorLoader
from orchestrator.runtimes.base import bytes_of_gpus, bytes_on_gpu, resolve_device
from orchestrator.runtimes.placement import on_cluster, on_this_machine
from orchestrator.runtimes.ray_start import living_nodes, start_ray, stop_ray
from orchestrator.scheduling import PriorView
from orchestrator.settings.batch import SHARD_WORKER_BYTES

__all__ = ["RayWorkers"]

PRIOR_ATTEMPTS = 12  # a prior that dies is started again, and asked again for a minute and a half, before its jobs notice

POLL_SECONDS = 0.9  # that a job keeps an answer back which would be progress alone
PLACE_SECONDS = 3600.0  # a cluster may have to start a node, or to finish other people's work
SAY_WAITING_SECONDS = 20.0


class RayWorkers:
    """`orchestrator.daemon.reports.Workers` on a local Ray that ends with this process, or on a running cluster.

    Args:
        options: the orchestrator's. clock: seconds since 1970.
        load_prior: what loads a prior; `orchestrator.prior.local.load_prior` by default.
    """

    def __init__(
        self,
        options: DaemonOptions,
        *,
        clock: Callable[[], float],
        prior_bytes: int = 10**9,
        load_prior: PriorLoader | None = None,
    ) -> None:
        from orchestrator.prior import local

        self.capacity = options.capacity()
        self._options, self._prior_bytes = options, prior_bytes
        self._load_prior = load_prior or local.load_prior
        self._clock = clock
        self._replicas: dict[str, list[Any]] = {}
        self._last_used: dict[str, float] = {}
        self._gpus = Gpus(())

    def __enter__(self) -> RayWorkers:
        options = self._options
        device = resolve_device(options.device, is_elsewhere=bool(options.address))
        start_ray(options.address, metrics_port=options.metrics_port)
        nodes = living_nodes()
        if options.address:
            place = on_cluster(
                nodes,
                sizes=options.sizes,
                device=device,
                num_threads=options.num_threads,
                num_priors=options.prior_replicas,
            )
            self.capacity = options.capacity_within(
                num_workers=place.num_jobs, memory_bytes=place.memory_bytes, gpus=place.gpu_bytes
            )
        else:
            num_cpus = sum(node.get("CPU", 1.0) for node in nodes)
            num_workers, num_threads = self.capacity.num_workers, options.num_threads
            sizes = bytes_of_gpus() if device.startswith("cuda") else ()
            self._gpus = Gpus.of(sum(node.get("GPU", 0.0) for node in nodes), device, sizes=sizes)
            self.capacity = replace(self.capacity, gpus=tuple(self._gpus.sizes))
            place = on_this_machine(num_cpus=num_cpus, num_workers=num_workers, device=device, num_threads=num_threads)
        self._placement = place
        return self

    def __exit__(self, *_: object) -> None:
        stop_ray()

    def start(self, job: JobRecord) -> RayWorker:
        """A new actor in a process of its own."""
        import ray

        memory_bytes = bytes_of_its_own_process(job.settings, job.memory_bytes)
        options = {
            **self._placement.job_options(memory_bytes),
            "max_concurrency": 4,  # `poll` and `stop` must be answered at any time
            "max_restarts": 0,  # a new attempt is the ledger's decision
        }
        prior = self._client(job) if job.prior else None
        is_rows_retry = bool(job.metrics.get("num_failed"))  # said only by a batch job's end
        settings = self._placement.settings_there(job.settings)
        sentinel = write_sentinel(job.out) if self._options.address and not is_url(job.out) else ""
        shard_worker_bytes = SHARD_WORKER_BYTES if self._placement.is_memory_asked else 0
        arguments = (job.spec, settings, job.out, prior, is_rows_retry, sentinel, shard_worker_bytes)
        holder = object()
        actor = ray.remote(JobProcess).options(**options).remote(*arguments, gpu=self._gpus.for_job(holder))
        place = f"{options['num_cpus']:g} cores, {options['num_gpus']:g} GPUs, {memory_bytes / 1e9:.1f} GB"
        leave = functools.partial(self._gpus.release, holder)
        return RayWorker(actor, prior, sentinel=sentinel, place=place if self._options.address else "", leave=leave)

    def _client(self, job: JobRecord) -> RayPrior:
        """The job's way to its prior."""
        self._last_used[job.prior] = self._clock()
        replicas = self._prior(job.prior)
        attempts = PRIOR_ATTEMPTS * len(replicas)
        return RayPrior(replicas, job=f"job {job.id}", first=job.id % len(replicas), attempts=attempts)

    def priors(self) -> Sequence[PriorView]:
        """Those that have actors."""
        return [
            PriorView(
                source=source,
                memory_bytes=self._prior_bytes * len(replicas),
                last_used_at=self._last_used[source],
                gpus=self._places(source, len(replicas)),
            )
            for source, replicas in self._replicas.items()
        ]

    def _places(self, source: str, num: int) -> tuple[tuple[int, int], ...]:
        """Of replicas where GPUs are shared out here and their sizes known."""
        held = (self._gpus.held((source, number)) for number in range(num)) if self._gpus.sizes else ()
        return tuple(place for place in held if place is not None)

    def evict(self, source: str) -> None:
        """End the prior's actors."""
        import ray

        for number, actor in enumerate(self._replicas.pop(source, [])):
            ray.kill(actor)
            self._gpus.release((source, number))

    def _prior(self, source: str) -> list[Any]:
        """Its replicas, started if there are none. Each finds the best batch size of its device before it answers."""
        import ray

        if source not in self._replicas:
            at_ease, least = bytes_on_gpu(source)
            options = {
                **self._placement.prior_options(at_ease),
                "max_concurrency": MAX_CONCURRENCY,
                "max_restarts": -1,  # it has no state but its weights
            }
            arguments = (self._load_prior, source, self._placement.device, self._placement.prior_threads)
            make = ray.remote(PriorActor).options(**options)
            names = [(source, number) for number in range(self._options.prior_replicas)]
            sizes = {"num_bytes": at_ease, "least_bytes": least}
            places = [self._gpus.for_prior(name, **sizes, apart_from=names) for name in names]
            self._replicas[source] = [make.remote(*arguments, measure=True, gpu=gpu) for gpu in places]
        return self._replicas[source]


class RayWorker:
    """A `JobProcess` in an actor.

    Args:
        sentinel: to be removed once the actor has seen it. place: in words what the actor asks of a cluster, which may
            have to start a node first; "" where its place is certain. leave: called when the process has ended.
    """

    def __init__(
        self,
        actor: Any,
        prior: RayPrior | None,
        *,
        sentinel: str = "",
        place: str = "",
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._leave = leave
        self._actor, self._prior, self._sentinel, self._meter = actor, prior, sentinel, FitMeter()
        self._place, self._begin = place, time.monotonic()
        self._is_waiting_said = False
        self._answer = actor.poll.remote().future()  # asking Ray for each of many in every round costs more than all else

    def poll(self) -> list[Report] | None:
        """See `Worker.poll`; the death of the process is its last report."""
        from ray.exceptions import OutOfMemoryError, RayError

        if not self._answer.done():
            return self._while_waiting()
        self._place = ""
        try:
            reports: list[Report] = self._answer.result()
        except RayError as error:
            kind = FailureKind.OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else FailureKind.WORKER_LOST
            return [
                Failed(kind, f"The process that ran the job ended ({last_words(error) or type(error).__name__}).", str(error))
            ]
        self._answer = self._actor.poll.remote(POLL_SECONDS).future()
        self._remove_sentinel()
        self._meter.see(reports)
        return reports

    def stop(self, *, at_checkpoint: bool) -> None:
        """See `Worker.stop`."""
        self._actor.stop.remote(at_checkpoint)

    def set_weight(self, weight: float) -> None:
        """See `Worker.set_weight`."""
        if self._prior is not None:
            self._prior.set_weight(weight)

    def kill(self) -> None:
        """End the process; may be called twice."""
        import ray

        ray.kill(self._actor)
        self._leave()
        if self._prior is not None:
            self._prior.end()
        self._remove_sentinel()

    def _while_waiting(self) -> list[Report] | None:
        """Signs of life for an actor that waits for its place, with a word on it; None when it ought to have one."""
        waited = time.monotonic() - self._begin
        if not self._place or waited > PLACE_SECONDS:
            return None
        if self._is_waiting_said or waited < SAY_WAITING_SECONDS:
            return []
        self._is_waiting_said = True
        return [Message(text=f"Waits for a place on the cluster: {self._place}.")]

    def _remove_sentinel(self) -> None:
        if self._sentinel:
            remove_sentinel(self._sentinel)
            self._sentinel = ""
