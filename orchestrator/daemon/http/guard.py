"""What stands before the API. A request that it refuses is answered before anything but the headers has been read.

In this order: the host it is meant for, who asks, what they may, whether a browser was tricked into asking, whether the path
knows the method, how long the body is, and of what type. A body that comes in chunks is counted as it comes, one that stops
coming is given up, and one that nobody expects is never looked at: for a moment what comes of it is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from jobs.errors import InputError
from orchestrator.daemon.http.tokens import Principal, TokenBook

__all__ = ["COOKIE", "OPENAI_PATHS", "PICTURES", "UPLOADS", "Guard", "problem", "rule_of"]

COOKIE = "dreamkiln"
MEGABYTE = 1024**2
MAX_JOBS_BYTES = 64 * MEGABYTE
"""Some 20,000 jobs; the command line sends them in parts."""
MAX_UPLOAD_BYTES = 256 * MEGABYTE
IDLE_SECONDS, BODY_SECONDS, STRANGERS_SECONDS = 30.0, 600.0, 10.0
"""For each part of a body, for all of it, and for all of one that anybody may send."""
MOMENT_SECONDS = 0.1
"""In which all that has come is taken, however late a busy machine asks for it; once."""
LINGER_SECONDS, LINGER_BYTES = 1.0, MEGABYTE
"""Of a body that nobody wants, thrown away after the answer: to close upon bytes unread takes the answer back on its way."""
JSON = ("application/json",)
TABLES = ("text/csv", "text/plain", "application/x-ndjson", "application/jsonl", "application/vnd.apache.parquet")
PICTURES = ("image/png", "image/jpeg", "image/webp")
UPLOADS = (*TABLES, *PICTURES, "model/gltf-binary", "application/octet-stream")
LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain"})
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Rule:
    """scope: what a caller needs, None for everybody. max_bytes, types: of the body; 0 bytes: what comes is not read."""

    scope: str | None
    max_bytes: int = MEGABYTE
    types: tuple[str, ...] = JSON


OPEN = Rule(None, 0)
RULES: Mapping[tuple[str, str], Rule] = {
    ("POST", "/v1/login"): Rule(None, 16 * 1024),
    ("POST", "/v1/logout"): Rule("read"),
    ("POST", "/v1/jobs"): Rule("submit", MAX_JOBS_BYTES),
    ("POST", "/v1/uploads"): Rule("submit", MAX_UPLOAD_BYTES, UPLOADS),
    ("POST", "/v1/images/edits"): Rule("submit", 64 * MEGABYTE, ("multipart/form-data",)),
    ("POST", "/v1/shutdown"): Rule("admin"),
    ("POST", "/v1/prune"): Rule("operate"),
    ("POST", "/generate"): Rule("submit", 32 * MEGABYTE),
    ("POST", "/send"): Rule("submit", 32 * MEGABYTE),
}
OPENAI_PATHS = frozenset({"/v1/images/generations", "/v1/images/edits", "/v1/models"})
OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json", "/favicon.svg", "/v1/session"})


def rule_of(method: str, path: str) -> Rule:
    """What holds for a request."""
    if method not in ("POST", "PUT", "PATCH", "DELETE"):
        return OPEN if path in OPEN_PATHS or path.startswith("/studio/") else Rule("read", 0)
    if path.startswith("/v1/users"):
        return Rule("operate")
    return RULES.get((method, path), Rule("submit"))


class Guard:
    """An ASGI application before another one, to which it tells in `scope["principal"]` who asks.

    Args:
        book: who may. hosts: names that requests may be for, beside addresses and localhost.
        methods: path -> what it may be asked; nothing where there is no such path.
    """

    def __init__(
        self, app: Any, *, book: TokenBook, hosts: Collection[str] = (), methods: Callable[[str], Collection[str]]
    ) -> None:
        self._app, self._book, self._methods = app, book, methods
        self._hosts = LOCAL_NAMES | {host.lower() for host in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuse at once, without reading the body, or pass the request on."""
        if scope["type"] != "http":
            return
        send = _with_headers(send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        rule = rule_of(scope["method"], scope["path"])
        try:
            self._check_host(headers)
            scope["principal"] = self._identify(headers, rule, scope["method"])
            self._check_method(scope["method"], scope["path"])
            _check_body(headers, rule)
        except HTTPException as refusal:
            await _refuse(_lingering(send, receive), refusal, scope["path"])
        except InputError as error:
            await _refuse(_lingering(send, receive), HTTPException(503, str(error)), scope["path"])
        else:
            if rule.max_bytes:
                seconds = STRANGERS_SECONDS if rule.scope is None else BODY_SECONDS
                receive = _Bounded(receive, rule.max_bytes, seconds)
            elif headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers:
                send = _with_headers(_lingering(send, receive), ((b"connection", b"close"),))
                receive = _Unread(receive)
            await self._app(scope, receive, send)

    def _check_host(self, headers: Mapping[bytes, str]) -> None:
        """A page elsewhere whose name has been turned to our address would otherwise count as ours in a browser."""
        given = headers.get(b"host", "")
        name = _host_name(given)
        if name.rstrip(".") not in self._hosts and not _is_address(name):
            raise HTTPException(
                421,
                f"This orchestrator does not answer for the host {given[:100]!r}; use its address, or start it with "
                "--allow-host NAME.",
            )

    def _check_method(self, method: str, path: str) -> None:
        known = self._methods(path)
        if known and method not in known:
            allowed = ", ".join(sorted(known))
            raise HTTPException(405, f"{path[:100]} may be asked to {allowed}, not to {method[:20]}.", {"Allow": allowed})

    def _identify(self, headers: Mapping[bytes, str], rule: Rule, method: str) -> Principal | None:
        who, by_cookie = self._caller(headers)
        if rule.scope is None:
            return who
        if who is None:
            raise HTTPException(
                401,
                f"This call needs a token: the one in {self._book.folder.token_file}, or one made with 'dreamkiln token "
                "create', as the header 'Authorization: Bearer TOKEN'.",
            )
        if not who.may(rule.scope):
            raise HTTPException(403, f"The token {who.name!r} may {who.scope}, but this call needs {rule.scope!r}.")
        if by_cookie and method not in ("GET", "HEAD"):
            _check_same_site(headers)
        return who

    def _caller(self, headers: Mapping[bytes, str]) -> tuple[Principal | None, bool]:
        """Who, and whether only the cookie says so."""
        if authorization := headers.get(b"authorization"):
            kind, _, token = authorization.partition(" ")
            return (self._book.who(token.strip()) if kind.lower() == "bearer" else None), False
        try:
            found = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except CookieError:
            return None, False
        return (self._book.of_session(found.value) if found else None), True


class _Bounded:
    """A request's body up to a number of bytes, each part within some seconds; afterwards the client's disconnect."""

    def __init__(self, receive: Any, limit: int, seconds: float) -> None:
        self._receive, self._limit, self._num, self._has_more = receive, limit, 0, True
        self._until = time.monotonic() + seconds
        self._is_late = False

    async def __call__(self) -> Any:
        if not self._has_more:
            return await self._receive()
        left = self._until - time.monotonic()
        try:
            if left < 0 and self._is_late:  # what had come by then was taken
                raise TimeoutError
            self._is_late = left < 0
            message = await asyncio.wait_for(self._receive(), max(MOMENT_SECONDS, min(IDLE_SECONDS, left)))
        except TimeoutError:
            raise HTTPException(408, "The request's body did not come in time; send it again.") from None
        self._num += len(message.get("body", b""))
        if self._num > self._limit:
            raise _too_long(self._limit)
        self._has_more = message.get("more_body", False)
        return message


class _Unread:
    """The receiving side of a request whose body nobody wants: it seems empty, and the connection ends with the answer."""

    def __init__(self, receive: Any) -> None:
        self._receive, self._has_begun = receive, False

    async def __call__(self) -> Any:
        if not self._has_begun:
            self._has_begun = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await self._receive())["type"] == "http.request":
            pass
        return message


