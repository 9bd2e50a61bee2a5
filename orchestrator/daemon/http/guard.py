"""What stands before the API: no request without the token is read beyond its headers, and none is longer than a bound."""

from __future__ import annotations

import json
import secrets
from typing import Any

__all__ = ["Guard"]

MAX_BODY_BYTES = 64 * 1024**2
"""Some 20,000 jobs; the command line sends them in parts."""
OPEN_PATHS = ("/health",)


class Guard:
    """An ASGI application before another one.

    Args:
        token: the clients' password. token_file: where they find it, for the message.
    """

    def __init__(self, app: Any, *, token: str, token_file: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._refusal = f"This call needs the token in {token_file}."

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 401 or 413 at once, without reading the body, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        is_open = scope["path"] in OPEN_PATHS
        if not is_open and not secrets.compare_digest(headers.get(b"authorization", b""), self._expected):
            await _refuse(send, 401, self._refusal)
            return
        limit, length = 0 if is_open else MAX_BODY_BYTES, headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            await _refuse(send, 413, f"The request is longer than {limit:,} bytes; send the jobs in several parts.")
            return
        await self._app(scope, _Bounded(receive, limit), send)


class _Bounded:
    """A request's body, up to a number of bytes: one that comes in chunks does not say how long it will be."""

    def __init__(self, receive: Any, limit: int) -> None:
        self._receive, self._left = receive, limit

    async def __call__(self) -> Any:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise ValueError("the request is too long")
        return message


async def _refuse(send: Any, status: int, sentence: str) -> None:
    """One answer, after which the connection ends: what the client still sends is not read."""
    body = json.dumps({"error": sentence, "kind": "InputError", "exit_code": 2}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
