"""Answers that many ask for at once are made once: a list, a job or the status, for a second at most.

What a request has changed is seen by the next one, whoever asks. Only the progress of jobs may be a second old, and only while
many ask.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Snapshots"]

SHARED = re.compile(r"/v1/(status|jobs(/\d+)?)")
SECONDS = 1.0
NUM_BUSY = 20
"""Requests a second from which on progress may be so old."""
MAX_BYTES = 512 * 1024


@dataclass(frozen=True)
class _Answer:
    """An answer as it went out, when it was asked for, and what the ledger had been told by then."""

    start: Any
    body: bytes
    made_at: float
    revision: tuple[int, int]


class Snapshots:
    """An ASGI application before another one.

    Args:
        revision: see `Ledger.revision`.
    """

    def __init__(self, app: Any, *, revision: Callable[[], tuple[int, int]]) -> None:
        self._app, self._revision = app, revision
        self._known: dict[tuple[str, bytes], _Answer] = {}
        self._under_way: dict[tuple[str, bytes], asyncio.Future[_Answer | None]] = {}
        self._second, self._num = 0.0, 0
        self._is_busy = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """From what is known, else from whoever asks the same just now, else from the application."""
        if scope["method"] != "GET" or not SHARED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        self._count()
        key = scope["path"], scope["query_string"]
        found = self._known.get(key)
        if found is None or not self._is_fresh(found):
            while (other := self._under_way.get(key)) is not None and (found := await asyncio.shield(other)) is not None:
                if self._is_fresh(found):
                    break
            else:
                await self._make(key, scope, receive, send)
                return
        await send(dict(found.start))
        await send({"type": "http.response.body", "body": found.body})

    async def _make(self, key: tuple[str, bytes], scope: Any, receive: Any, send: Any) -> None:
        """Ask the application, for everybody who asks until it has answered."""
        made_at, revision, parts = time.monotonic(), self._revision(), list[Any]()
        mine: asyncio.Future[_Answer | None] = asyncio.get_running_loop().create_future()
        self._under_way[key] = mine
        answer = None

        async def sending(message: Any) -> None:
            parts.append(dict(message))
            await send(message)

        try:
            await self._app(scope, receive, sending)
            body = b"".join(part.get("body", b"") for part in parts[1:])
            if parts and parts[0].get("status") == 200 and len(body) <= MAX_BYTES:
                answer = _Answer(parts[0], body, made_at, revision)
        finally:
            if self._under_way.get(key) is mine:
                del self._under_way[key]
            mine.set_result(answer)
            self._known = {name: one for name, one in self._known.items() if made_at - one.made_at < SECONDS}
            if answer is not None:
                self._known[key] = answer

    def _is_fresh(self, found: _Answer) -> bool:
        changes, moves = self._revision()
        if time.monotonic() - found.made_at >= SECONDS or found.revision[0] != changes:
            return False
        return self._is_busy or found.revision[1] == moves

    def _count(self) -> None:
        now = time.monotonic()
        if now - self._second >= 1.0:
            self._is_busy = self._num >= NUM_BUSY and now - self._second < 2.0
            self._second, self._num = now, 0
        self._num += 1
        self._is_busy = self._is_busy or self._num >= NUM_BUSY
