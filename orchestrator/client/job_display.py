"""Jobs as text: a table, a live table, one job in full."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.words.safe_text import shown
from orchestrator.client.open_jobs import Sight
from orchestrator.settings.batch import FAILURES

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
GAP = 2
MAX_USER_WIDTH = 12
Look = Callable[[], Sight]


def table(jobs: Iterable[Mapping[str, Any]], *, now: float, width: int, num_more: int = 0) -> Table:
    """One line a job, newest first as given, cut to `width` characters; priorities only where there are any."""
    rows = [
        {
            "job": str(job["id"]),
            "state": job["state"],
            "progress": progress(job),
            "user": job["user"],
            "prio": str(job["priority"]) if job["priority"] else "",
            "age": age(now - job["created_at"]),
            "what": what(job),
        }
        for job in jobs
    ]
    names = [name for name in ("job", "state", "progress", "user", "prio", "age", "what") if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    widths["user"] = min(widths["user"], MAX_USER_WIDTH)
    room = width - sum(widths[name] for name in names if name not in ("progress", "what")) - GAP * (len(names) - 1)
    # What does not fit is cut in the two long columns: the prompt to a third of the room, then the reasons.
    widths["what"] = max(1, min(widths["what"], max(room // 3, room - widths.get("progress", 0))))
    if "progress" in widths:
        widths["progress"] = max(1, min(widths["progress"], room - widths["what"]))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    if num_more:
        shown.caption, shown.caption_justify = Text(_more(num_more), style="dim", overflow="ellipsis", no_wrap=True), "left"
    for name in names:
        justify: Literal["right", "left"] = "right" if name in ("job", "prio", "age") else "left"
        shown.add_column(name, justify=justify, no_wrap=True, width=widths[name], overflow="ellipsis")
    for row in rows:
        cells = (Text(row[name], style=COLOURS.get(row["state"], "") if name == "state" else "") for name in names)
        shown.add_row(*cells)
    return shown


def _more(num: int) -> str:
    return f"… and {num:,} more that {'has' if num == 1 else 'have'} not ended"


def what(job: Mapping[str, Any]) -> str:
    """The prompt, or the table of prompts."""
    spec = job["spec"]
    if job["kind"] != "batch-images":
        return shown(spec.get("prompt", job["name"]))
    files = spec["table"]["files"]
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    return f"{sum(file['num_rows'] for file in files):,} rows of {files[0]['name']}{more}"


def progress(job: Mapping[str, Any]) -> str:
    """ "fit 120/400, 1:02 left", why nothing moves, or what came out."""
    if job["state"] == "running" and not job["stage"]:
        return "starts"
    if job["state"] in ("running", "lost") and job["stage"]:
        left = job["seconds_left"]
        step, total = job["step"], job["total"]
        done = f"{step}/{total}" if total < 10_000 else f"{step / total:.1%}"
        return f"{job['stage']} {done}" + (f", {duration(left)} left" if left else "") + _after(", ", score(job["metrics"]))
    if job["state"] == "queued":
        return job.get("waits", "")
    if job["state"] == "succeeded":
        flags = ", ".join(job["metrics"].get("quality_flags", ()))
        took = f"in {duration(job['seconds_run'])}" + _after(", ", score(job["metrics"]))
        return rows_drawn(job) or took + (f"; look at it: {flags}" if flags else "")
    return job["reason"] if job["state"] == "failed" else ""


def score(metrics: Mapping[str, Any]) -> str:
    """ "score 0.312": how far the prior sees the sentence in the mesh, or in the fit so far; empty where it was not asked."""
    for name, when in (("prior_score", ""), ("prior_score_50", " half way"), ("prior_score_25", " after a quarter")):
        if isinstance(found := metrics.get(name), (int, float)):
            return f"score {found:.3f}{when}"
    return ""


def _opinion(metrics: Mapping[str, Any]) -> str:
    """What the prior, and a CLIP if one was asked, take the mesh for."""
    if "prior_score" not in metrics:
        return ""
    said = f"{score(metrics)}, 0 says nothing and more is better"
    looks = [(name, metrics.get(f"prior_score_{name}")) for name in (25, 50)]
    if any(value is not None for _, value in looks):
        said += "; on the way " + ", ".join(f"{value:.3f} at {name} %" for name, value in looks if value is not None)
    if "clip_score" in metrics:
        said += f"; CLIP {metrics['clip_score']:.3f}"
    return said + ("; it may have two faces" if metrics.get("has_two_faces") else "")


def _after(separator: str, text: str) -> str:
    return separator + text if text else ""


def rows_drawn(job: Mapping[str, Any]) -> str:
    """ "998 of 1,000 rows, 2 failed" of a table that is finished; empty for anything else."""
    metrics = job["metrics"]
    if "num_rows" not in metrics:
        return ""
    failed = f", {metrics['num_failed']:,} failed" if metrics["num_failed"] else ""
    return f"{metrics['num_succeeded']:,} of {metrics['num_rows']:,} rows{failed}"


def shards_done(shards: Mapping[str, Any]) -> str:
    """ "13 of 20 committed by 3 processes in 41 s of work, 1 of them begun again after its process died"."""
    said = f"{shards['num_committed']:,} of {shards['num_shards']:,} committed"
    if num_workers := len(shards["workers"]):
        said += f" by {num_workers:,} {'process' if num_workers == 1 else 'processes'} in {duration(shards['seconds'])} of work"
    if num := shards["num_begun_again"]:
        said += f", {num:,} of them begun again after {'its' if num == 1 else 'their'} process died"
    return said


def print_table(jobs: list[dict[str, Any]], *, now: float) -> None:
    """To stdout, as wide as the terminal."""
    if jobs:
        console = Console()
        console.print(table(jobs, now=now, width=console.width))
    else:
        print("No jobs.")


def print_job(answer: Mapping[str, Any]) -> None:
    """One job with its attempts, files and events."""
    job = answer["job"]
    _say(f"Job {job['id']}, {job['kind']}: {what(job)}")
    _say(f"  state     {job['state']}" + (f" ({job['reason']})" if job["reason"] not in ("", "done") else ""))
    if (now := progress(job)) and now != job["reason"]:
        _say(f"  progress  {now}")
    _say(f"  folder    {job['out']}")
    _say(f"  user      {job['user']}, priority {job['priority']}, prior {job['prior']}")
    if said := _opinion(job["metrics"]):
        _say(f"  prior     {said}")
    if job["metrics"].get("num_failed"):
        causes = ", ".join(f"{num:,} {cause}" for cause, num in job["metrics"]["failures_by_cause"].items())
        _say(f"  failed    {causes}: see {job['out']}/{FAILURES}; mend them, then 'dreamkiln jobs retry {job['id']}'")
    if job["is_dead_letter"]:
        _say(f"  dead letter after {job['num_failures']} failures; 'dreamkiln jobs retry {job['id']}' tries again")
    if shards := answer["shards"]:
        _say(f"  shards    {shards_done(shards)}")
    for attempt in answer["attempts"]:
        ended = _time(attempt["ended_at"]) if attempt["ended_at"] else "now"
        why = f" ({attempt['reason']})" if attempt["reason"] not in ("", "done") else ""
        _say(f"  attempt   {_time(attempt['started_at'])} to {ended}: {attempt['outcome']}{why}")
    for artefact in answer["artefacts"]:
        _say(f"  file      {artefact['name']} ({artefact['num_bytes']:,} bytes)")
    for event in answer["events"]:
        _say(f"  {_time(event['at'])}  {event['text']}")


def follow(look: Look, *, interval_seconds: float, as_json: bool, stream: TextIO) -> Sight:
    """Show until all have ended; returns the last look."""
    if as_json or not stream.isatty():
        return _follow_lines(look, interval_seconds, as_json, stream)
    console = Console(file=stream)

    def drawn(sight: Sight) -> Table:
        return table(sight.jobs, now=sight.now, width=console.width, num_more=sight.num_more)

    sight = look()
    with Live(drawn(sight), console=console, refresh_per_second=4) as live:
        while not sight.is_over:
            time.sleep(interval_seconds)
            sight = look()
            live.update(drawn(sight))
    return sight


def _follow_lines(look: Look, interval_seconds: float, as_json: bool, stream: TextIO) -> Sight:
    before: dict[int, Any] = {}
    while True:
        sight = look()
        if sight.num_more and not before and not as_json:
            print(_more(sight.num_more), file=stream, flush=True)
        for job in sight.jobs:
            news = (job["state"], job["stage"], job["step"], job["num_attempts"])
            if before.get(job["id"]) != news:
                before[job["id"]] = news
                short = {name: job[name] for name in ("id", "state", "stage", "step", "total", "seconds_left", "reason")}
                line = f"job {job['id']} {job['state']} {progress(job)}".rstrip()
                print(json.dumps(short) if as_json else shown(line), file=stream, flush=True)
        if sight.is_over:
            return sight
        time.sleep(interval_seconds)


def age(seconds: float) -> str:
    """Its two largest units: 40s, 2m 40s, 3h 20m, 9d 18h."""
    seconds = max(0, round(seconds))
    units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]
    parts: list[str] = []
    for name, size in units:
        number, seconds = divmod(seconds, size)
        if number or parts:
            parts.append(f"{number}{name}")
    return " ".join(part for part in parts[:2] if not part.startswith("0")) or "0s"


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours as well."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _say(text: str) -> None:
    print(shown(text))


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
