"""`dreamkiln jobs`: see and steer what was submitted."""

from __future__ import annotations

import json as json_module
import re
import sys
import time
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from jobs.errors import DreamKilnError, InputError
from orchestrator.cli import common

NAME = "jobs"
HELP = "List, watch, cancel, pause, resume, retry and forget submitted jobs."

Job = Annotated[int, typer.Argument(help="The job's number.", show_default=False)]
Jobs = Annotated[list[int], typer.Argument(help="Numbers of jobs.", show_default=False)]

PAGE = 500

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def jobs() -> None:
    """A group."""


@app.command(name="list", help="The newest jobs.")
def list_(
    state_filter: Annotated[list[str] | None, typer.Option("--only", help="States to show; may be repeated.")] = None,
    user: Annotated[str | None, typer.Option(help="Of this user alone.")] = None,
    limit: Annotated[int, typer.Option(help="How many, 1 to 10,000.", min=1, max=10_000)] = 50,
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """A table, or JSON."""
    answer = _newest(common.running_orchestrator(state), limit, state=state_filter, user=user)
    if json:
        _print_json({"ok": True, **answer})
        return
    from orchestrator.client.job_display import print_table

    print_table(answer["jobs"], now=answer["now"])


@app.command(help="Everything about one job: settings, attempts, files, events.")
def show(job: Job, state: common.State = None, json: common.Json = False) -> None:
    """Text, or JSON."""
    answer = common.running_orchestrator(state).get(f"/v1/jobs/{job}")
    if json:
        _print_json({"ok": True, **answer})
        return
    from orchestrator.client.job_display import print_job

    print_job(answer)


@app.command(help="A live table; ends when all these jobs have, or are paused. Exit code 1 if one failed.")
def watch(
    numbers: Annotated[list[int] | None, typer.Argument(help="Jobs to watch; without, all that have not ended.")] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
    limit: Annotated[int, typer.Option(help="Without numbers: how many to show.", min=1, max=1000)] = 30,
    state: common.State = None,
    json: common.Json = False,
) -> int:
    """On a terminal a table that moves; elsewhere a line for each change; with --json a line of JSON for each change."""
    client = _patient_client(state)

    from orchestrator.client.job_display import follow
    from orchestrator.client.open_jobs import OpenJobs, look_at

    look = partial(look_at, client, numbers) if numbers else OpenJobs(client, limit=limit).look
    last = follow(look, interval_seconds=interval, as_json=json, stream=sys.stdout)
    if last.paused and not json:
        some = " ".join(map(str, last.paused[:10])) + (" …" if len(last.paused) > 10 else "")
        are, them = ("is", "it") if len(last.paused) == 1 else ("are", "them")
        print(f"{len(last.paused):,} of these jobs {are} paused; 'dreamkiln jobs resume {some}' goes on with {them}.")
    if not last.jobs and not json:
        print("No jobs." if not client.get("/v1/jobs", limit=1)["jobs"] else "All jobs have ended; see 'dreamkiln jobs list'.")
    return int(last.has_failed)


@app.command(help="What a job has said, over all its attempts.")
def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
    state: common.State = None,
) -> None:
    """To stdout."""
    client, offset = _patient_client(state), 0
    while True:
        answer = client.get(f"/v1/jobs/{job}/log", offset=offset)
        sys.stdout.write(answer["text"])
        sys.stdout.flush()
        has_more = answer["offset"] > offset
        offset = answer["offset"]
        if not has_more and (not follow or answer["is_over"]):
            return
        if not has_more:
            time.sleep(0.5)


@app.command(help="Read every shard of a finished table of pictures, and name what is missing or broken. Exit code 1 then.")
def verify(job: Job, state: common.State = None, json: common.Json = False) -> int:
    """The place is read from here, not by the orchestrator."""
    found = common.running_orchestrator(state).get(f"/v1/jobs/{job}")["job"]
    if found["kind"] != "batch-images":
        raise InputError(f"Job {job} is of kind {found['kind']}; only tables of pictures have shards to verify.")
    from orchestrator.batch.command import verify_place

    fix = f"'dreamkiln images --prompts {found['settings']['batch']['prompts']} --out {found['out']} --repair' draws them again"
    return int(bool(verify_place(found["out"], as_json=json, fix=fix)))


