"""Jobs as text: a table, a live table, one job in full."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

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
    """One row a job, newest first as given."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "state", "progress", "user", "priority", "age", "what"):
        shown.add_column(name, justify="right" if name in ("job", "priority", "age") else "left", overflow="fold")
    for job in jobs:
        state = f"[{COLOURS.get(job['state'], '')}]{job['state']}[/]"
        what = job["spec"].get("prompt", job["name"])
        shown.add_row(
            str(job["id"]), state, progress(job), job["user"], str(job["priority"]), _age(now - job["created_at"]), what
        )
    return shown


def progress(job: Mapping[str, Any]) -> str:
    """ "fit 120/400, 1:02 left", or why nothing moves."""
    if job["state"] in ("running", "lost") and job["stage"]:
        left = job["seconds_left"]
        return f"{job['stage']} {job['step']}/{job['total']}" + (f", {_age(left)} left" if left else "")
    if job["state"] == "queued":
        return job.get("waits", "")
    return job["reason"] if job["state"] in ("failed", "paused") else ""


def print_table(jobs: list[dict[str, Any]], *, now: float) -> None:
    """To stdout, as wide as the terminal."""
    if jobs:
        Console().print(table(jobs, now=now))
    else:
        print("No jobs.")


def print_job(answer: Mapping[str, Any]) -> None:
    """One job with its attempts, files and events."""
    job = answer["job"]
    print(f"Job {job['id']}, {job['kind']}: {job['spec'].get('prompt', job['name'])}")
    print(f"  state     {job['state']}" + (f" ({job['reason']})" if job["reason"] else ""))
    if now := progress(job):
        print(f"  progress  {now}")
    print(f"  folder    {job['out']}")
    print(f"  user      {job['user']}, priority {job['priority']}, prior {job['prior']}")
    if job["is_dead_letter"]:
        print(f"  dead letter after {job['num_failures']} failures; 'dreamkiln jobs retry {job['id']}' tries again")
    for attempt in answer["attempts"]:
        ended = _time(attempt["ended_at"]) if attempt["ended_at"] else "now"
        print(f"  attempt   {_time(attempt['started_at'])} to {ended}: {attempt['outcome']} {attempt['reason']}".rstrip())
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


def _age(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
