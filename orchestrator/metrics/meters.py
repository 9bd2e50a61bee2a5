"""Who measures what: the orchestrator its queue, a prior its forwards and requests, a shard's worker its rows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from diffusion.engine import StepReport
from jobs.states import State
from orchestrator.metrics import catalogue

__all__ = ["FitMeter", "PriorMeter", "QueueMeter", "keep_metering_weights", "meter_shard"]

_OUTCOMES = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class QueueMeter:
    """Of an orchestrator, told now and then what its ledger holds."""

    def __init__(self) -> None:
        self._before: Mapping[State, int] | None = None

    def update(self, counts: Mapping[State, int], *, longest_wait_seconds: float) -> None:
        """counts: jobs by state, every state named. Those that were there at the first call do not count as ended."""
        for state, count in counts.items():
            catalogue.JOBS.set(count, state=str(state))
        before = self._before or counts
        for state in _OUTCOMES:
            catalogue.JOBS_ENDED.add(counts[state] - before[state], outcome=str(state))
        catalogue.LONGEST_WAIT.set(longest_wait_seconds)
        self._before = dict(counts)


class FitMeter:
    """Of one attempt at a 3D job."""

    def __init__(self) -> None:
        self._step: int | None = None

    def see(self, reports: Iterable[Any]) -> None:
        """Takes the steps from `Progress` of the stage "fit"; the first one, perhaps of a resumed fit, is where it began."""
        for report in reports:
            if getattr(report, "stage", "") == "fit":
                if self._step is not None:
                    catalogue.FIT_STEPS.add(report.step - self._step)
                self._step = report.step


class PriorMeter:
    """Of one loaded prior. A few calls per forward and per request, about 2 µs each; never per row."""

    def __init__(self, prior: str) -> None:
        self._prior = prior

    def step(self, report: StepReport) -> None:
        """The engine made one more step."""
        prior = self._prior
        if report.batch_rows:
            catalogue.PRIOR_BATCH_ROWS.observe(report.batch_rows, prior=prior)
            catalogue.PRIOR_ROWS.add(sum(report.rows.values()), prior=prior)
        for stage, seconds in report.seconds.items():
            catalogue.PRIOR_STAGE_SECONDS.add(seconds, prior=prior, stage=stage)
        catalogue.PRIOR_OUT_OF_MEMORY.add(report.out_of_memory, prior=prior)

    @contextlib.contextmanager
    def request(self, name: str) -> Iterator[None]:
        """Around a request and its waiting."""
        begin = time.perf_counter()
        try:
            yield
        except BaseException:
            catalogue.PRIOR_REQUEST_FAILURES.add(prior=self._prior)
            raise
        catalogue.PRIOR_REQUEST_SECONDS.observe(time.perf_counter() - begin, prior=self._prior, request=name)


def keep_metering_weights(loaded: Callable[[], Mapping[str, int]], *, every_seconds: float = 5.0) -> None:
    """On a thread that ends with its process, say again and again how large each loaded prior is.

    A gauge that is set once is exported once: Ray forgets values that nobody repeats.

    Args:
        loaded: prior -> bytes of its weights.
    """

    def repeat() -> None:
        while True:
            for prior, num_bytes in loaded().items():
                catalogue.PRIOR_WEIGHTS_BYTES.set(num_bytes, prior=prior)
            time.sleep(every_seconds)

    threading.Thread(target=repeat, name="metrics", daemon=True).start()


def meter_shard(marker: Mapping[str, Any]) -> None:
    """A shard was committed; see `orchestrator.batch.storage.markers`."""
    catalogue.SHARDS.add()
    for outcome in ("succeeded", "failed"):
        catalogue.SHARD_ROWS.add(marker[f"num_{outcome}"], outcome=outcome)
    catalogue.SHARD_SECONDS.observe(marker["seconds"])
