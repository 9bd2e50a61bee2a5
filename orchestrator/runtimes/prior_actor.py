"""The shared prior as a Ray actor, and the client that asks one or several of them.

Plain actors, not Ray Serve: a call through a Serve handle takes longer (benchmarks/service_latency.py), Serve needs packages
and processes of its own, and what it would add here, replicas that are asked elsewhere when one dies, is `RayPrior`.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.errors import DreamKilnError, PriorFailed, UnexpectedError
from jobs.prior_client import DistillationQuery, Distilled, DrawRequest, Glimpse, PriorInfo
from orchestrator.metrics.meters import PriorMeter, keep_metering_weights
from orchestrator.prior_engine import ResidentPrior
from orchestrator.prior_service import LocalPrior
from orchestrator.prior_shelf import PriorShelf
from orchestrator.runtimes.base import PriorLoader
from orchestrator.runtimes.threads import use_threads

__all__ = ["MAX_CONCURRENCY", "PriorActor", "Raised", "RayPrior", "Wire"]

MAX_CONCURRENCY = 256
"""Calls that an actor works on at once. Each waits on a thread of its own, which costs little."""


class Raised:
    """An exception on its way between actors: the exception itself if it is ours, otherwise its words."""

    def __init__(self, error: BaseException) -> None:
        if isinstance(error, DreamKilnError):
            self.error: DreamKilnError = error
        else:
            self.error = UnexpectedError(f"{type(error).__name__}: {error}")
        self.error.add_note("".join(traceback.format_exception(error)))
        self.notes = self.error.__notes__

    def reraise(self) -> None:
        """Raise it here, with the other side's traceback as a note."""
        self.error.__notes__ = self.notes
        raise self.error


class Wire:
    """A dataclass whose tensors travel as arrays: torch's own pickling takes a quarter longer."""

    def __init__(self, message: Any) -> None:
        self._kind = type(message)
        values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
        self._tensors = {name: value.cpu().numpy() for name, value in values.items() if isinstance(value, Tensor)}
        self._rest = {name: value for name, value in values.items() if name not in self._tensors}

    def open(self) -> Any:
        """The message again; its tensors are copies, because what Ray hands out is read-only."""
        return self._kind(**self._rest, **{name: torch.from_numpy(array.copy()) for name, array in self._tensors.items()})


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


class RayPrior:
    """`PriorClient` over the handles of replicas that hold the same prior.

    A call goes to one replica; if that dies, the next is asked the same, and gives the same answer, because requests name
    their noise.

    Args:
        replicas: handles of `PriorActor`. source: of the prior, if not the replicas' own. job: whose requests these are.
        first: the replica that is asked first, so that clients can be spread over them.
        attempts: replicas that are asked before giving up.
    """

    def __init__(self, replicas: Sequence[Any], *, source: str = "", job: str = "", first: int = 0, attempts: int = 1) -> None:
        self._replicas = tuple(replicas)
        self._source = source
        self._job = job
        self._first = first
        self._attempts = attempts

    def for_job(self, job: str) -> RayPrior:
        """The same replicas, asked on behalf of that job."""
        return RayPrior(self._replicas, source=self._source, job=job, first=self._first, attempts=self._attempts)

    def info(self) -> PriorInfo:
        """Name, weights and sizes."""
        return self._call("info")

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that the prior was never trained on."""
        return self._call("unknown_words", list(prompts))

    def distill(self, query: DistillationQuery) -> Distilled:
        """One step of score distillation."""
        return self._call("distill", Wire(query)).open()

    def draw(self, request: DrawRequest) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        return self._call("draw", Wire(request))

    def draw_watched(self, request: DrawRequest, *, every: int) -> Generator[Glimpse, None, np.ndarray]:
        """`draw` with glimpses; a replica that is asked after another one died begins anew with them."""
        import ray

        wire, names = Wire(request), {"source": self._source, "job": self._job}

        def stream(replica: Any) -> Iterator[Any]:
            for reference in replica.draw_watched.options(num_returns="streaming").remote(wire, every, **names):
                yield ray.get(reference)

        for item in self._ask(stream):
            if not isinstance(item, Glimpse):
                return item
            yield item
        raise PriorFailed("The prior ended its answer without pictures; run the command again.")

    def end(self) -> None:
        """Whatever the job still waits for is cancelled and what the replicas know of it forgotten; does not wait."""
        for replica in self._replicas:
            replica.end_job.remote(self._job)

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        names = {"source": self._source, "job": self._job}
        (answer,) = self._ask(lambda replica: [ray.get(replica.call.remote(method, *arguments, **names))])
        return answer

    def _ask(self, ask: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
        """The items that a replica answers with, or if it dies another one; an error among them is raised."""
        from ray.exceptions import RayError

        for attempt in range(self._attempts):
            replica = self._replicas[(self._first + attempt) % len(self._replicas)]
            try:
                for item in ask(replica):
                    if isinstance(item, Raised):
                        item.reraise()
                    yield item
                return
            except RayError as error:
                failure = error
                if attempt + 1 >= len(self._replicas) and attempt + 1 < self._attempts:
                    # All have been asked: give Ray the time to start one again.
                    time.sleep(min(0.5 * 2**attempt, 10.0))
        first_line = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
        raise PriorFailed(
            f"The process that holds the prior died ({first_line}); the same command continues from the last "
            "checkpoint. If it happens again, memory may be short: try a smaller prior or runtime=inline."
        ) from failure
