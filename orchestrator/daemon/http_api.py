"""The orchestrator's HTTP API, on loopback unless asked otherwise; every call but /health needs the token.

::

    GET  /health                                GET  /v1/status
    POST /v1/jobs                               GET  /v1/jobs?state=&user=&group=&fingerprint=&limit=&before=
    GET  /v1/jobs/{id}                          GET  /v1/jobs/{id}/log?offset=
    POST /v1/jobs/{id}/cancel|pause|resume|retry
    PUT  /v1/users/{name}?weight=               POST /v1/shutdown

Errors are {"error": sentence, "kind": class, "exit_code": number}.
"""

from __future__ import annotations

import dataclasses
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import JSONResponse

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.errors import DreamKilnError, InputError, OutputError
from jobs.kinds import spec_from_json
from jobs.ledger import JobRecord, Ledger, LedgerError
from jobs.states import IllegalTransition, State
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.job_request import JobRequest, SubmitRequest
from orchestrator.daemon.state_folder import StateFolder

__all__ = ["ApiServer", "make_app"]

MAX_LOG_CHARACTERS = 1_000_000
ACTIONS = ("cancel", "pause", "resume", "retry")


def make_app(ledger: Ledger, controller: Controller, folder: StateFolder, shut_down: Callable[[], None]) -> FastAPI:
    """The application over one ledger; `shut_down` begins the end of the process."""
    app = FastAPI(title="DreamKiln", docs_url=None, redoc_url=None, openapi_url=None)
    token = folder.token()
    started_at = ledger.now()

    def authorised(authorization: Annotated[str, Header()] = "") -> None:
        if not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, f"This call needs the token in {folder.token_file}.")

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"ok": True}

    api = APIRouter(prefix="/v1", dependencies=[Depends(authorised)])

    @api.get("/status")
    def status() -> dict[str, Any]:
        return {
            "uptime_seconds": ledger.now() - started_at,
            "ledger": ledger.where,
            "jobs": ledger.jobs.counts(),
            "num_workers": controller.capacity.num_workers,
            "num_running": controller.num_running,
            "memory_bytes": controller.capacity.memory_bytes,
            "weights": ledger.jobs.weights(),
        }

    @api.post("/jobs")
    def submit(body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        request = codec.from_plain(SubmitRequest, body, path="the request")
        submissions = [_submission(job, number) for number, job in enumerate(request.jobs)]
        group_id = None
        if request.group is not None:
            group_id = ledger.groups.add(
                request.group.name,
                num_wanted=request.group.num_wanted,
                metric=request.group.metric,
                largest_is_best=request.group.largest_is_best,
            )
        submitted = ledger.jobs.submit(submissions, group_id=group_id)
        controller.wake.set()
        return {
            "jobs": [
                {"id": answer.id, "is_new": answer.is_new, "out": submission.out}
                for answer, submission in zip(submitted, submissions, strict=True)
            ],
            "group": group_id,
        }

    @api.get("/jobs")
    def recent(
        state: Annotated[list[str] | None, Query()] = None,
        user: str | None = None,
        group: int | None = None,
        fingerprint: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        before: int | None = None,
    ) -> dict[str, Any]:
        states = [_state(name) for name in state or ()]
        jobs = ledger.jobs.recent(
            states=states, user=user, group_id=group, fingerprint=fingerprint, limit=limit, before_id=before
        )
        return {"now": ledger.now(), "jobs": [{**job.to_json(), "waits": controller.waiting.get(job.id, "")} for job in jobs]}

    @api.get("/jobs/{job_id}")
    def show(job_id: int) -> dict[str, Any]:
        job = ledger.jobs.get(job_id)
        return {
            "now": ledger.now(),
            "job": {**job.to_json(), "waits": controller.waiting.get(job_id, "")},
            "attempts": [attempt.__dict__ for attempt in ledger.attempts.of(job_id)],
            "artefacts": [artefact.__dict__ for artefact in ledger.attempts.artefacts(job_id)],
            "events": [event.__dict__ for event in ledger.jobs.events(job_id)],
            "shards": _shards(ledger, job),
        }

    @api.get("/jobs/{job_id}/log")
    def log(job_id: int, offset: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        job = ledger.jobs.get(job_id)
        text, offset = _read_from(folder.job_log(job_id), offset)
        return {"text": text, "offset": offset, "is_over": job.is_terminal or job.state == State.PAUSED}

    @api.post("/jobs/{job_id}/{action}")
    def act(job_id: int, action: str) -> dict[str, Any]:
        if action not in ACTIONS:
            raise InputError(f"A job cannot be asked to {action}; choose one of {', '.join(ACTIONS)}.")
        state = getattr(ledger.jobs, action)(job_id)
        controller.wake.set()
        return {"id": job_id, "state": state}

    @api.put("/users/{name}")
    def set_weight(name: str, weight: float) -> dict[str, Any]:
        ledger.jobs.set_weight(name, weight)
        return {"name": name, "weight": weight}

    @api.post("/shutdown")
    def shutdown() -> dict[str, Any]:
        shut_down()
        return {"ok": True}

    @app.exception_handler(DreamKilnError)
    def explain(request: Request, error: DreamKilnError) -> JSONResponse:
        status = 503 if isinstance(error, LedgerError) else 409 if isinstance(error, IllegalTransition) else 400
        content = {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
        return JSONResponse(content, status if isinstance(error, (InputError, LedgerError)) else 500)

    app.include_router(api)
    return app


class ApiServer:
    """Serves the application on a thread from `start` to `stop`.

    Args:
        host, port: where to listen; port 0 takes a free one.

    Raises:
        OutputError: the address cannot be listened at.
    """

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"Nothing can listen at {host}:{port} ({reason}); choose another --port or --host.") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)

    def start(self) -> None:
        """Returns when it answers."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def stop(self) -> None:
        """Answer what has been asked, then end."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()


def _shards(ledger: Ledger, job: JobRecord) -> dict[str, Any] | None:
    """How many of a batch job's shards are committed, and by whom; None of any other job."""
    if job.kind != BatchImagesSpec.kind:
        return None
    summary = ledger.shards.summary(job.id)
    spec = spec_from_json(dict(job.spec))
    assert isinstance(spec, BatchImagesSpec)
    # A table that rows were added to before a retry has more than when it was submitted.
    return {"num_shards": max(spec.num_shards, summary.num_committed), **dataclasses.asdict(summary)}


def _submission(job: JobRequest, number: int) -> Any:
    try:
        return job.to_submission()
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
