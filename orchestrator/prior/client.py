"""A prior as the jobs of a cluster see it: one client over the actors that hold it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.distillation import Distilled
from jobs.errors import PriorFailed
from jobs.prior_client import DistillationQuery, GenerateRequest, LossQuery, PicturePreview, PriorInfo
from orchestrator.prior.deaths import last_words
from orchestrator.prior.wire import Raised, Wire

__all__ = ["RayPrior"]


class RayPrior:
    """`PriorClient` over the handles of replicas that hold the same prior.

    A call goes to one replica; if that dies, the next is asked the same, and gives the same answer, because requests name
    their noise.

    Args:
        replicas: handles of `PriorActor`. job: whose requests these are.
        first: the replica that is asked first, so that clients can be spread over them.
        attempts: replicas that are asked before giving up.
    """

    def __init__(self, replicas: Sequence[Any], *, job: str = "", first: int = 0, attempts: int = 1) -> None:
        self._replicas = tuple(replicas)
        self._job = job
        self._first = first
        self._attempts = attempts

    def for_job(self, job: str) -> RayPrior:
        """The same replicas, asked on behalf of that job."""
        return RayPrior(self._replicas, job=job, first=self._first, attempts=self._attempts)

    def info(self) -> PriorInfo:
        """Name, weights and sizes."""
        return self._call("info")

    def prompt_warnings(self, prompts: Sequence[str]) -> list[str]:
        """A sentence for each prompt of which something is cut or not understood."""
        return self._call("prompt_warnings", list(prompts))

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that the prior was never trained on."""
        return self._call("unknown_words", list(prompts))

    def distill(self, query: DistillationQuery) -> Distilled:
        """One step of score distillation."""
        return self._call("distill", Wire(query)).open()

    def losses(self, query: LossQuery) -> Tensor:
        """The denoising loss of each picture, (V,) float32."""
        return torch.from_numpy(self._call("losses", Wire(query)))

    def generate(self, request: GenerateRequest) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        return self._call("generate", Wire(request))

    def generate_with_previews(self, request: GenerateRequest, *, every: int) -> Generator[PicturePreview, None, np.ndarray]:
        """`generate` with previews; a replica that is asked after another one died begins anew with them."""
        import ray

        wire = Wire(request)

        def stream(replica: Any) -> Iterator[Any]:
            for reference in replica.generate_with_previews.options(num_returns="streaming").remote(wire, every, job=self._job):
                yield ray.get(reference)

        for item in self._ask(stream):
            if not isinstance(item, PicturePreview):
                return item
            yield item
        raise PriorFailed("The prior ended its answer without pictures; run the command again.")

    def set_weight(self, weight: float) -> None:
        """The job's share of the rows against other jobs; does not wait."""
        for replica in self._replicas:
            replica.set_weight.remote(self._job, weight)

    def end(self) -> None:
        """Whatever the job still waits for is cancelled and what the replicas know of it forgotten; does not wait."""
        for replica in self._replicas:
            replica.end_job.remote(self._job)

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        (answer,) = self._ask(lambda replica: [ray.get(replica.call.remote(method, *arguments, job=self._job))])
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
        raise PriorFailed(_said(failure)) from failure


def _said(failure: Exception) -> str:
    """One sentence on a replica's death; memory is blamed only where the process left no words of its own."""
    words = last_words(failure)
    advice = "" if words else " If it happens again, memory may be short: try a smaller prior or runtime=inline."
    return (
        f"The process that holds the prior died ({words or type(failure).__name__}); the same command continues from the last "
        f"checkpoint.{advice}"
    )
