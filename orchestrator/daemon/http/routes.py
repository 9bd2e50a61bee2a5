"""The orchestrator's HTTP API, on loopback unless asked otherwise; every call but /health needs the token.

Errors are {"error": sentence, "kind": class, "exit_code": number}, whatever raised them; what there is not is 404.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from jobs.errors import DreamKilnError, InputError, NotFound
from jobs.ledger import Ledger, LedgerError
from jobs.states import IllegalTransition
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.http.calls import Calls
from orchestrator.daemon.http.guard import Guard
from orchestrator.host.state_folder import StateFolder

__all__ = ["make_app"]


def make_app(ledger: Ledger, controller: Controller, folder: StateFolder, shut_down: Callable[[], None]) -> FastAPI:
    """The application over one ledger; `shut_down` begins the end of the process."""
    app = FastAPI(title="DreamKiln", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", _health(folder))
    api = APIRouter(prefix="/v1")
    calls = Calls(ledger, controller, folder, shut_down)
    for method, path, call in (
        ("GET", "/status", calls.status),
        ("POST", "/jobs", calls.submit),
        ("GET", "/jobs", calls.recent),
        ("GET", "/jobs/{job_id}", calls.show),
        ("GET", "/jobs/{job_id}/log", calls.log),
        ("POST", "/jobs/{job_id}/{action}", calls.act),
        ("GET", "/users", calls.users),
        ("PUT", "/users/{name:path}", calls.set_weight),
        ("POST", "/prune", calls.prune),
        ("POST", "/shutdown", calls.shutdown),
    ):
        api.add_api_route(path, call, methods=[method])
    app.include_router(api)
    for kind in (DreamKilnError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _explain)
    app.add_middleware(Guard, token=folder.token(), token_file=str(folder.token_file))
    return app


def _health(folder: StateFolder) -> Callable[[str], dict[str, Any]]:
    def health(challenge: str = "") -> dict[str, Any]:
        """Whom a client talks to: another program may have taken the port since."""
        return {"ok": True, "proof": folder.proof(challenge)}

    return health


def _explain(request: Request, error: Exception) -> JSONResponse:
    """Every error in one shape."""
    kind, code = "InputError", InputError.exit_code
    match error:
        case DreamKilnError():
            sentence, status, kind, code = str(error), _status(error), type(error).__name__, error.exit_code
        case RequestValidationError():
            sentence, status = "; ".join(_complaint(one) for one in error.errors()[:3]) + ".", 422
        case HTTPException():
            sentence, status = f"{error.detail} ({request.method} {request.url.path}).", error.status_code
        case _:
            kind, code = "UnexpectedError", DreamKilnError.exit_code
            sentence, status = f"Something unexpected went wrong ({type(error).__name__}); see the orchestrator's log.", 500
    return JSONResponse({"error": sentence, "kind": kind, "exit_code": code}, status)


def _status(error: DreamKilnError) -> int:
    match error:
        case LedgerError():
            return 503
        case NotFound():
            return 404
        case IllegalTransition():
            return 409
        case InputError():
            return 400
    return 500


def _complaint(error: dict[str, Any]) -> str:
    """One of pydantic's, such as "limit is '10001': input should be less than or equal to 10000"."""
    if error["type"] == "json_invalid":
        return f"The request is not JSON ({error['ctx']['error']})"
    where = ".".join(str(part) for part in error["loc"][1:]) or str(error["loc"][0])
    given = repr(error.get("input"))
    message = str(error["msg"])
    return f"{where} is {given if len(given) <= 60 else given[:60] + '…'}: {message[:1].lower()}{message[1:]}"
