"""The HTTP server: an application served on a thread of the orchestrator's process.

What a client's request costs before anybody has read it is bounded in time and in number.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
import time
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobs.errors import InputError, OutputError

__all__ = ["ApiServer"]

HEADER_SECONDS = 10.0
WRITE_SECONDS = 60.0
"""For a client to take some of what waits for it."""
MAX_CONNECTIONS = 1000


class BoundedConnection(H11Protocol):
    """Ends where headers are not whole after `HEADER_SECONDS`, or an answer is not taken for `WRITE_SECONDS`.

    Otherwise who sends half a line, or never reads, keeps a file descriptor for ever. Of more than `MAX_CONNECTIONS` the one
    ends that has waited longest with nothing asked, so that those who open thousands and say nothing stand in nobody's way.
    At most half of this process's descriptors are given to clients; the ledger needs some.
    """

    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for its first request; make room where there is none."""
        super().connection_made(transport)
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if sum(not other.transport.is_closing() for other in self.connections) > min(MAX_CONNECTIONS, soft_limit // 2):
            self._longest_waiting().transport.abort()
        self._watch()

    def pause_writing(self) -> None:
        """The client is slower than we are: wait for it so long."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken what waited."""
        super().resume_writing()
        self._stop_waiting_for_reader()

    def data_received(self, data: bytes) -> None:
        """Read on, and see whether the headers are whole by now."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._stop_watching()
        self._stop_waiting_for_reader()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in the shape of every error of ours."""
        body = json.dumps({"error": msg, "kind": InputError.__name__, "exit_code": InputError.exit_code}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        headers += [(b"x-content-type-options", b"nosniff")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _longest_waiting(self) -> BoundedConnection:
        """Of all connections that have asked nothing yet; this one if there is none."""
        others = [other for other in self.connections if isinstance(other, BoundedConnection)]
        waiting = [other for other in others if other._deadline and not other.transport.is_closing()]
        return min(waiting, key=lambda other: other._deadline.when() if other._deadline else 0.0, default=self)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_waiting_for_reader(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None


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
        config = uvicorn.Config(
            app,
            http=BoundedConnection,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
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
