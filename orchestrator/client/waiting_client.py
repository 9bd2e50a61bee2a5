"""A command that lets the orchestrator do its job and waits for it, as if it ran here."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.batch_images import BatchImagesSpec
from jobs.errors import DreamKilnError, InputError, Interrupted, JobFailed
from jobs.events import Progress
from jobs.states import FailureKind, State
from orchestrator.batch.perform import BatchOutcome
from orchestrator.batch.storage.urls import is_url
from orchestrator.client.client import Client, NotRunningError, PatientClient, UnavailableError
from orchestrator.client.prepared_job import PreparedJob
from orchestrator.client.remote import RemoteClient
from orchestrator.host.progress_display import Display, SilentDisplay
from orchestrator.run.perform import Outcome, artefact_order

__all__ = ["SubmittedJob", "export_and_wait", "submit_and_wait", "submit_each", "submit_job"]

SECONDS_BETWEEN_LOOKS = 0.3
MOST_SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_TO_CANCEL = 5.0


@dataclass(frozen=True)
class SubmittedJob:
    """A job in the queue of a running orchestrator.

    Args:
        number: its own, as `dreamkiln jobs` shows it. job: what was submitted.
    """

    number: int
    job: PreparedJob
    client: Client

    def status(self) -> dict[str, Any]:
        """Its state, stage, step, metrics and reason, as `dreamkiln jobs list --json` tells them."""
        return self.client.get(f"/v1/jobs/{self.number}")["job"]

    def cancel(self) -> None:
        """End it at its next step; what it has written stays."""
        self.client.post(f"/v1/jobs/{self.number}/cancel")

    def wait(self, display: Display | None = None) -> Outcome | BatchOutcome:
        """What it made, once it has ended; a restart of the orchestrator is waited out.

        Raises:
            InputError, JobFailed: what it failed with. DreamKilnError: it was cancelled, or nobody answers for a minute.
        """
        display = display or SilentDisplay()
        last = _Watcher(self.client, self.number, display).follow(until=_has_ended)
        _bring(self.client, self.job, last, display)
        return _outcome(self.job, last)


def submit_job(job: PreparedJob, client: Client, **fields: Any) -> SubmittedJob:
    """Queue a job; `fields` are those of a request: user, priority, idempotency_key. Raises what the client raises."""
    request = client.request_of(job, **fields)
    return SubmittedJob(client.submit([request])["jobs"][0]["id"], job, client)


def submit_each(jobs: Sequence[PreparedJob], client: Client, *, state: Path, user: str) -> list[SubmittedJob]:
    """Queue jobs together; of those that are in the queue already, the same ones are joined."""
    is_remote = isinstance(client, RemoteClient)
    requests = [client.request_of(job) if is_remote else job.request(state=state, user=user) for job in jobs]
    found = [
        None if is_remote else _find_same(client, job, request["out"]) for job, request in zip(jobs, requests, strict=True)
    ]
    wanted = [request for request, number in zip(requests, found, strict=True) if number is None]
    new = iter(client.submit(wanted)["jobs"] if wanted else ())
    numbers = [next(new)["id"] if number is None else number for number in found]
    return [SubmittedJob(number, job, client) for number, job in zip(numbers, jobs, strict=True)]


def submit_and_wait(job: PreparedJob, client: Client, *, state: Path, user: str, display: Display) -> Outcome | BatchOutcome:
    """Queue the job, or join it if the same one is in the queue, and wait for its end.

    Raises:
        InputError, JobFailed: what the job failed with.
        DreamKilnError: nobody has answered for a minute; the job goes on with the next orchestrator.
        Interrupted: Ctrl-C, which cancels the job; or SIGTERM, which ends this command alone. The same command continues.
    """
    is_remote = isinstance(client, RemoteClient)
    if is_remote and is_url(job.out):
        raise InputError(f"What is made at {client.where} comes to a folder here, but --out is {job.out}; give a folder.")
    request = client.request_of(job) if is_remote else job.request(state=state, user=user)
    number = None if is_remote else _find_same(client, job, request["out"])
    is_joining = number is not None
    if number is None:
        number = client.submit([request])["jobs"][0]["id"]
    try:
        if is_joining:
            display.message(f"Joining job {number} of the orchestrator at {client.endpoint.url}, which is the same.")
        else:
            display.message(f"Job {number} of the orchestrator at {client.endpoint.url}; --local runs it here instead.")
        last = _Watcher(client, number, display).follow(until=_has_ended)
    except KeyboardInterrupt as stop:
        if signal.SIGTERM in stop.args:  # not a request about the job: `timeout`, or the end of a session
            raise Interrupted(f"Stopped waiting; job {number} goes on, and the same command joins it.") from None
        raise Interrupted(_cancel(client, number, job)) from None
    _bring(client, job, last, display)
    return _outcome(job, last)


def _bring(client: Client, job: PreparedJob, last: dict[str, Any], display: Display) -> None:
    """What a job on another machine has made, into the folder that it has here."""
    if isinstance(client, RemoteClient) and last["job"]["state"] == State.SUCCEEDED:
        num = len(client.fetch(last["job"]["id"], Path(job.out)))
        display.message(f"{num} files came from {client.where}.")


def export_and_wait(client: RemoteClient, request: Mapping[str, Any], out: Path | None, display: Display) -> Outcome:
    """Queue an export on another machine, wait for it, and bring its files here.

    Args:
        request: of `RemoteClient.export_of`. out: where they come to; None: runs/ and the export's own name.

    Raises:
        InputError, JobFailed: what it failed with. DreamKilnError: it was cancelled, or nobody answers for a minute.
    """
    (made,) = client.submit([request])["jobs"]
    display.message(f"Job {made['id']} of the orchestrator at {client.where}.")
    last = _Watcher(client, made["id"], display).follow(until=_has_ended)
    folder = out or Path("runs") / last["job"]["name"]
    if last["job"]["state"] == State.SUCCEEDED:
        client.fetch(made["id"], folder)
    return _outcome_in(folder, last)


def _find_same(client: Client, job: PreparedJob, out: str) -> int | None:
    """A job that waits, runs or is paused with this spec and folder; one that is paused goes on."""
    states = [State.QUEUED, State.RUNNING, State.PAUSED, State.LOST]
    for other in client.get("/v1/jobs", state=states, fingerprint=job.spec.fingerprint())["jobs"]:
        if other["out"] == out:
            if other["state"] == State.PAUSED:
                client.post(f"/v1/jobs/{other['id']}/resume")
            return other["id"]
    return None


def _has_ended(job: dict[str, Any]) -> bool:
    return job["state"] in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class _Watcher:
    """Shows what is new about a job."""

    def __init__(self, client: Client, number: int, display: Display) -> None:
        meanwhile = f"job {number} goes on with it, or with the next 'dreamkiln up', and the same command joins it"
        self._client = PatientClient(client, say=display.message, meanwhile=meanwhile, has_answered=True)
        self._number, self._display = number, display
        self._last_event = 0
        self._reason = ""
        self._progress: Progress | None = None

    def follow(self, *, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The orchestrator's whole answer about the job, once `until` is true of it."""
        begin = time.monotonic()
        while True:
            answer = self._client.get(f"/v1/jobs/{self._number}")
            self._show(answer)
            if until(answer["job"]):
                return answer
            if answer["job"]["state"] != State.RUNNING or not self._hear():
                time.sleep(seconds_to_next_look(answer["job"], time.monotonic() - begin))

    def _hear(self) -> bool:
        """Show a running job's progress as it is told; True when something else has happened, False where nothing tells."""
        try:
            for event, data in self._client.events(self._number, after=self._last_event):
                if event != "progress":
                    return True
                self._show_progress(data)
        except DreamKilnError:
            pass  # the next look says what is wrong, or waits for the orchestrator
        return False

    def _show(self, answer: dict[str, Any]) -> None:
        job = answer["job"]
        for event in answer["events"]:
            if event["id"] > self._last_event:
                self._last_event = event["id"]
                if event["kind"] in ("info", "warning"):
                    self._display.message(event["text"], event["kind"])
        reason = ""
        if job["state"] == State.QUEUED:
            reason = job["waits"] and f"Job {self._number} waits: {job['waits']}."
        elif job["state"] == State.PAUSED:
            reason = f"Job {self._number} is paused; 'dreamkiln jobs resume {self._number}' goes on with it."
        if reason and reason != self._reason:
            self._display.message(reason)
        self._reason = reason
        if job["state"] == State.RUNNING:
            self._show_progress(job)

    def _show_progress(self, job: Mapping[str, Any]) -> None:
        if job["stage"]:
            metrics = {name: value for name, value in job["metrics"].items() if isinstance(value, float)}
            progress = Progress(
                stage=job["stage"], step=job["step"], total=job["total"], metrics=metrics, seconds_left=job["seconds_left"]
            )
            if progress != self._progress:
                self._progress = progress
                self._display.event(progress)