def _check_body(headers: Mapping[bytes, str], rule: Rule) -> None:
    if not rule.max_bytes:
        return
    length = headers.get(b"content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 18 or int(length) > rule.max_bytes:
        raise _too_long(rule.max_bytes)
    if int(length) or b"transfer-encoding" in headers:
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind not in rule.types:
            raise HTTPException(415, f"The body is of type {kind[:80]!r}, but {' or '.join(rule.types)} was expected.")


def _too_long(limit: int) -> HTTPException:
    return HTTPException(413, f"The request is longer than {limit:,} bytes; send it in several parts.")


def _check_same_site(headers: Mapping[bytes, str]) -> None:
    """The cookie is SameSite=Strict; this holds in browsers that do not know that, and against pages on another port."""
    origin = headers.get(b"origin")
    is_ours = urlsplit(origin).netloc == headers.get(b"host") if origin else headers.get(b"sec-fetch-site") == "same-origin"
    if not is_ours:
        raise HTTPException(403, "This request comes from another site's page; only the orchestrator's own may use the cookie.")


def _host_name(text: str) -> str:
    """Of a Host header, without the port; empty for what is none."""
    if len(text) > 255 or set(text) & set("/@\\?# \t"):
        return ""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def problem(
    sentence: str, kind: str = InputError.__name__, exit_code: int = InputError.exit_code, *, path: str = "", status: int = 400
) -> dict[str, Any]:
    """The one shape of every error, but of OpenAI's calls theirs, which its client reads."""
    if path in OPENAI_PATHS:
        fault = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": sentence, "type": fault, "param": None, "code": None}}
    return {"error": sentence, "kind": kind, "exit_code": exit_code}


async def _refuse(send: Any, refusal: HTTPException, path: str) -> None:
    """One answer, after which the connection ends."""
    body = json.dumps(problem(refusal.detail, path=path, status=refusal.status_code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    headers += [(name.lower().encode(), value.encode()) for name, value in (refusal.headers or {}).items()]
    if refusal.status_code == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _lingering(send: Any, receive: Any) -> Any:
    """The answer goes out at once; the connection may end when the request has, or the moment for it."""

    async def sending(message: Any) -> None:
        if message["type"] != "http.response.body" or message.get("more_body"):
            await send(message)
            return
        await send({**message, "more_body": True})
        num = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while num < LINGER_BYTES and (part := await receive()).get("more_body"):
                    num += len(part["body"])
        await send({"type": "http.response.body", "body": b""})

    return sending


def _with_headers(send: Any, others: Collection[tuple[bytes, bytes]] = HEADERS) -> Any:
    """The answer with more headers: by default what keeps browsers from taking it for something else."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *others]
        await send(message)

    return sending
