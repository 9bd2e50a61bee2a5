"""Jobs as text: a table, a live table, one job in full."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from orchestrator.batch.settings import FAILURES

__all__ = ["follow", "print_job", "print_table", "table"]

COLOURS = {
    "queued": "cyan",
    "running": "bold green",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "dim",
    "lost": "magenta",
}
ENDED = ("succeeded", "failed", "cancelled")
Look = Callable[[], tuple[list[dict[str, Any]], float]]


def table(jobs: Iterable[Mapping[str, Any]], *, now: float) -> Table:
    """One row a job, newest first as given; priorities only where there are any."""
    jobs = list(jobs)
    has_priorities = any(job["priority"] for job in jobs)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "state", "progress", "user", *(["priority"] if has_priorities else []), "age", "what"):
        shown.add_column(
            name,
            justify="right" if name in ("job", "priority", "age") else "left",
            no_wrap=name in ("job", "state", "age"),
            overflow="fold",
        )
    for job in jobs:
        state = f"[{COLOURS.get(job['state'], '')}]{job['state']}[/]"
        priority = [str(job["priority"])] if has_priorities else []
        age = duration(now - job["created_at"])
        shown.add_row(str(job["id"]), state, escape(progress(job)), escape(job["user"]), *priority, age, escape(what(job)))
    return shown


def what(job: Mapping[str, Any]) -> str:
    """The prompt, or the table of prompts."""
    spec = job["spec"]
    if job["kind"] != "batch-images":
        return spec.get("prompt", job["name"])
    files = spec["table"]["files"]
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    return f"{sum(file['num_rows'] for file in files):,} rows of {files[0]['name']}{more}"


def progress(job: Mapping[str, Any]) -> str:
    """ "fit 120/400, 1:02 left", why nothing moves, or what came out."""
    if job["state"] in ("running", "lost") and job["stage"]:
        left = job["seconds_left"]
        return f"{job['stage']} {job['step']:,}/{job['total']:,}" + (f", {duration(left)} left" if left else "")
    if job["state"] == "queued":
        return job.get("waits", "")
    if job["state"] == "succeeded":
        return rows_drawn(job) or f"in {duration(job['seconds_run'])}"
    return job["reason"] if job["state"] in ("failed", "paused") else ""


def rows_drawn(job: Mapping[str, Any]) -> str:
    """ "998 of 1,000 rows, 2 failed" of a table that is finished; empty for anything else."""
    metrics = job["metrics"]
    if "num_rows" not in metrics:
        return ""
    failed = f", {metrics['num_failed']:,} failed" if metrics["num_failed"] else ""
    return f"{metrics['num_succeeded']:,} of {metrics['num_rows']:,} rows{failed}"


def print_table(jobs: list[dict[str, Any]], *, now: float) -> None:
    """To stdout, as wide as the terminal."""
    if jobs:
        Console().print(table(jobs, now=now))
    else:
        print("No jobs.")


def print_job(answer: Mapping[str, Any]) -> None:
    """One job with its attempts, files and events."""
    job = answer["job"]
    print(f"Job {job['id']}, {job['kind']}: {what(job)}")
    print(f"  state     {job['state']}" + (f" ({job['reason']})" if job["reason"] not in ("", "done") else ""))
    if (now := progress(job)) and now != job["reason"]:
        print(f"  progress  {now}")
    print(f"  folder    {job['out']}")
    print(f"  user      {job['user']}, priority {job['priority']}, prior {job['prior']}")
    if job["metrics"].get("num_failed"):
        causes = ", ".join(f"{num:,} {cause}" for cause, num in job["metrics"]["failures_by_cause"].items())
        print(f"  failed    {causes}: see {job['out']}/{FAILURES}; mend them, then 'dreamkiln jobs retry {job['id']}'")
    if job["is_dead_letter"]:
        print(f"  dead letter after {job['num_failures']} failures; 'dreamkiln jobs retry {job['id']}' tries again")
    for attempt in answer["attempts"]:
        ended = _time(attempt["ended_at"]) if attempt["ended_at"] else "now"
        why = f" ({attempt['reason']})" if attempt["reason"] not in ("", "done") else ""
        print(f"  attempt   {_time(attempt['started_at'])} to {ended}: {attempt['outcome']}{why}")
    for artefact in answer["artefacts"]:
        print(f"  file      {artefact['name']} ({artefact['num_bytes']:,} bytes)")
    for event in answer["events"]:
        print(f"  {_time(event['at'])}  {event['text']}")


def follow(look: Look, *, interval_seconds: float, as_json: bool, stream: TextIO) -> list[dict[str, Any]]:
    """Show until all have ended; returns the last look."""
    if as_json or not stream.isatty():
        return _follow_lines(look, interval_seconds, as_json, stream)
    jobs, now = look()
    with Live(table(jobs, now=now), console=Console(file=stream), refresh_per_second=4) as live:
        while any(job["state"] not in ENDED for job in jobs):
            time.sleep(interval_seconds)
            jobs, now = look()
            live.update(table(jobs, now=now))
    return jobs


def _follow_lines(look: Look, interval_seconds: float, as_json: bool, stream: TextIO) -> list[dict[str, Any]]:
    before: dict[int, Any] = {}
    while True:
        jobs, _ = look()
        for job in jobs:
            news = (job["state"], job["stage"], job["step"], job["num_attempts"])
            if before.get(job["id"]) != news:
                before[job["id"]] = news
                short = {name: job[name] for name in ("id", "state", "stage", "step", "total", "seconds_left", "reason")}
                line = f"job {job['id']} {job['state']} {progress(job)}".rstrip()
                print(json.dumps(short) if as_json else line, file=stream, flush=True)
        if all(job["state"] in ENDED for job in jobs):
            return jobs
        time.sleep(interval_seconds)


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours as well."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