def seconds_to_next_look(job: Mapping[str, Any], waited: float) -> float:
    """How long a command that has waited so many seconds for a job waits before it looks again: many may wait at once."""
    longest = min(MOST_SECONDS_BETWEEN_LOOKS, waited / 10)
    if job["state"] == State.RUNNING and job["seconds_left"] is not None:
        longest = min(longest, job["seconds_left"] / 5)
    return max(SECONDS_BETWEEN_LOOKS, longest)


def _cancel(client: Client, number: int, job: PreparedJob) -> str:
    """Cancel the job and give it the time to stop; the sentence for its user."""
    try:
        client.post(f"/v1/jobs/{number}/cancel")
        deadline = time.monotonic() + SECONDS_TO_CANCEL
        while not _has_ended(last := client.get(f"/v1/jobs/{number}")["job"]) and time.monotonic() < deadline:
            time.sleep(0.1)
    except (NotRunningError, UnavailableError) as error:
        return f"Stopped waiting; whether job {number} is cancelled is not known. {error}"
    where = f" at step {last['step']} of {last['total']} of {last['stage']}" if last["stage"] else ""
    return (
        f"Cancelled job {number}{where} in {job.out}; the same command continues. 'dreamkiln submit' queues jobs that do not "
        "depend on a terminal."
    )


def _outcome(job: PreparedJob, answer: dict[str, Any]) -> Outcome | BatchOutcome:
    found = _outcome_in(Path(job.out), answer)
    if isinstance(job.spec, BatchImagesSpec):
        return BatchOutcome(job.out, found.did, dict(found.metrics), found.messages)
    return found


def _outcome_in(folder: Path, answer: dict[str, Any]) -> Outcome:
    last = answer["job"]
    if last["state"] == State.FAILED:
        kind = InputError if last["failure_kind"] == FailureKind.BAD_INPUT else JobFailed
        raise kind(last["reason"])
    if last["state"] == State.CANCELLED:
        raise DreamKilnError(f"Job {last['id']} was cancelled by somebody; the same command continues in {folder}.")
    messages = tuple(event["text"] for event in answer["events"] if event["kind"] in ("info", "warning"))
    metrics = dict(last["metrics"])
    did = metrics.pop("did", "start")
    seconds = metrics.pop("seconds", {})
    names = artefact_order(artefact["name"] for artefact in answer["artefacts"])
    return Outcome(folder, names, did, seconds, metrics, messages)
