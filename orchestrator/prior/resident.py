"""A resident prior that many callers ask at once: its engine runs on a thread of its own, callers wait for their answers."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from diffusion.distillation import Distilled
from diffusion.engine import StepReport
from jobs.errors import PriorFailed
from jobs.prior_client import DistillationQuery, GenerateRequest, LossQuery, PicturePreview, PriorInfo
from orchestrator.host.threads import use_threads
from orchestrator.prior.local import LocalPrior, Pending

__all__ = ["EngineFigures", "ResidentPrior"]


@dataclass(eq=False)
class EngineFigures:
    """What the engine has done since it started.

    Args:
        rows: job -> network rows. forwards, batch_rows: forwards and their rows, padding included.
        seconds: stage -> seconds. out_of_memory: how often the cap was halved.
        rows_per_second: batch size -> rate, if it was measured.
    """

    rows: Counter[str] = field(default_factory=Counter)
    forwards: int = 0
    batch_rows: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    out_of_memory: int = 0
    rows_per_second: dict[int, float] = field(default_factory=dict)

    def add(self, report: StepReport) -> None:
        """One more step."""
        self.rows.update(report.rows)
        self.forwards += report.batch_rows > 0
        self.batch_rows += report.batch_rows
        self.seconds.update(report.seconds)
        self.out_of_memory += report.out_of_memory

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "rows": dict(self.rows), "seconds": dict(self.seconds)}


class _Caller(NamedTuple):
    """Who waits for a request, and what to do with previews of its pictures."""

    future: Future[Any]
    job: str
    on_preview: Callable[[PicturePreview], None] | None


class ResidentPrior:
    """`jobs.prior_client.PriorClient` for any number of threads at once.

    Requests that are there at the same time share forwards. A future that is cancelled stops its request between two
    steps. The thread ends with `close`, or with a mistake in the engine; whoever waits then, or asks later, gets a
    `PriorFailed` that says which.

    Args:
        prior: nobody else may use it from here on. num_threads: of torch, on the engine's thread; 0 for every core.
        measure: find the best batch size when two requests first meet, which takes a few seconds. Whoever is alone never
            waits for it.
        on_step: told what each step of the engine did, on its thread.
    """

    def __init__(
        self,
        prior: LocalPrior,
        *,
        num_threads: int = 0,
        measure: bool = True,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.figures = EngineFigures()
        self._prior = prior
        self._info = prior.info()
        self._num_threads = num_threads
        self._measure = measure
        self._on_step = on_step
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[Pending, _Caller] = {}
        self._closed = False
        self._why = "The prior was unloaded while it was asked; ask again."
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="prior-engine", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether nothing is answered any more."""
        return self._closed

    @property
    def num_bytes(self) -> int:
        """Of the weights, and of what requests' LoRAs keep beside them."""
        return self._prior.num_bytes

    def info(self) -> PriorInfo:
        """Name, weights and sizes."""
        return self._info

    def prompt_warnings(self, prompts: list[str]) -> list[str]:
        """A sentence for each prompt of which something is cut or not understood."""
        return self._prior.prompt_warnings(prompts)

    def unknown_words(self, prompts: list[str]) -> list[str]:
        """Words of the prompts that the prior was never trained on."""
        return self._prior.unknown_words(prompts)

    def distill(self, query: DistillationQuery, *, job: str = "") -> Distilled:
        """One step of score distillation."""
        return self.start_distill(query, job=job).result()

    def losses(self, query: LossQuery, *, job: str = "") -> Tensor:
        """The denoising loss of each picture, (V,) float32."""
        return self._start(lambda: self._prior.begin_losses(query, job=job), job).result()

    def generate(self, request: GenerateRequest, *, job: str = "") -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        return self.start_generate(request, job=job).result()

    def generate_with_previews(
        self, request: GenerateRequest, *, every: int, job: str = ""
    ) -> Generator[PicturePreview, None, np.ndarray]:
        """`generate`, with a preview of the pictures each time the network has been asked `every` times more."""
        news: queue.SimpleQueue[PicturePreview | None] = queue.SimpleQueue()
        future = self._start(
            lambda: self._prior.begin_generate(request, job=job, preview_every=every), job, on_preview=news.put
        )
        future.add_done_callback(lambda _: news.put(None))
        try:
            while (preview := news.get()) is not None:
                yield preview
            return future.result()
        finally:
            future.cancel()

    def start_distill(self, query: DistillationQuery, *, job: str = "") -> Future[Distilled]:
        """`distill` without waiting."""
        return self._start(lambda: self._prior.begin_distill(query, job=job), job)

    def start_generate(self, request: GenerateRequest, *, job: str = "") -> Future[np.ndarray]:
        """`generate` without waiting."""
        return self._start(lambda: self._prior.begin_generate(request, job=job), job)

    def set_weight(self, job: str, weight: float) -> None:
        """The job's share of the rows against other jobs; see `diffusion.engine.FairShare`."""
        self._put(lambda: self._prior.engine.set_weight(job, weight))

    def end_job(self, job: str) -> None:
        """Cancel what the job still waits for, at the next border between two steps, and forget it."""

        def end() -> None:
            for pending, caller in self._waiting.items():
                if caller.job == job:
                    self._cancel(pending)
            self._prior.engine.forget(job)
            self.figures.rows.pop(job, None)

        self._put(end)

    def close(self) -> None:
        """End the thread after the step it is in."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _put(self, action: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise PriorFailed(self._why)
            self._inbox.put(action)

    def _start(
        self, begin: Callable[[], Pending], job: str, on_preview: Callable[[PicturePreview], None] | None = None
    ) -> Future[Any]:
        future: Future[Any] = Future()

        def start() -> None:
            if future.cancelled():
                return
            try:
                self._waiting[begin()] = _Caller(future, job, on_preview)
            except Exception as error:
                _resolve(future, error)

        self._put(start)
        return future

    # -- the engine's thread -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        use_threads(self._num_threads)
        engine = self._prior.engine
        try:
            while self._take_in(wait=not engine.live):
                for pending, caller in self._waiting.items():
                    if caller.future.cancelled():
                        self._cancel(pending)
                if self._measure and len(self._waiting) > 1:
                    self._measure = False
                    self.figures.rows_per_second = dict(self._prior.measure().rows_per_second)
                report = engine.step() if engine.live else StepReport()
                self.figures.add(report)
                self._show(report)
                self._hand_out()
                if self._on_step is not None:  # nobody waits for it
                    self._on_step(report)
            failure = PriorFailed(self._why)
        except BaseException as error:
            # A mistake in the engine itself: nobody may wait for ever.
            self._why = f"The prior's engine stopped ({type(error).__name__}: {error})."
            failure = PriorFailed(self._why)
            failure.__cause__ = error
        with self._lock:
            self._closed = True
        self._give_up(failure)
        while not self._inbox.empty():
            action = self._inbox.get()
            if action is not None:
                action()
        self._give_up(failure)

    def _take_in(self, *, wait: bool) -> bool:
        """Everything that has arrived; False when it is time to end."""
        while wait or not self._inbox.empty():
            action = self._inbox.get()
            wait = False
            if action is None:
                return False
            action()
        return True

    def _show(self, report: StepReport) -> None:
        if report.previews:
            for pending, caller in self._waiting.items():
                if caller.on_preview is not None:
                    for preview in pending.shown(report.previews):
                        caller.on_preview(preview)

    def _give_up(self, failure: PriorFailed) -> None:
        for caller in self._waiting.values():
            _resolve(caller.future, failure)

    def _hand_out(self) -> None:
        for pending in [pending for pending in self._waiting if pending.finished]:
            future = self._waiting.pop(pending).future
            try:
                answer = pending.result()
            except Exception as error:
                answer = error
                self._cancel(pending)
            _resolve(future, answer)

    def _cancel(self, pending: Pending) -> None:
        for ticket in pending.tickets:
            self._prior.engine.cancel(ticket)


def _resolve(future: Future[Any], answer: Any) -> None:
    """Set the result or the exception, unless the caller has cancelled meanwhile."""
    try:
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
    except InvalidStateError:
        pass
