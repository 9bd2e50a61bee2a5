"""Live progress on stderr: bars on a terminal, plain lines elsewhere, nothing when nobody looks. stdout stays clean."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from jobs.events import Progress
from jobs.words.safe_text import shown
from orchestrator.host.first_words import say_no_first_words

__all__ = ["Display", "PlainDisplay", "RichDisplay", "SilentDisplay", "make_display"]

LABELS = {
    "ray": "start Ray",
    "start": "load the prior",
    "prepare": "prepare",
    "fit": "distil",
    "mesh": "cut the mesh",
    "paint": "paint",
    "judge": "ask the prior what it sees",
    "draw": "draw",
    "export": "write files",
    "render": "render shards",
}
WIDE, NARROW = 100, 60
SHOWN_METRICS = ("loss", "opacity", "occupied", "denoising_steps")


class Display(Protocol):
    """Where a job's progress is shown. A context manager: leaving it restores the terminal."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *_: object) -> None: ...
    def event(self, progress: Progress) -> None:
        """Show how far the job is."""
        ...

    def message(self, text: str, level: str = "info") -> None:
        """Show a sentence."""
        ...


def make_display(*, stream: TextIO | None = None) -> Display:
    """Bars if the stream is a terminal that can move its cursor, plain lines otherwise."""
    say_no_first_words()
    stream = stream or sys.stderr
    is_lively = stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return RichDisplay(stream) if is_lively else PlainDisplay(stream)


class SilentDisplay:
    """Shows nothing."""

    def __enter__(self) -> SilentDisplay:
        return self

    def __exit__(self, *_: object) -> None: ...

    def event(self, progress: Progress) -> None:
        """Nothing."""

    def message(self, text: str, level: str = "info") -> None:
        """Nothing."""


class PlainDisplay:
    """One line when a stage begins or ends, and one every few seconds between.

    Args:
        every_seconds: least time between two lines of one stage.
        clock: seconds, monotonic; tests give their own.
    """

    def __init__(self, stream: TextIO, *, every_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._every = every_seconds
        self._clock = clock
        self._stage = ""
        self._last = -every_seconds
        self._pace = _Rate(clock)

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None: ...

    def event(self, progress: Progress) -> None:
        """A line, if one is due."""
        new = progress.stage != self._stage
        rate = self._pace.update(progress)
        is_last = progress.step == progress.total > 1
        if not (new or is_last or (progress.total > 1 and self._clock() - self._last >= self._every)):
            return
        self._stage, self._last = progress.stage, self._clock()
        self._print(_line(progress, rate))

    def message(self, text: str, level: str = "info") -> None:
        """A line of its own."""
        self._print(f"{level}: {text}" if level != "info" else text)

    def _print(self, text: str) -> None:
        print(shown(text), file=self._stream, flush=True)


class RichDisplay:
    """A live bar per stage. On a narrow terminal the bar goes first, then the metrics; the count and the time left stay."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self._console = Console(file=stream)
        bar = 30 if self._console.width >= WIDE else 10 if self._console.width >= NARROW else 0
        label = TextColumn("{task.description:<15}" if bar else "{task.description}")
        middle = [BarColumn(bar_width=bar)] if bar else []
        self._room = self._console.width - 16 - (bar + 1 if bar else 0)
        self._bars = RichProgress(
            label,
            *middle,
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
            console=self._console,
        )
        self._tasks: dict[str, Any] = {}
        self._pace = _Rate(time.monotonic)

    def __enter__(self) -> RichDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def event(self, progress: Progress) -> None:
        """Move the stage's bar."""
        rate = self._pace.update(progress)
        if progress.stage not in self._tasks:
            label = LABELS.get(progress.stage, progress.stage)
            self._tasks[progress.stage] = self._bars.add_task(label, total=progress.total, figures="")
        task = self._tasks[progress.stage]
        room = self._room - 2 * len(str(progress.total)) - 2
        figures = _fitting(_figures(progress, rate), room)
        self._bars.update(task, completed=progress.step, total=progress.total, figures=figures)

    def message(self, text: str, level: str = "info") -> None:
        """A line above the bars."""
        self._console.print(shown(text), style="yellow" if level == "warning" else None, markup=False, highlight=False)


class _Rate:
    """Steps per second of the running stage."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stage = ""
        self._origin = (0.0, 0)

    def update(self, progress: Progress) -> float:
        if progress.stage != self._stage:
            self._stage, self._origin = progress.stage, (self._clock(), progress.step)
        seconds, steps = self._clock() - self._origin[0], progress.step - self._origin[1]
        return steps / seconds if seconds > 0 else 0.0


def _line(progress: Progress, rate: float) -> str:
    label = LABELS.get(progress.stage, progress.stage)
    figures = "  ".join(_figures(progress, rate))
    count = f" {progress.step}/{progress.total}" if progress.total > 1 else ""
    return label + count + (f"  {figures}" if figures else "")


def _figures(progress: Progress, rate: float) -> list[str]:
    """What there is to say beside the count, the most wanted first."""
    parts = []
    if progress.stage == "start" and (megabytes := progress.metrics.get("megabytes")):
        parts.append(f"{megabytes:,.0f} MB")
    if progress.seconds_left is not None and progress.step < progress.total:
        parts.append(f"{duration(progress.seconds_left)} left")
    if rate and progress.total > 1:
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
    return parts + [f"{name} {progress.metrics[name]:.3g}" for name in SHOWN_METRICS if name in progress.metrics]


def _fitting(parts: list[str], room: int) -> str:
    """As many of them as there is room for, from the first one on; the first in any case."""
    taken = parts[:1]
    for part in parts[1:]:
        if len("  ".join([*taken, part])) > room:
            break
        taken.append(part)
    return "  ".join(taken)


def duration(seconds: float) -> str:
    """Seconds as MINUTES:SS, from an hour on as HOURS:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
