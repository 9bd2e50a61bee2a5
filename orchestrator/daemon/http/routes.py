"""The orchestrator's HTTP API, on loopback unless asked otherwise; every call but /health needs the token.

Errors are {"error": sentence, "kind": class, "exit_code": number}.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse

from jobs.errors import DreamKilnError, InputError
from jobs.ledger import Ledger, LedgerError
from jobs.states import IllegalTransition
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.http.calls import Calls
from orchestrator.host.state_folder import StateFolder

__all__ = ["make_app"]


def make_app(ledger: Ledger, controller: Controller, folder: StateFolder, shut_down: Callable[[], None]) -> FastAPI:
    """The application over one ledger; `shut_down` begins the end of the process."""
    app = FastAPI(title="DreamKiln", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", _health(folder))
    api = APIRouter(prefix="/v1", dependencies=[Depends(_token_check(folder))])
    calls = Calls(ledger, controller, folder, shut_down)
    for method, path, call in (
        ("GET", "/status", calls.status),
        ("POST", "/jobs", calls.submit),
        ("GET", "/jobs", calls.recent),
        ("GET", "/jobs/{job_id}", calls.show),
        ("GET", "/jobs/{job_id}/log", calls.log),
        ("POST", "/jobs/{job_id}/{action}", calls.act),
        ("PUT", "/users/{name}", calls.set_weight),
        ("POST", "/shutdown", calls.shutdown),
    ):
        api.add_api_route(path, call, methods=[method])
    app.include_router(api)
    app.add_exception_handler(DreamKilnError, _explain)
    return app


def _health(folder: StateFolder) -> Callable[[str], dict[str, Any]]:
    def health(challenge: str = "") -> dict[str, Any]:
        """Whom a client talks to: another program may have taken the port since."""
        return {"ok": True, "proof": folder.proof(challenge)}

    return health


def _token_check(folder: StateFolder) -> Callable[[str], None]:
    token = folder.token()

    def check(authorization: Annotated[str, Header()] = "") -> None:
        if not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, f"This call needs the token in {folder.token_file}.")

    return check


def _explain(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DreamKilnError)
    status = 503 if isinstance(error, LedgerError) else 409 if isinstance(error, IllegalTransition) else 400
    content = {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
    return JSONResponse(content, status if isinstance(error, (InputError, LedgerError)) else 500)
