"""What each call of the HTTP API does; `http_api` says at which address."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Query

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.errors import InputError
from jobs.kinds import spec_from_json
from jobs.ledger import JobRecord, Ledger, NewGroup, Submission
from jobs.states import State
from jobs.words.safe_text import check_stored
from orchestrator.batch.storage.urls import is_url
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.job_request import JobRequest, SubmitRequest
from orchestrator.daemon.retention import Retention
from orchestrator.host.state_folder import StateFolder
from orchestrator.prior.opening import PriorCheck

__all__ = ["Calls"]

DAY_SECONDS = 24 * 3600.0
MAX_LOG_CHARACTERS = 1_000_000
MAX_NAMED = 1000
ACTIONS = ("cancel", "pause", "resume", "retry")
Number = Annotated[int, Query(ge=0, le=2**63 - 1)]
"""What a database counts with."""


class Calls:
    """The calls over one ledger. Each answers with JSON values, and raises what the ledger raises.

    Args:
        shut_down: begins the end of the process.
    """

    def __init__(self, ledger: Ledger, controller: Controller, folder: StateFolder, shut_down: Callable[[], None]) -> None:
        self._ledger, self._controller, self._folder, self._shut_down = ledger, controller, folder, shut_down
        self._check_prior = PriorCheck()
        self._retention = Retention(ledger, folder)
        self._started_at = ledger.now()

    def status(self) -> dict[str, Any]:
        """The orchestrator at a glance."""
        capacity = self._controller.capacity
        return {
            "uptime_seconds": self._ledger.now() - self._started_at,
            "ledger": self._ledger.where,
            "jobs": self._ledger.jobs.counts(),
            "num_workers": capacity.num_workers,
            "num_running": self._controller.num_running,
            "memory_bytes": capacity.memory_bytes,
            "weights": self._ledger.jobs.weights(),
        }

    def submit(self, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """Queue the jobs of a `SubmitRequest`, all or none. Raises InputError, naming the job that cannot be."""
        request = codec.from_plain(SubmitRequest, body, path="the request")
        submissions = [_submission(job, number) for number, job in enumerate(request.jobs)]
        for prior in sorted({submission.prior for submission in submissions} - {""}):
            self._check_prior(prior)
        group = NewGroup(**dataclasses.asdict(request.group)) if request.group is not None else None
        submitted = self._ledger.jobs.submit(submissions, group=group)
        self._controller.wake.set()
        return {
            "jobs": [
                {"id": answer.id, "is_new": answer.is_new, "out": submission.out}
                for answer, submission in zip(submitted, submissions, strict=True)
            ],
            "group": submitted[0].group_id if group and submitted else None,
        }

    def recent(
        self,
        state: Annotated[list[str] | None, Query()] = None,
        user: str | None = None,
        group: Number | None = None,
        fingerprint: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        before: Number | None = None,
    ) -> dict[str, Any]:
        """The newest jobs first, those of the given kinds alone. Raises InputError for a state that there is not."""
        for what, text in (("user", user), ("fingerprint", fingerprint)):
            check_stored(what, text or "")
        jobs = self._ledger.jobs.recent(
            states=[_state(name) for name in state or ()],
            user=user,
            group_id=group,
            fingerprint=fingerprint,
            limit=limit,
            before_id=before,
        )
        return {"now": self._ledger.now(), "jobs": [self._shown(job) for job in jobs]}

    def show(self, job_id: int) -> dict[str, Any]:
        """Everything about one job."""
        job, attempts = self._ledger.jobs.get(job_id), self._ledger.attempts
        return {
            "now": self._ledger.now(),
            "job": self._shown(job),
            "attempts": [attempt.__dict__ for attempt in attempts.of(job_id)],
            "artefacts": [artefact.__dict__ for artefact in attempts.artefacts(job_id)],
            "events": [event.__dict__ for event in self._ledger.jobs.events(job_id)],
            "shards": self._shards(job),
        }

    def log(self, job_id: int, offset: Number = 0) -> dict[str, Any]:
        """Whole lines of a job's log from a byte on, at most a million characters, and the byte to go on from."""
        job = self._ledger.jobs.get(job_id)
        text, offset = _read_from(self._folder.job_log(job_id), offset)
        return {"text": text, "offset": offset, "is_over": job.is_terminal or job.state == State.PAUSED}

    def act(self, job_id: int, action: str) -> dict[str, Any]:
        """Cancel, pause, resume or retry a job. Raises IllegalTransition where its state does not allow that."""
        if action not in ACTIONS:
            raise InputError(f"A job cannot be asked to {action}; choose one of {', '.join(ACTIONS)}.")
        state = getattr(self._ledger.jobs, action)(job_id)
        self._controller.has_request.set()
        self._controller.wake.set()
        return {"id": job_id, "state": state}

    def users(self) -> dict[str, Any]:
        """Whoever has submitted a job or was given a weight, with the weight and the seconds of work of a day."""
        usage = self._ledger.jobs.usage(self._ledger.now() - DAY_SECONDS)
        weights = self._ledger.jobs.weights()
        return {"users": [{"name": n, "weight": w, "seconds": round(usage.get(n, 0.0), 1)} for n, w in sorted(weights.items())]}

    def set_weight(self, name: str, weight: float) -> dict[str, Any]:
        """A user's share against the others', of places and of the shared prior, from the next round on."""
        self._ledger.jobs.set_weight(name, weight)
        self._controller.wake.set()
        return {"name": name, "weight": weight}

    def prune(
        self, older_than_seconds: Annotated[float, Query(ge=0, le=1e12)], user: str | None = None, dry_run: bool = False
    ) -> dict[str, Any]:
        """Forget jobs that ended so long ago, with their logs; their run folders stay. See `Retention.prune`."""
        check_stored("user", user or "")
        pruned = self._retention.prune(seconds=older_than_seconds, user=user, is_trial=dry_run)
        return {**dataclasses.asdict(pruned), "jobs": pruned.jobs[:MAX_NAMED], "num_jobs": len(pruned.jobs)}

    def shutdown(self) -> dict[str, Any]:
        """The answer comes first, then the end."""
        self._shut_down()
        return {"ok": True}

    def _shown(self, job: JobRecord) -> dict[str, Any]:
        return {**job.to_json(), "waits": self._controller.waiting.get(job.id, "")}

    def _shards(self, job: JobRecord) -> dict[str, Any] | None:
        """How many of a batch job's shards are committed, and by whom; None of any other job."""
        if job.kind != BatchImagesSpec.kind:
            return None
        summary = self._ledger.shards.summary(job.id)
        spec = spec_from_json(dict(job.spec))
        assert isinstance(spec, BatchImagesSpec)
        # A table that rows were added to before a retry has more than when it was submitted.
        return {"num_shards": max(spec.num_shards, summary.num_committed), **dataclasses.asdict(summary)}


def _submission(job: JobRequest, number: int) -> Submission:
    try:
        submission = job.to_submission()
        # One spelling of a folder, by which the ledger sees that two jobs have the same.
        out = submission.out.rstrip("/") if is_url(submission.out) else os.path.normpath(submission.out)
        return dataclasses.replace(submission, out=out)
    except InputError as error:
        raise InputError(f"Job {number + 1} of this request: {error}" if number else str(error)) from error


def _state(name: str) -> State:
    try:
        return State(name)
    except ValueError:
        hint = codec.near_matches(name, list(State))
        raise InputError(f"There is no state {name!r}{hint}; choose among {', '.join(State)}.") from None


def _read_from(path: Path, offset: int) -> tuple[str, int]:
    """Whole lines from that byte on, and the byte to go on from."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(MAX_LOG_CHARACTERS)
    except OSError:
        return "", offset
    whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == MAX_LOG_CHARACTERS else 0)
    return data[:whole].decode("utf-8", "replace"), offset + whole
