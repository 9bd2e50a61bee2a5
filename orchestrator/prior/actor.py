"""The shared prior as a Ray actor.

Plain actors, not Ray Serve: a call through a Serve handle takes longer (benchmarks/service_latency.py), Serve needs packages
and processes of its own, and what it would add here, replicas that are asked elsewhere when one dies, is `RayPrior`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jobs.prior_client import Glimpse
from orchestrator.host.threads import use_threads
from orchestrator.metrics.meters import PriorMeter, keep_metering_weights
from orchestrator.prior.local import LocalPrior
from orchestrator.prior.resident import ResidentPrior
from orchestrator.prior.shelf import PriorShelf
from orchestrator.prior.source import PriorLoader
from orchestrator.prior.wire import Raised, Wire

__all__ = ["MAX_CONCURRENCY", "PriorActor"]

MAX_CONCURRENCY = 256
"""Calls that an actor works on at once. Each waits on a thread of its own, which costs little."""


class PriorActor:
    """Holds priors and answers any number of callers at once; what they ask at the same time shares forwards.

    Args:
        load_prior: see `PriorLoader`. source: of the prior that is meant where a call names none.
        memory_bytes: of weights, for priors that are loaded on demand; 0 for no limit. See `PriorShelf`.
        measure: find the best batch size of each prior when two requests first meet in it, which takes a few seconds.
    """

    def __init__(
        self,
        load_prior: PriorLoader,
        source: str,
        device: str,
        num_threads: int,
        *,
        memory_bytes: int = 0,
        measure: bool = True,
    ) -> None:
        use_threads(num_threads)

        def load(source: str) -> ResidentPrior:
            prior = load_prior(source, device)
            if not isinstance(prior, LocalPrior):
                raise TypeError(f"the loader gave a {type(prior).__name__}; expected a LocalPrior, whose engine can be shared")
            meter = self._meters[source] = PriorMeter(source)
            return ResidentPrior(prior, num_threads=num_threads, measure=measure, on_step=meter.step)

        self._source = source
        self._meters: dict[str, PriorMeter] = {}
        self._shelf: PriorShelf[ResidentPrior] = PriorShelf(load, memory_bytes=memory_bytes)
        keep_metering_weights(lambda: {source: prior.num_bytes for source, prior in self._shelf.loaded.items()})

    def call(self, method: str, *arguments: Any, source: str = "", job: str = "") -> Any:
        """Answer a method of `PriorClient` for a job; errors are returned, not raised. The first call loads the prior."""
        try:
            source = source or self._source
            with self._shelf.using(source) as prior:
                match method:
                    case "distill":
                        with self._meters[source].request(method):
                            return Wire(prior.distill(arguments[0].open(), job=job))
                    case "draw":
                        with self._meters[source].request(method):
                            return prior.draw(arguments[0].open(), job=job)
                    case _:
                        return getattr(prior, method)(*arguments)
        except Exception as error:
            return Raised(error)

    def draw_watched(
        self, request: Wire, every: int, *, source: str = "", job: str = ""
    ) -> Iterator[Glimpse | np.ndarray | Raised]:
        """A stream of glimpses; its last item is what `draw` answers, or the error."""
        try:
            source = source or self._source
            with self._shelf.using(source) as prior, self._meters[source].request("draw"):
                pictures = yield from prior.draw_watched(request.open(), every=every, job=job)
            yield pictures
        except Exception as error:
            yield Raised(error)

    def set_weight(self, job: str, weight: float) -> None:
        """The job's share of the rows, in every prior that is loaded now."""
        for prior in self._shelf.loaded.values():
            prior.set_weight(job, weight)

    def end_job(self, job: str) -> None:
        """Cancel and forget a job's requests: it has ended, or nobody waits for it any more."""
        for prior in self._shelf.loaded.values():
            prior.end_job(job)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Per loaded prior what its engine has done; see `EngineFigures`."""
        return {source: prior.figures.to_json() for source, prior in self._shelf.loaded.items()}