@app.command(help="Forget ended jobs, with their logs and the copies of pictures they started from; run folders stay.")
def prune(
    older_than: Annotated[str, typer.Option(help="Ended so long ago: 30d, 12h, 90m; 0d for all that have ended.")] = "30d",
    user: Annotated[str | None, typer.Option(help="Of this user alone.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be forgotten, and forget nothing.")] = False,
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """The newest job is kept, and jobs of a best-of that is not decided."""
    seconds = _seconds(older_than)
    client = common.running_orchestrator(state)
    given = {"older_than_seconds": seconds, "dry_run": dry_run, **({} if user is None else {"user": user})}
    answer = client.post(f"/v1/prune?{urlencode(given)}")
    if json:
        _print_json({"ok": True, **answer})
        return
    num, logs, megabytes = answer["num_jobs"], answer["num_logs"], answer["num_bytes"] / 1e6
    if not num:
        print(f"No job to forget ended more than {older_than} ago.")
        return
    jobs, did = "1 job" if num == 1 else f"{num:,} jobs", "Would forget" if dry_run else "Forgot"
    print(f"{did} {jobs} and {logs:,} {'log' if logs == 1 else 'logs'} ({megabytes:.1f} MB); run folders stay.")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([dhms])", text.strip())
    if match is None:
        raise InputError(f"--older-than is {text!r}; give a number and a unit, such as 30d, 12h, 90m or 0d.")
    return float(match[1]) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[match[2]]


def _newest(client: Any, num: int, **filters: Any) -> dict[str, Any]:
    """So many jobs, page by page."""
    answer = client.get("/v1/jobs", limit=min(num, PAGE), **filters)
    while answer["cursor"] is not None and len(answer["jobs"]) < num:
        limit = min(PAGE, num - len(answer["jobs"]))
        page = client.get("/v1/jobs", limit=limit, before=answer["cursor"], **filters)
        answer = {**page, "jobs": [*answer["jobs"], *page["jobs"]]}
    return answer


def _steering(action: str, help: str, done: str) -> None:
    def command(numbers: Jobs, state: common.State = None, json: common.Json = False) -> int:
        client = common.running_orchestrator(state)
        results, errors = [], []
        for number in numbers:
            try:
                results.append(client.post(f"/v1/jobs/{number}/{action}"))
            except DreamKilnError as error:
                errors.append(error)
        if errors and len(numbers) == 1:
            raise errors[0]
        if json:
            _print_json({"ok": not errors, "jobs": results, "errors": [str(error) for error in errors]})
        else:
            for result in results:
                later = " at its next step" if result["state"] == "running" and action in ("cancel", "pause") else ""
                print(f"Job {result['id']}: {f'{done}{later}' if later else result['state']}")
            for refusal in errors:
                print(f"dreamkiln: {refusal}", file=sys.stderr)
        return InputError.exit_code if errors else 0

    app.command(name=action, help=help)(command)


_steering("cancel", "Cancel jobs; what they have written stays.", "will be cancelled")
_steering("pause", "Pause jobs; they keep their checkpoints and make room.", "will pause")
_steering("resume", "Go on with paused jobs.", "goes on")
_steering("retry", "Queue failed or cancelled jobs again; they go on from their checkpoints.", "is queued again")


def _patient_client(state: Any) -> Any:
    from orchestrator.client.client import PatientClient

    def say(text: str) -> None:
        print(f"dreamkiln: {text}", file=sys.stderr)

    return PatientClient(
        common.running_orchestrator(state), say=say, meanwhile="its jobs go on with it, or with the next 'dreamkiln up'"
    )


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, ensure_ascii=False))
