"""The orchestrator's HTTP API, on loopback unless asked otherwise; every call but the open ones needs a token.

Errors are {"error": sentence, "kind": class, "exit_code": number}, whatever raised them; what there is not is 404.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from jobs.errors import Conflict, DreamKilnError, InputError, NotFound, OutputError
from jobs.ledger import Ledger, LedgerError
from jobs.states import IllegalTransition
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.http import answers
from orchestrator.daemon.http.calls import Calls
from orchestrator.daemon.http.guard import OPENAI_PATHS, UPLOADS, Guard, problem
from orchestrator.daemon.http.page import add_page, described
from orchestrator.daemon.http.snapshots import Snapshots
from orchestrator.daemon.http.tokens import TokenBook
from orchestrator.daemon.options import DaemonOptions
from orchestrator.host.state_folder import StateFolder

__all__ = ["make_app"]

STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 422, 429, 503)
ABOUT = (
    "Sentences into 3D assets and pictures, in one queue. Every call but those marked open needs the header "
    "`Authorization: Bearer TOKEN`; every error is one sentence in one shape."
)


def make_app(
    ledger: Ledger,
    controller: Controller,
    folder: StateFolder,
    shut_down: Callable[[], None],
    *,
    options: DaemonOptions | None = None,
) -> FastAPI:
    """The application over one ledger; `shut_down` begins the end of the process."""
    options = options or DaemonOptions(state=str(folder.path))
    app = FastAPI(
        title="DreamKiln",
        description=ABOUT,
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": answers.Problem, "description": "One sentence."} for status in STATUSES},
    )
    book = TokenBook(folder)
    calls = Calls(ledger, controller, folder, shut_down, options=options, book=book)
    app.add_api_route("/health", _health(folder), tags=["open"])
    api = APIRouter(prefix="/v1")
    for method, path, call, answer in (
        ("POST", "/login", calls.login, answers.Me),
        ("POST", "/logout", calls.logout, None),
        ("GET", "/me", calls.me, answers.Me),
        ("GET", "/session", calls.session, None),
        ("GET", "/status", calls.status, None),
        ("GET", "/system", calls.system, None),
        ("GET", "/priors", calls.priors, None),
        ("GET", "/settings", calls.settings, None),
        ("POST", "/text-to-3d", calls.text_to_3d, answers.Made),
        ("POST", "/best-of", calls.best_of, answers.MadeTogether),
        ("POST", "/textures", calls.textures, answers.Made),
        ("POST", "/images", calls.images, answers.Made),
        ("POST", "/tables", calls.tables, answers.Made),
        ("POST", "/exports", calls.exports, answers.Made),
        ("GET", "/uploads", calls.uploads, None),
        ("DELETE", "/uploads/{upload_id}", calls.delete_upload, None),
        ("POST", "/jobs", calls.submit, None),
        ("GET", "/jobs", calls.recent, answers.JobList),
        ("GET", "/jobs/{job_id}", calls.show, answers.JobShown),
        ("PATCH", "/jobs/{job_id}", calls.change, None),
        ("DELETE", "/jobs/{job_id}", calls.delete, None),
        ("POST", "/jobs/{job_id}/again", calls.again, answers.Made),
        ("GET", "/jobs/{job_id}/log", calls.log, answers.Log),
        ("GET", "/jobs/{job_id}/files", calls.files, answers.Files),
        ("POST", "/jobs/{job_id}/cancel", calls.cancel, answers.Acted),
        ("POST", "/jobs/{job_id}/pause", calls.pause, answers.Acted),
        ("POST", "/jobs/{job_id}/resume", calls.resume, answers.Acted),
        ("POST", "/jobs/{job_id}/retry", calls.retry, answers.Acted),
        ("GET", "/users", calls.users, None),
        ("PUT", "/users/{name:path}", calls.set_weight, None),
        ("POST", "/prune", calls.prune, None),
        ("POST", "/shutdown", calls.shutdown, None),
    ):
        _add(api, method, path, call, answer)
    streams: tuple[tuple[str, Callable[..., Any], tuple[str, ...]], ...] = (
        ("/jobs/{job_id}/files.zip", calls.zipped, ("application/zip",)),
        ("/jobs/{job_id}/preview", calls.preview, ("image/png", "image/webp")),
        ("/jobs/{job_id}/files/{name:path}", calls.file, ("*/*",)),
    )
    for path, stream, kinds in streams:
        content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
        bytes_: dict[int | str, dict[str, Any]] = {200: {"content": content, "description": "The bytes."}}
        if path != "/jobs/{job_id}/files.zip":
            bytes_ |= {206: {"content": content, "description": "The range."}, 304: {"description": "The client has it."}}
            bytes_[416] = {"model": answers.Problem, "description": "No such range."}
        if path == "/jobs/{job_id}/preview":
            bytes_[204] = {"description": "There is none."}
        api.add_api_route(path, stream, response_model=None, response_class=Response, responses=bytes_)
    happenings = {"text/event-stream": {"schema": answers.Happening.model_json_schema()}}
    for path, stream in (("/jobs/{job_id}/events", calls.job_events), ("/events", calls.all_events)):
        told: dict[int | str, dict[str, Any]] = {200: {"content": happenings, "description": "Events."}}
        api.add_api_route(path, stream, response_model=None, response_class=Response, responses=told)
    bytes_sent = {"type": "string", "format": "binary", "minLength": 1}
    body = {"content": {kind: {"schema": bytes_sent} for kind in UPLOADS}, "required": True}
    made: dict[int | str, dict[str, Any]] = {201: {"model": answers.UploadInfo}, 200: {"model": answers.UploadInfo}}
    api.add_api_route(
        "/uploads",
        calls.upload,
        methods=["POST"],
        status_code=201,
        response_model=None,
        responses=made,
        openapi_extra={"requestBody": body},
    )
    dialects = calls.dialects().routes()
    app.include_router(api)
    app.include_router(dialects)
    add_page(app)
    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    for kind in (DreamKilnError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _explain)
    methods = _methods_of([*api.routes, *dialects.routes, *app.routes])
    app.add_middleware(Snapshots, revision=ledger.revision)
    app.add_middleware(Guard, book=book, hosts=options.hosts, methods=methods)
    return app


def _add(api: APIRouter, method: str, path: str, call: Callable[..., Any], answer: Any) -> None:
    """A call that answers with JSON; `answer` is for the schema alone."""
    responses: dict[int | str, dict[str, Any]] = {200: {"model": answer}} if answer else {}
    if answer in (answers.Made, answers.MadeTogether):
        responses[201] = {"model": answer, "description": "It is new."}
    api.add_api_route(path, call, methods=[method], response_model=None, responses=responses)


def _health(folder: StateFolder) -> Callable[[str], dict[str, Any]]:
    def health(challenge: str = "") -> dict[str, Any]:
        """Whom a client talks to: another program may have taken the port since."""
        return {"ok": True, "proof": folder.proof(challenge)}

    return health


def _explain(request: Request, error: Exception) -> JSONResponse:
    """Every error in one shape, or in OpenAI's of its calls."""
    kind, code, headers = "InputError", InputError.exit_code, None
    match error:
        case DreamKilnError():
            sentence, status, kind, code = str(error), _status(error), type(error).__name__, error.exit_code
        case RequestValidationError():
            sentence, status = "; ".join(_complaint(one) for one in error.errors()[:3]) + ".", 422
        case HTTPException():
            status, headers = error.status_code, error.headers
            is_sentence = str(error.detail).endswith(".")
            sentence = error.detail if is_sentence else f"{error.detail} ({request.method} {request.url.path})."
        case _:
            kind, code = "UnexpectedError", DreamKilnError.exit_code
            sentence, status = f"Something unexpected went wrong ({type(error).__name__}); see the orchestrator's log.", 500
    if status == 422 and request.url.path in OPENAI_PATHS:
        status = 400
    return JSONResponse(problem(sentence, kind, code, path=request.url.path, status=status), status, headers)


def _methods_of(routes: Sequence[BaseRoute]) -> Callable[[str], set[str]]:
    """What a path may be asked, by all of its calls together; starlette names those of the first alone."""
    known = [(route.path_regex, frozenset(route.methods or ())) for route in routes if isinstance(route, Route)]
    return lambda path: {method for regex, methods in known if regex.match(path) for method in methods}


def _status(error: DreamKilnError) -> int:
    match error:
        case LedgerError():
            return 503
        case NotFound():
            return 404
        case IllegalTransition() | Conflict():
            return 409
        case OutputError(is_disk_full=True):
            return 507
        case InputError():
            return 422
    return 500


def _complaint(error: dict[str, Any]) -> str:
    """One of pydantic's, such as "limit is '10001': input should be less than or equal to 10000"."""
    if error["type"] == "json_invalid":
        return f"The request is not JSON ({error['ctx']['error']})"
    where = ".".join(str(part) for part in error["loc"][1:]) or str(error["loc"][0])
    given = repr(error.get("input"))
    message = str(error["msg"])
    return f"{where} is {given if len(given) <= 60 else given[:60] + '…'}: {message[:1].lower()}{message[1:]}"
