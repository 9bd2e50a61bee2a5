"""The shared prior as a Ray actor.

Plain actors, not Ray Serve: a call through a Serve handle takes longer (benchmarks/service_latency.py), Serve needs packages
and processes of its own, and what it would add here, replicas that are asked elsewhere when one dies, is `RayPrior`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from diffusion.engine.memory import is_sticky
from jobs.prior_client import PicturePreview
from orchestrator.host.gpus import use_gpu
from orchestrator.host.threads import use_threads
from orchestrator.metrics.meters import PriorMeter, keep_metering_weights
from orchestrator.prior.local import LocalPrior
from orchestrator.prior.resident import ResidentPrior
from orchestrator.prior.source import PriorLoader
from orchestrator.prior.wire import Raised, Wire

__all__ = ["MAX_CONCURRENCY", "PriorActor"]

MAX_CONCURRENCY = 256
"""Calls that an actor works on at once. Each waits on a thread of its own, which costs little."""


def _end_where_the_device_is_lost(error: Exception) -> None:
    """After a sticky CUDA error nothing in this process works any more; Ray starts it again, and the callers ask again."""
    if is_sticky(error):
        print(f"The GPU is lost to this process, which ends: {error}", file=sys.stderr, flush=True)
        os._exit(1)


class PriorActor:
    """Holds a prior and answers any number of callers at once; what they ask at the same time shares forwards.

    The first call loads the prior; one whose engine has ended by an error of its own is loaded anew.

    Args:
        load_prior: see `PriorLoader`. source: what it is given.
        measure: find the best batch size when two requests first meet, which takes a few seconds.
        gpu: the one that this process sees, see `orchestrator.host.gpus`; "" leaves what it sees alone.
    """

    def __init__(
        self, load_prior: PriorLoader, source: str, device: str, num_threads: int, *, measure: bool = True, gpu: str = ""
    ) -> None:
        use_gpu(gpu)
        use_threads(num_threads)
        self._load_prior, self._source, self._device = load_prior, source, device
        self._num_threads, self._measure = num_threads, measure
        self._meter = PriorMeter(source)
        self._prior: ResidentPrior | None = None
        self._weights: dict[str, float] = {}
        self._lock = threading.Lock()
        keep_metering_weights(lambda: {} if self._prior is None else {source: self._prior.num_bytes})

    def call(self, method: str, *arguments: Any, job: str = "") -> Any:
        """Answer a method of `PriorClient` for a job; errors are returned, not raised."""
        try:
            prior = self._loaded()
            match method:
                case "distill":
                    with self._meter.request(method):
                        return Wire(prior.distill(arguments[0].open(), job=job))
                case "losses":
                    with self._meter.request(method):
                        return prior.losses(arguments[0].open(), job=job).numpy()
                case "generate":
                    with self._meter.request(method):
                        return prior.generate(arguments[0].open(), job=job)
                case _:
                    return getattr(prior, method)(*arguments)
        except Exception as error:
            _end_where_the_device_is_lost(error)
            return Raised(error)

    def generate_with_previews(
        self, request: Wire, every: int, *, job: str = ""
    ) -> Iterator[PicturePreview | np.ndarray | Raised]:
        """A stream of previews; its last item is what `generate` answers, or the error."""
        try:
            with self._meter.request("generate"):
                pictures = yield from self._loaded().generate_with_previews(request.open(), every=every, job=job)
            yield pictures
        except Exception as error:
            _end_where_the_device_is_lost(error)
            yield Raised(error)

    def set_weight(self, job: str, weight: float) -> None:
        """The job's share of the rows against other jobs, from now on, and of a prior that is loaded later."""
        with self._lock:
            self._weights[job] = weight
            if self._prior is not None and not self._prior.has_ended:
                self._prior.set_weight(job, weight)

    def end_job(self, job: str) -> None:
        """Cancel and forget a job's requests: it has ended, or nobody waits for it any more."""
        with self._lock:
            self._weights.pop(job, None)
            if self._prior is not None and not self._prior.has_ended:
                self._prior.end_job(job)

    def figures(self) -> dict[str, Any]:
        """What the engine has done, see `EngineFigures`; empty before the prior is loaded."""
        return {} if self._prior is None else self._prior.figures.to_json()

    def _loaded(self) -> ResidentPrior:
        """Its loading is waited for by all who ask meanwhile."""
        with self._lock:
            if self._prior is None or self._prior.has_ended:
                self._prior = None  # its memory first
                prior = self._load_prior(self._source, self._device)
                if not isinstance(prior, LocalPrior):
                    raise TypeError(
                        f"the loader gave a {type(prior).__name__}; expected a LocalPrior, whose engine can be shared"
                    )
                threads, on_step = self._num_threads, self._meter.step
                self._prior = ResidentPrior(prior, num_threads=threads, measure=self._measure, on_step=on_step)
                for job, weight in self._weights.items():
                    self._prior.set_weight(job, weight)
            return self._prior
