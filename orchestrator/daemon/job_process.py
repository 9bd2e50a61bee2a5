"""The inside of a worker's process: one job, performed on a thread while another answers the orchestrator."""

from __future__ import annotations

import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.batch_images import BatchImagesSpec
from jobs.errors import InputError, Interrupted
from jobs.events import Message, Progress
from jobs.kinds import spec_from_json
from jobs.ledger import ShardRecord
from jobs.prior_client import PriorClient
from jobs.specs import ExportSpec, JobSpec
from jobs.texture.spec import TextureSpec
from orchestrator.batch.shard import Committed
from orchestrator.daemon.reports import Failed, Report, ShardsCommitted, Stopped, Succeeded
from orchestrator.host.gpus import use_gpu
from orchestrator.host.shared_disk import require_sentinel
from orchestrator.prior.source import PriorLoader
from orchestrator.scheduling.failures import failure_kind, sentence
from orchestrator.settings.job import JobSettings

if TYPE_CHECKING:
    from orchestrator.run.perform import Outcome

__all__ = ["JobProcess"]


class JobProcess:
    """Performs one job. Its methods may be called from several threads.

    Args:
        spec: JSON of the job's spec. settings: of its row. out: its run folder, or of a batch job its folder or URL.
        prior: the shared prior, wherever it is; None for a job that needs none.
        is_rows_retry: of a batch job that was finished before: draw the rows that have no picture.
        sentinel: see `orchestrator.host.shared_disk`; it is looked for before `poll` can be answered.
        shard_worker_bytes: that each shard worker of a batch job asks of Ray; 0: none.
        gpu: the one that this process sees, see `orchestrator.host.gpus`; "" leaves what it sees alone.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        settings: Mapping[str, Any],
        out: str,
        prior: PriorClient | None,
        is_rows_retry: bool = False,
        sentinel: str = "",
        shard_worker_bytes: int = 0,
        gpu: str = "",
    ) -> None:
        use_gpu(gpu)
        self._spec, self._settings, self._out = spec, settings, out
        self._prior = prior
        self._is_rows_retry = is_rows_retry
        self._shard_worker_bytes = shard_worker_bytes
        self._lock = threading.Lock()
        self._has_news = threading.Condition(self._lock)
        self._reports: list[Report] = []
        self._shards: list[ShardRecord] = []
        self._stop = _StopRequest()
        self._refusal: InputError | None = None
        try:
            require_sentinel(sentinel)
        except InputError as error:
            self._refusal = error
        self._thread = threading.Thread(target=self._perform, name="job", daemon=True)
        self._thread.start()

    def poll(self, seconds: float = 0.0) -> list[Report]:
        """What was reported since the last call: all shards at once, of consecutive progress only the newest.

        Args:
            seconds: to wait for something that is more than progress.
        """
        with self._lock:
            self._has_news.wait_for(lambda: any(not isinstance(one, Progress) for one in self._reports), seconds)
            reports, self._reports = self._reports, []
            shards, self._shards = self._shards, []
        return [ShardsCommitted(tuple(shards)), *reports] if shards else reports

    def stop(self, at_checkpoint: bool) -> None:
        """Stop at the next step, or after the next checkpoint."""
        self._stop.ask(at_checkpoint)

    def report(self, report: Report) -> None:
        """Add to what `poll` returns."""
        with self._lock:
            if self._reports and isinstance(report, Progress):
                last = self._reports[-1]
                if isinstance(last, Progress) and last.stage == report.stage:
                    self._reports.pop()
            self._reports.append(report)
            self._has_news.notify_all()

    def note(self, shard: Committed) -> None:
        """Add to the shards that `poll` returns."""
        marker = shard.marker
        record = ShardRecord(
            index=marker["shard"],
            num_rows=marker["num_rows"],
            num_failed=marker["num_failed"],
            seconds=marker["seconds"],
            worker=shard.worker,
            num_attempts=shard.num_attempts,
        )
        with self._lock:
            self._shards.append(record)

    def _perform(self) -> None:
        logging.captureWarnings(True)
        logging.getLogger().addHandler(_ReportHandler(self))
        try:
            if self._refusal is not None:
                raise self._refusal
            spec, settings = spec_from_json(dict(self._spec)), JobSettings.read(self._settings)
            if isinstance(spec, ExportSpec):
                self.report(self._export(spec))
            elif isinstance(spec, TextureSpec):
                self.report(self._paint(spec, settings))
            elif isinstance(spec, BatchImagesSpec):
                self.report(self._draw_table(spec, settings))
            else:
                self.report(self._make(spec, settings))
        except Interrupted as error:
            self.report(Stopped(str(error)))
        except BaseException as error:
            if self._stop.is_asked and isinstance(error, KeyboardInterrupt):
                self.report(Stopped("Stopped before its first step."))
            else:
                self.report(Failed(failure_kind(error), sentence(error), "".join(traceback.format_exception(error))))

    def _export(self, spec: ExportSpec) -> Succeeded:
        from orchestrator.run.export import export_run

        display = _ReportDisplay(self, self._stop, lambda progress: True)
        outcome = export_run(Path(spec.run), spec.settings, out=Path(self._out), display=display)
        return _succeeded(outcome)

    def _paint(self, spec: TextureSpec, settings: JobSettings) -> Succeeded:
        """It leaves no checkpoints: told to stop at one it goes on to its end, or anew from the beginning."""
        from orchestrator.run.given_mesh import GivenMesh
        from orchestrator.run.texturing import texture_mesh

        assert self._prior is not None and settings.mesh is not None
        outcome = texture_mesh(
            spec,
            GivenMesh.read(Path(settings.mesh), up=spec.up),
            out=Path(self._out),
            export=settings.export,
            runtime=replace(settings.runtime, kind="inline"),
            display=_ReportDisplay(self, self._stop, lambda progress: progress.stage in ("start", "prepare")),
            load_prior=_always(self._prior),
        )
        return _succeeded(outcome)

    def _make(self, spec: JobSpec, settings: JobSettings) -> Succeeded:
        from orchestrator.run.edit_pictures import EditPictures
        from orchestrator.run.perform import perform

        assert self._prior is not None
        every = settings.runtime.checkpoint_every
        outcome = perform(
            spec,
            out=self._out,
            export=settings.export,
            runtime=replace(settings.runtime, kind="inline"),  # in this process, with the shared prior
            display=_ReportDisplay(self, self._stop, lambda progress: _follows_a_checkpoint(progress, every)),
            load_prior=_always(self._prior),
            pictures=None if settings.pictures is None else EditPictures.read_from(_seen(Path(settings.pictures))),
        )
        return _succeeded(outcome)

    def _draw_table(self, spec: BatchImagesSpec, settings: JobSettings) -> Succeeded:
        """Rows without a picture do not make the job fail: they are counted in its metrics."""
        from orchestrator.batch.perform import perform_batch
        from orchestrator.batch.tables.source import TableSource

        batch = settings.batch
        if batch is None:
            raise InputError("The settings of a batch job must say in batch.prompts where its table lies.")
        source = TableSource.find(batch.prompts, prompt_column=spec.prompt_column)
        table = source.scan()
        is_retry = batch.retry_failed or self._is_rows_retry
        if table != spec.table and not is_retry:
            raise InputError(f"The table {batch.prompts} has changed since the job was submitted; submit it as a new one.")
        outcome = perform_batch(
            replace(spec, table=table),
            source,
            out=self._out,
            mode="retry-failed" if is_retry else "resume",
            runtime=settings.runtime,
            num_workers=batch.num_workers,
            price_per_hour=batch.price_per_hour,
            # Told to stop at a checkpoint it ends between two shards, which `is_stopping` sees to.
            display=_ReportDisplay(self, self._stop, lambda progress: progress.stage == "start"),
            shared_prior=self._prior,
            shard_worker_bytes=self._shard_worker_bytes,
            is_stopping=lambda: self._stop.is_asked,
            on_commit=self.note,
        )
        return Succeeded(metrics={**outcome.report, "did": outcome.did})


class _StopRequest:
    """Set by one thread, read by another."""

    def __init__(self) -> None:
        self.is_asked = False
        self.at_checkpoint = True

    def ask(self, at_checkpoint: bool) -> None:
        self.at_checkpoint = self.at_checkpoint and at_checkpoint
        self.is_asked = True


class _ReportDisplay:
    """`orchestrator.host.progress_display.Display` that reports, and that raises KeyboardInterrupt where the job shall stop."""

    def __init__(self, process: JobProcess, stop: _StopRequest, is_checkpoint: Callable[[Progress], bool]) -> None:
        self._process, self._stop, self._is_checkpoint = process, stop, is_checkpoint

    def __enter__(self) -> _ReportDisplay:
        return self

    def __exit__(self, *_: object) -> None: ...

    def event(self, progress: Progress) -> None:
        # The shared prior is not loaded by this job: its size would stay among the job's metrics.
        self._process.report(replace(progress, metrics={}) if progress.stage == "start" else progress)
        if self._stop.is_asked and (not self._stop.at_checkpoint or self._is_checkpoint(progress)):
            raise KeyboardInterrupt

    def message(self, text: str, level: str = "info") -> None:
        self._process.report(Message(text=text, level=level))


class _ReportHandler(logging.Handler):
    """Log records and warnings of libraries, as messages."""

    def __init__(self, process: JobProcess) -> None:
        super().__init__(logging.WARNING)
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        self._process.report(Message(text=self.format(record), level="log"))


def _follows_a_checkpoint(progress: Progress, every: int) -> bool:
    """The first step after one: a step is the price of not knowing more than progress. Pictures are kept one by one."""
    if progress.stage == "fit":
        return progress.step % every == 1 % every
    return progress.stage in ("start", "prepare", "draw")


def _seen(pictures: Path) -> Path:
    """The folder in the orchestrator's --state that `orchestrator.client.prepared_job` has filled."""
    if not pictures.is_dir():
        raise InputError(
            f"The pictures that the job starts from are not at {pictures} on this node ({socket.gethostname()}); on a cluster "
            "give 'dreamkiln up' and 'dreamkiln submit' a --state on a disk that every node mounts, and submit the job again."
        )
    return pictures


def _always(prior: PriorClient) -> PriorLoader:
    return lambda source, device: prior


def _succeeded(outcome: Outcome) -> Succeeded:
    seconds = {stage: round(value, 3) for stage, value in outcome.seconds.items()}
    metrics = {**outcome.metrics, "did": outcome.did, "seconds": seconds}
    return Succeeded(metrics=metrics, artefacts=_artefacts(outcome.folder))


def _artefacts(folder: Path) -> dict[str, tuple[int, str]]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.get("artefacts", {}).items()}
