"""One batch job from spec to report: reads the table, has the shards drawn, watches, and sums up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from jobs.batch_images import BatchImagesSpec
from jobs.codec import to_plain
from jobs.errors import InputError
from jobs.events import Progress
from jobs.late_start import warn_of_late_start
from jobs.pace import Pace
from jobs.prior_client import PriorClient, PriorInfo
from jobs.words.vocabulary import warn_of_prompts, warn_of_unknown_words
from orchestrator.batch import report as reports
from orchestrator.batch.job_folder import JobFolder, Mode
from orchestrator.batch.shard import Committed, ShardJob, ShardTask
from orchestrator.batch.storage.stores import Store, open_store
from orchestrator.batch.storage.urls import absolute
from orchestrator.batch.tables.source import TableSource
from orchestrator.batch.workers import Report, Tasks, actor_options, run_here, run_in_actors
from orchestrator.host.progress_display import Display, SilentDisplay
from orchestrator.prior.source import PriorLoader, loading
from orchestrator.run import cost
from orchestrator.run.artefacts import PREVIEW
from orchestrator.run.manifest import noting_the_end
from orchestrator.run.perform import entered, make_runtime
from orchestrator.runtimes.base import leaves_to_device, resolve_device, with_settled_prior
from orchestrator.settings.batch import FAILURES, SHARD_WORKER_BYTES
from orchestrator.settings.groups import RuntimeSettings

__all__ = ["BatchOutcome", "perform_batch"]

ROWS_FOR_THE_WARNING = 200
MOST_WARNINGS = 5


@dataclass(frozen=True)
class BatchOutcome:
    """A finished batch job.

    Args:
        location: its folder or URL. did: "drawn" or "nothing to do".
        report: see `orchestrator.batch.report`.
    """

    location: str
    did: str
    report: dict[str, Any]
    messages: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"folder": self.location, "did": self.did, "report": self.report, "messages": list(self.messages)}


def perform_batch(
    spec: BatchImagesSpec,
    source: TableSource,
    *,
    out: str,
    mode: Mode = "resume",
    runtime: RuntimeSettings | None = None,
    num_workers: int = 4,
    price_per_hour: float | None = None,
    display: Display | None = None,
    load_prior: PriorLoader | None = None,
    shared_prior: PriorClient | None = None,
    shard_worker_bytes: int = 0,
    is_stopping: Callable[[], bool] = lambda: False,
    on_commit: Callable[[Committed], None] | None = None,
) -> BatchOutcome:
    """Draw what is left of the job.

    Args:
        source: where the table of `spec` lies. out: folder or URL.
        num_workers: shards in flight, each in an actor of its own; inline there is one, drawn here.
        price_per_hour: of this machine, in any currency, for the cost in the report.
        load_prior: what loads the prior; `orchestrator.prior.local.load_prior` by default.
        shared_prior: draws instead of one that is loaded for this job; `runtime` says nothing then. Of several workers
            each is an actor of the Ray that this process belongs to.
        shard_worker_bytes: memory that each of several workers asks of Ray to find a place; on the cluster that `runtime` names
            it is `SHARD_WORKER_BYTES`.
        is_stopping: asked before each shard; once it is true no more are begun, and the job is interrupted when those in
            work are committed.
        on_commit: told of each shard that is committed, those of earlier attempts included.

    Raises:
        InputError: the place belongs to another job, the table changed, or the prior cannot be loaded.
        OutputError: the place cannot be written. JobFailed: the prior is gone.
        Interrupted: Ctrl-C, SIGTERM or `is_stopping`; the same call continues.
    """
    runtime, display = runtime or RuntimeSettings(), display or SilentDisplay()
    if shared_prior is None and leaves_to_device(spec):
        device = resolve_device(runtime.device, is_elsewhere=bool(runtime.address))
        spec = with_settled_prior(spec, device, is_elsewhere=bool(runtime.address))
    store = open_store(out)
    with store.hold() as held:
        folder = JobFolder(store, spec, mode)
        if folder.is_complete:
            if on_commit is not None:
                for shard in folder.committed():
                    on_commit(shard)
            return BatchOutcome(store.location, "nothing to do", folder.report)
        folder.check_rows(source)
        attempt = _Attempt(
            spec,
            source,
            store,
            held,
            folder,
            runtime,
            display,
            price_per_hour,
            is_stopping,
            on_commit,
            is_prior_shared=shared_prior is not None,
            shard_worker_bytes=SHARD_WORKER_BYTES if shared_prior is None and runtime.address else shard_worker_bytes,
        )
        with noting_the_end(attempt.stop, attempt.stopped):
            if shared_prior is not None:
                return attempt.run(lambda: shared_prior, num_workers=num_workers)
            device = resolve_device(runtime.device, is_elsewhere=bool(runtime.address))
            with entered(make_runtime(spec, runtime, device, load_prior), runtime, display) as running:
                return attempt.run(running.prior, num_workers=1 if runtime.kind == "inline" else num_workers)


@dataclass
class _Attempt:
    spec: BatchImagesSpec
    source: TableSource
    store: Store
    held: str
    folder: JobFolder
    runtime: RuntimeSettings
    display: Display
    price_per_hour: float | None
    is_stopping: Callable[[], bool]
    on_commit: Callable[[Committed], None] | None
    is_prior_shared: bool
    shard_worker_bytes: int
    was_stopped: bool = False
    num_done: int = 0
    num_drawn: int = 0
    num_gpus: int = 0
    info: PriorInfo | None = None
    draw_seconds: float = 0.0
    messages: list[str] = field(default_factory=list)

    def run(self, load: Callable[[], PriorClient], *, num_workers: int) -> BatchOutcome:
        """Draw the missing shards, then sum up all of them. load: gives the prior, once its loading can be watched."""
        self.display.event(loading(self.spec.prior))
        prior = load()
        info = self.info = prior.info()
        settings = {"runtime": to_plain(self.runtime), "num_workers": num_workers}
        self.folder.begin(info, device=info.device, settings=settings)
        self.num_gpus = int(info.device.startswith("cuda"))
        if self.spec.prior != "toybox":
            self._say(cost.sentence(self.spec, info))
        for note in info.notes:
            self._say(note)
        with contextlib.suppress(InputError):  # rows may say other steps, and those that cannot be drawn fail alone
            for message in warn_of_late_start(self.spec, info):
                self._say(message.text, message.level)
        self.display.event(Progress(stage="start", step=1, total=1))
        location = absolute(self.store.location)  # workers have other working folders
        job = ShardJob(self.spec, self.source, location, info, self.held, self.runtime.preview_every)
        if self.runtime.preview_every:
            self.display.message(f"{self.store.location}/{PREVIEW} shows unfinished pictures; it goes when they are finished.")
        tasks = self._until_stopped(self._with_warning(self.folder.tasks(self.source), prior))
        num_workers = min(num_workers, self.spec.num_shards)
        if num_workers == 1 and (self.runtime.kind == "inline" or self.is_prior_shared):
            reports_of_shards = run_here(job, prior, tasks, self.store)
        else:
            options = actor_options(self.shard_worker_bytes)
            reports_of_shards = run_in_actors(job, prior, tasks, num_workers=num_workers, options=options)
        self._watch(reports_of_shards)
        if self.was_stopped:
            raise KeyboardInterrupt
        return self._finish()

    def stopped(self) -> str:
        """The sentence after Ctrl-C."""
        rows = f"{self.num_done:,} of {self.spec.table.num_rows:,} rows"
        return f"Stopped with {rows} done in {self.store.location}; the same command draws the rest."

    def stop(self, state: Literal["failed", "interrupted"], reason: str) -> None:
        """Note in the manifest how this attempt ended."""
        self.folder.stop(state, reason, self.figures())

    def figures(self) -> dict[str, Any]:
        """Of this attempt. What a shared prior computed for one job among others is not known."""
        return reports.attempt_report(
            num_drawn=self.num_drawn,
            draw_seconds=self.draw_seconds,
            cpu_seconds=None if self.is_prior_shared else reports.cpu_seconds_of_this_command(),
            num_gpus=self.num_gpus,
        )

    def _watch(self, reports_of_shards: Iterator[Report]) -> None:
        total, begin = self.spec.table.num_rows, time.monotonic()
        pace = Pace()
        self.display.event(Progress(stage="draw", step=0, total=total))
        for item in reports_of_shards:
            self.draw_seconds = time.monotonic() - begin
            num_rows = item if isinstance(item, int) else 0
            if isinstance(item, Committed):
                if item.worker:
                    self.num_drawn += item.marker["num_drawn_by_last_attempt"]
                else:
                    num_rows = item.marker["num_rows"]
                if self.on_commit is not None:
                    self.on_commit(item)
            self.num_done += num_rows
            if num_rows > 0:
                left = pace.lap(num_rows, left=total - self.num_done)
                self.display.event(Progress(stage="draw", step=self.num_done, total=total, seconds_left=left))

    def _say(self, text: str, level: str = "info") -> None:
        self.messages.append(text)
        self.display.message(text, level)

    def _finish(self) -> BatchOutcome:
        if self.spec.prior != "toybox" and self.num_drawn and self.info is not None:
            cost.remember(self.spec, self.info, self.draw_seconds, share=self.num_drawn / self.spec.table.num_rows)
        self.display.event(Progress(stage="export", step=0, total=1))
        report = reports.summarise(self.store, self.spec, failures=FAILURES) | self.figures()
        if self.price_per_hour is not None:
            report |= reports.cost(
                price_per_hour=self.price_per_hour,
                seconds=self.folder.seconds,
                attempts=self.folder.attempts(),
                num_pictures=report["num_succeeded"],
            )
        self.store.require_held(self.held)
        self.folder.finish(report)
        self.display.event(Progress(stage="export", step=1, total=1))
        return BatchOutcome(self.store.location, "drawn", report, tuple(self.messages))

    def _until_stopped(self, tasks: Tasks) -> Tasks:
        for task in tasks:
            if isinstance(task, ShardTask) and self.is_stopping():
                self.was_stopped = True
                return
            yield task

    def _with_warning(self, tasks: Tasks, prior: PriorClient) -> Tasks:
        """The same tasks; a look at the first prompts to be drawn warns of words that the prior never saw, or cuts off."""
        for task in tasks:
            if isinstance(task, ShardTask):
                cells = (row.values.get(self.spec.prompt_column) for row in task.rows[:ROWS_FOR_THE_WARNING])
                prompts = [cell for cell in cells if isinstance(cell, str)]
                warnings = [*warn_of_unknown_words(prior, " ".join(prompts)), *warn_of_prompts(prior, *prompts)]
                for message in warnings[:MOST_WARNINGS]:
                    self._say(message.text, message.level)
                yield from chain([task], tasks)
                return
            yield task
