"""A job's log: readable lines of all its attempts, kept beside the ledger and not in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

from jobs.events import Message, Progress
from jobs.words.safe_text import shown
from orchestrator.host.state_folder import StateFolder

__all__ = ["JobLog"]

SECONDS_BETWEEN_PROGRESS = 5.0


class JobLog:
    """Appends to one job's file. A full disk costs lines, not the job.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, folder: StateFolder, job_id: int, clock: Callable[[], float]) -> None:
        self._path = folder.job_log(job_id)
        self._clock = clock
        self._stage, self._last = "", 0.0

    def write(self, text: str) -> None:
        """One line with its time; the lines of a longer text are indented."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        first, *others = text.rstrip().splitlines() or [""]
        lines = [f"{now:%Y-%m-%d %H:%M:%S} {first}", *(f"    {line}" for line in others)]
        with contextlib.suppress(OSError):
            StateFolder.touch_private(self._path)
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(shown("\n".join(lines)) + "\n")

    def progress(self, progress: Progress) -> None:
        """A line when a stage begins and every few seconds."""
        now = self._clock()
        is_last = progress.step == progress.total > 1
        if progress.stage == self._stage and not is_last and now - self._last < SECONDS_BETWEEN_PROGRESS:
            return
        self._stage, self._last = progress.stage, now
        figures = " ".join(f"{name}={value:.4g}" for name, value in progress.metrics.items())
        self.write(f"{progress.stage} {progress.step}/{progress.total} {figures}".rstrip())

    def message(self, message: Message) -> None:
        """A sentence; warnings say so."""
        self.write(message.text if message.level == "info" else f"{message.level}: {message.text}")
