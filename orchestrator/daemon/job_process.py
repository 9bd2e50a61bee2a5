"""The inside of a worker's process: one job, performed on a thread while another answers the orchestrator."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import codec
from jobs.errors import Interrupted
from jobs.events import Message, Progress
from jobs.prior_client import PriorClient
from jobs.specs import spec_from_json
from orchestrator.daemon.reports import Failed, Report, Stopped, Succeeded
from orchestrator.runtimes.base import PriorLoader
from orchestrator.scheduling.failures import failure_kind, sentence
from orchestrator.settings import ExportSettings, RuntimeSettings

__all__ = ["JobProcess", "job_settings"]


def job_settings(settings: Mapping[str, Any]) -> tuple[ExportSettings, RuntimeSettings]:
    """The export and runtime settings of a job's row. Raises InputError for a value that is not allowed."""
    export = codec.from_plain(ExportSettings, settings.get("export", {}), path="export")
    runtime = codec.from_plain(RuntimeSettings, settings.get("runtime", {}), path="runtime")
    return export, runtime


class JobProcess:
    """Performs one job. Its methods may be called from several threads.

    Args:
        spec: JSON of the job's spec. settings: of its row. out: its run folder.
        prior: the shared prior, wherever it is.
    """

    def __init__(self, spec: Mapping[str, Any], settings: Mapping[str, Any], out: str, prior: PriorClient) -> None:
        self._arguments = (spec, settings, out)
        self._prior = prior
        self._lock = threading.Lock()
        self._reports: list[Report] = []
        self._stop = _StopRequest()
        self._thread = threading.Thread(target=self._perform, name="job", daemon=True)
        self._thread.start()

    def poll(self) -> list[Report]:
        """What was reported since the last call; of consecutive progress only the newest."""
        with self._lock:
            reports, self._reports = self._reports, []
        return reports

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

    def _perform(self) -> None:
        from dataclasses import replace

        from orchestrator.perform import perform

        spec_json, settings, out = self._arguments
        logging.captureWarnings(True)
        logging.getLogger().addHandler(_ReportHandler(self))
        try:
            spec = spec_from_json(dict(spec_json))
            export, runtime = job_settings(settings)
            display = _ReportDisplay(self, self._stop, checkpoint_every=runtime.checkpoint_every)
            outcome = perform(
                spec,
                out=out,
                export=export,
                runtime=replace(runtime, kind="inline"),  # in this process, with the shared prior
                display=display,
                load_prior=_always(self._prior),
            )
            self.report(Succeeded(metrics=outcome.metrics, artefacts=_artefacts(outcome.folder)))
        except Interrupted as error:
            self.report(Stopped(str(error)))
        except BaseException as error:
            if self._stop.is_asked and isinstance(error, KeyboardInterrupt):
                self.report(Stopped("Stopped before its first step."))
            else:
                self.report(Failed(failure_kind(error), sentence(error), "".join(traceback.format_exception(error))))


class _StopRequest:
    """Set by one thread, obeyed by another."""

    def __init__(self) -> None:
        self.is_asked = False
        self.at_checkpoint = True

    def ask(self, at_checkpoint: bool) -> None:
        self.at_checkpoint = self.at_checkpoint and at_checkpoint
        self.is_asked = True


class _ReportDisplay:
    """`orchestrator.progress_display.Display` that reports, and that raises KeyboardInterrupt where the job shall stop."""

    def __init__(self, process: JobProcess, stop: _StopRequest, *, checkpoint_every: int) -> None:
        self._process, self._stop, self._every = process, stop, checkpoint_every

    def __enter__(self) -> _ReportDisplay:
        return self

    def __exit__(self, *_: object) -> None: ...

    def event(self, progress: Progress) -> None:
        self._process.report(progress)
        if self._stop.is_asked and (not self._stop.at_checkpoint or self._follows_a_checkpoint(progress)):
            raise KeyboardInterrupt

    def message(self, text: str, level: str = "info") -> None:
        self._process.report(Message(text=text, level=level))

    def _follows_a_checkpoint(self, progress: Progress) -> bool:
        """The first step after one: a step is the price of not knowing more than progress. Pictures are kept one by one."""
        if progress.stage == "fit":
            return progress.step % self._every == 1 % self._every
        return progress.stage in ("start", "prepare", "draw")


class _ReportHandler(logging.Handler):
    """Log records and warnings of libraries, as messages."""

    def __init__(self, process: JobProcess) -> None:
        super().__init__(logging.WARNING)
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        self._process.report(Message(text=self.format(record), level="log"))


def _always(prior: PriorClient) -> PriorLoader:
    return lambda source, device: prior


def _artefacts(folder: Path) -> dict[str, tuple[int, str]]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.get("artefacts", {}).items()}
