"""What each call of the HTTP API does; `routes` says at which address."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from fastapi import Body, Depends, Header, Query, Request
from fastapi import Path as PathParameter
from pydantic import WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.errors import InputError
from jobs.kinds import spec_from_json
from jobs.ledger import JobRecord, Ledger, NewGroup, Submission
from jobs.states import State
from jobs.words.safe_text import check_stored
from orchestrator.batch.storage.urls import is_url
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.http.dialects import Dialects
from orchestrator.daemon.http.events import EventHub
from orchestrator.daemon.http.files import JobFiles
from orchestrator.daemon.http.forms import (
    MAX_NUMBER,
    SAFE,
    AgainForm,
    BestOfForm,
    ChangesForm,
    ExportForm,
    ImagesForm,
    LoginForm,
    TableForm,
    TextTo3DForm,
    TextureForm,
)
from orchestrator.daemon.http.guard import COOKIE
from orchestrator.daemon.http.making import Maker, composed
from orchestrator.daemon.http.meanings import explained
from orchestrator.daemon.http.tokens import SESSION_SECONDS, Principal, TokenBook
from orchestrator.daemon.http.uploads import SUFFIXES, UPLOAD_NAME, Uploads
from orchestrator.daemon.job_request import JobRequest, SubmitRequest
from orchestrator.daemon.options import DaemonOptions
from orchestrator.daemon.retention import Retention
from orchestrator.host.state_folder import StateFolder
from orchestrator.prior.card import prior_card
from orchestrator.prior.opening import PriorCheck

__all__ = ["Calls"]

DAY_SECONDS = 24 * 3600.0
MAX_LOG_CHARACTERS = 1_000_000
MAX_NAMED = 1000
MAX_PAGE = 1000
Number = Annotated[int, Query(ge=0, le=MAX_NUMBER)]
"""What a database counts with."""
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern="^[!-~]([ -~]*[!-~])?$",
        description="The same key never makes a second job of the same user.",
    ),
]
Word = Annotated[str | None, Query(max_length=1000, json_schema_extra={"pattern": SAFE})]
"""What is stored and can be asked for; `check_stored` refuses the rest in a sentence."""
UserName = Annotated[
    str, PathParameter(json_schema_extra={"minLength": 1, "maxLength": 200, "pattern": SAFE}, description="Of a user.")
]
UploadName = Annotated[
    str,
    Query(json_schema_extra={"maxLength": 300, "pattern": UPLOAD_NAME}, description=f"Ends in one of {', '.join(SUFFIXES)}."),
]
FileName = Annotated[str, PathParameter(json_schema_extra={"minLength": 1, "maxLength": 4096, "pattern": SAFE})]
Weight = Annotated[float, Query(json_schema_extra={"exclusiveMinimum": 0, "maximum": 1000})]
Seconds = Annotated[float | None, Query(gt=0, le=86_400, description="After so many the stream ends; without it it does not.")]


def _caller(request: Request) -> Principal:
    found: Principal | None = request.scope["principal"]
    assert found is not None, "the guard lets nobody in whom it does not know"
    return found


StateName = Annotated[str, WithJsonSchema({"enum": list(State)})]
LastEvent = Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=MAX_NUMBER)]
Who = Annotated[Principal, Depends(_caller)]


class Calls:
    """The calls over one ledger. Each answers with JSON values, and raises what the ledger raises.

    Args:
        shut_down: begins the end of the process.
    """

    def __init__(
        self,
        ledger: Ledger,
        controller: Controller,
        folder: StateFolder,
        shut_down: Callable[[], None],
        *,
        options: DaemonOptions,
        book: TokenBook,
    ) -> None:
        self._ledger, self._controller, self._folder, self._shut_down = ledger, controller, folder, shut_down
        self._check_prior = PriorCheck()
        self._retention = Retention(ledger, folder)
        self._options, self._book = options, book
        self._files, self._hub = JobFiles(ledger), EventHub(ledger)
        self._uploads = Uploads(folder.path / "uploads")
        outputs = Path(options.outputs) if options.outputs else folder.path / "outputs"
        pictures, priors = folder.path / "pictures", options.priors
        self._maker = Maker(ledger, self._uploads, outputs=outputs, pictures=pictures, priors=priors, urls=options.urls)
        self._started_at = ledger.now()

    # Who

    def login(self, form: LoginForm, request: Request) -> Response:
        """A cookie for a token, which a browser keeps for thirty days."""
        who = self._book.who(form.token.strip())
        if who is None:
            raise HTTPException(401, "This token is not known; 'dreamkiln token create NAME' makes one, and prints it once.")
        answer = JSONResponse(_me(who))
        is_secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
        answer.set_cookie(
            COOKIE, self._book.session(who), max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=is_secure
        )
        return answer

    def logout(self) -> Response:
        """The cookie's end in this browser."""
        answer = JSONResponse({"ok": True})
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    def me(self, who: Who) -> dict[str, Any]:
        """Who is asking, and what they may."""
        return _me(who)

    def session(self, request: Request) -> dict[str, Any]:
        """Whose cookie the browser holds, or nobody's: the one question that is answered without a token."""
        who = request.scope["principal"]
        return {"me": None if who is None else _me(who)}

    # The orchestrator

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

    def system(self) -> dict[str, Any]:
        """The machine, its priors, shares and failures of the last day."""
        since = self._ledger.now() - DAY_SECONDS
        memory = psutil.virtual_memory()
        return {
            **self.status(),
            "device": self._options.device,
            "num_cores": psutil.cpu_count(),
            "machine_bytes": memory.total,
            "free_bytes": memory.available,
            "longest_wait_seconds": round(self._controller.longest_wait_seconds, 1),
            "priors": [
                {"source": prior.source, "memory_bytes": prior.memory_bytes, "last_used_at": prior.last_used_at}
                for prior in self._controller.priors
            ],
            "mean_run_seconds": self._ledger.jobs.mean_run(since),
            "failures": self._ledger.jobs.failures(since),
            **self.users(),
        }

    def priors(self) -> dict[str, Any]:
        """Those that everybody may ask, with what is known of each before it is loaded."""
        return {"priors": [prior_card(source) for source in self._options.priors or ("toybox",)]}

    def settings(
        self,
        preset: Annotated[Literal["draft", "default", "fine"] | None, Query()] = None,
        prior: Annotated[str | None, Query(min_length=1, max_length=2000, json_schema_extra={"pattern": SAFE})] = None,
    ) -> dict[str, Any]:
        """What can be set, to which values, and what it means; with a preset's values, and a prior's own."""
        if prior is not None and prior not in (self._options.priors or (prior,)):
            raise HTTPException(403, f"The prior {prior[:100]!r} is not among those allowed here.")
        return explained(composed({name: value for name, value in {"preset": preset, "prior.source": prior}.items() if value}))

    # Jobs that come in

    def text_to_3d(self, form: TextTo3DForm, who: Who, key: Key = None) -> JSONResponse:
        """Queue a mesh from a sentence."""
        return self._made(self._maker.text_to_3d(form, who, key))

    def best_of(self, form: BestOfForm, who: Who, key: Key = None) -> JSONResponse:
        """Queue several seeds of a sentence, of which the best is told: all of them, or after an error none."""
        submissions = self._maker.best_of(form, who, key)
        self._check_prior(submissions[0].prior)
        group = NewGroup(name=f"{form.prompt}, best of {form.num_seeds}", metric=form.metric)
        made = self._ledger.jobs.submit(submissions, group=group)
        self._controller.wake.set()
        jobs = [
            {"id": answer.id, "is_new": answer.is_new, "out": submission.out}
            for answer, submission in zip(made, submissions, strict=True)
        ]
        return JSONResponse({"group": made[0].group_id, "jobs": jobs}, 201 if made[0].is_new else 200)

    def textures(self, form: TextureForm, who: Who, key: Key = None) -> JSONResponse:
        """Queue a mesh that was uploaded to be painted as a sentence says."""
        return self._made(self._maker.texture(form, who, key))

    def images(self, form: ImagesForm, who: Who, key: Key = None) -> JSONResponse:
        """Queue pictures from a sentence, or from a picture that was uploaded."""
        return self._made(self._maker.images(form, who, key))

    def tables(self, form: TableForm, who: Who, key: Key = None) -> JSONResponse:
        """Queue a picture for each row of a table that was uploaded."""
        return self._made(self._maker.table(form, who, key))

    def exports(self, form: ExportForm, who: Who, key: Key = None) -> JSONResponse:
        """Queue other files of a finished 3D job: face count, texture, formats."""
        return self._made(self._maker.export(form, who, key))

    def again(self, job_id: int, form: AgainForm, who: Who, key: Key = None) -> JSONResponse:
        """Queue the same job with changes."""
        return self._made(self._maker.again(self._ledger.jobs.get(job_id), form, who, key))

    def _made(self, submission: Submission) -> JSONResponse:
        """201 for a new job, 200 for one that was there."""
        job, is_new = self._queued(submission)
        made = {"id": job.id, "is_new": is_new, "out": job.out, "job": self._shown(job)}
        return JSONResponse(made, 201 if is_new else 200, {"Location": f"/v1/jobs/{job.id}"})

    def _queued(self, submission: Submission) -> tuple[JobRecord, bool]:
        """The job, and whether it is new."""
        if submission.prior:
            self._check_prior(submission.prior)
        (answer,) = self._ledger.jobs.submit([dataclasses.replace(submission, out=_one_spelling(submission.out))])
        self._controller.wake.set()
        return self._ledger.jobs.get(answer.id), answer.is_new

    def dialects(self) -> Dialects:
        """The same jobs in other programs' words."""
        priors = self._options.priors or ("toybox",)
        return Dialects(self._ledger, self._maker, self._uploads, lambda submission: self._queued(submission)[0], priors)

    async def upload(self, request: Request, who: Who, name: UploadName) -> JSONResponse:
        """Keep a table, a picture or a mesh: the body is its bytes."""
        upload = await self._uploads.take(who, name, request.stream())
        return JSONResponse(dataclasses.asdict(upload), 201 if upload.is_new else 200)

    def uploads(self, who: Who) -> dict[str, Any]:
        """The caller's own."""
        return {"uploads": [dataclasses.asdict(upload) for upload in self._uploads.all(who)]}

    def delete_upload(self, upload_id: Annotated[str, PathParameter(pattern="^[0-9a-f]{64}$")], who: Who) -> dict[str, Any]:
        """Jobs that still need it fail."""
        self._uploads.delete(who, upload_id)
        return {"id": upload_id}

    def submit(self, body: Annotated[dict[str, Any], Body()], who: Who) -> dict[str, Any]:
        """Queue the jobs of a `SubmitRequest`, all or none: for the command line, which names paths, so for the owner alone.

        Raises InputError, naming the job that cannot be.
        """
        if not who.is_owner:
            raise HTTPException(403, "Jobs that name paths are for the owner's token; see /v1/text-to-3d and /v1/images.")
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
        state: Annotated[list[StateName] | None, Query()] = None,
        user: Word = None,
        group: Number | None = None,
        fingerprint: Word = None,
        kind: Word = None,
        q: Annotated[str, Query(max_length=200, json_schema_extra={"pattern": SAFE}, description="Words of the name.")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        before: Annotated[int | None, Query(ge=0, le=MAX_NUMBER, description="The cursor of the page before.")] = None,
    ) -> dict[str, Any]:
        """A page of jobs, the newest first; one of a search may be short, or empty, and its cursor still lead on.

        Raises InputError for a state that there is not.
        """
        for what, text in (("user", user), ("fingerprint", fingerprint), ("kind", kind), ("search", q)):
            check_stored(what, text or "")
        jobs, cursor = self._ledger.jobs.page(
            states=[_state(name) for name in state or ()],
            user=user,
            group_id=group,
            fingerprint=fingerprint,
            kind=kind,
            words=q,
            limit=limit,
            before_id=before,
        )
        shown = [self._shown(job) for job in jobs]
        return {"now": self._ledger.now(), "jobs": shown, "cursor": cursor, "counts": self._ledger.jobs.counts()}

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

    def cancel(self, job_id: int, who: Who) -> dict[str, Any]:
        """End a job, whatever it has done by now. Raises IllegalTransition for one that has ended."""
        return self._steer(job_id, who, self._ledger.jobs.cancel)

    def pause(self, job_id: int, who: Who) -> dict[str, Any]:
        """Keep a job from running, from its last checkpoint on. Raises IllegalTransition for one that has ended."""
        return self._steer(job_id, who, self._ledger.jobs.pause)

    def resume(self, job_id: int, who: Who) -> dict[str, Any]:
        """Queue a paused job. Raises IllegalTransition for any other."""
        return self._steer(job_id, who, self._ledger.jobs.resume)

    def retry(self, job_id: int, who: Who) -> dict[str, Any]:
        """Queue a failed or cancelled job once more, from its last checkpoint on. Raises IllegalTransition for any other."""
        return self._steer(job_id, who, self._ledger.jobs.retry)

    def _steer(self, job_id: int, who: Principal, action: Callable[[int], State]) -> dict[str, Any]:
        self._check_owner(job_id, who)
        state = action(job_id)
        self._controller.has_request.set()
        self._controller.wake.set()
        return {"id": job_id, "state": state}

    def change(self, job_id: int, form: ChangesForm, who: Who) -> dict[str, Any]:
        """Another priority, which counts from the next round on."""
        self._check_owner(job_id, who)
        self._ledger.jobs.set_priority(job_id, form.priority)
        self._controller.wake.set()
        return {"now": self._ledger.now(), "job": self._shown(self._ledger.jobs.get(job_id))}

    def delete(self, job_id: int, who: Who) -> dict[str, Any]:
        """Forget a job that has ended. Its files stay. Raises IllegalTransition for one that has not."""
        self._check_owner(job_id, who)
        self._ledger.jobs.delete(job_id)
        self._folder.job_log(job_id).unlink(missing_ok=True)
        return {"id": job_id}

    def _check_owner(self, job_id: int, who: Principal) -> None:
        """Everybody steers their own. Raises HTTPException 403."""
        job = self._ledger.jobs.get(job_id)
        if job.user != who.user and not who.may("operate"):
            raise HTTPException(403, f"Job {job_id} is {job.user}'s, and the token {who.name!r} steers only {who.user}'s own.")

    # What jobs leave

    def files(self, job_id: int) -> dict[str, Any]:
        """Finished files, also of a job at work."""
        return {"files": [dataclasses.asdict(file) for file in self._files.all(self._ledger.jobs.get(job_id))]}

    def file(self, job_id: int, name: FileName, request: Request) -> Response:
        """A file by its name, whole or in ranges; its ETag is its sha256."""
        return self._files.one(self._ledger.jobs.get(job_id), name, request)

    def zipped(self, job_id: int) -> Response:
        """All files in one archive."""
        return self._files.zipped(self._ledger.jobs.get(job_id))

    def preview(self, job_id: int, request: Request) -> Response:
        """The newest picture, of what is unfinished while the job is at work."""
        return self._files.look(self._ledger.jobs.get(job_id), request)

    # What happens

    async def job_events(
        self, job_id: int, after: Number | None = None, last: LastEvent = None, seconds: Seconds = None
    ) -> Response:
        """Server-sent events of one job, from its first, until it has ended."""
        await asyncio.to_thread(self._ledger.jobs.get, job_id)
        return self._stream(job_id, after if last is None else last, seconds)

    async def all_events(self, after: Number | None = None, last: LastEvent = None, seconds: Seconds = None) -> Response:
        """Server-sent events of all jobs, from now on or after one that the client has."""
        return self._stream(None, after if last is None else last, seconds)

    def _stream(self, job_id: int | None, after: int | None, seconds: float | None) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = self._hub.stream(job_id, after, seconds)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    # Users

    def users(self) -> dict[str, Any]:
        """Whoever has submitted a job or was given a weight, with the weight and the seconds of work of a day."""
        usage = self._ledger.jobs.usage(self._ledger.now() - DAY_SECONDS)
        weights = self._ledger.jobs.weights()
        return {"users": [{"name": n, "weight": w, "seconds": round(usage.get(n, 0.0), 1)} for n, w in sorted(weights.items())]}

    def set_weight(self, name: UserName, weight: Weight) -> dict[str, Any]:
        """A user's share against the others', of places and of the shared prior, from the next round on."""
        self._ledger.jobs.set_weight(name, weight)
        self._controller.wake.set()
        return {"name": name, "weight": weight}

    def prune(
        self, older_than_seconds: Annotated[float, Query(ge=0, le=1e12)], user: Word = None, dry_run: bool = False
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
        return {**job.to_json(), "waits": self._controller.why_waiting(job)}

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
        return dataclasses.replace(submission, out=_one_spelling(submission.out))
    except InputError as error:
        raise InputError(f"Job {number + 1} of this request: {error}" if number else str(error)) from error


def _one_spelling(out: str) -> str:
    """Of a folder, by which the ledger sees that two jobs have the same."""
    return out.rstrip("/") if is_url(out) else os.path.normpath(out)


def _me(who: Principal) -> dict[str, Any]:
    return {"name": who.name, "user": who.user, "scope": who.scope, "is_owner": who.is_owner}


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
