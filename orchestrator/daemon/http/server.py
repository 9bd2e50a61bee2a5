"""The HTTP server: an application served on a thread of the orchestrator's process."""

from __future__ import annotations

import socket
import threading
import time

import uvicorn
from fastapi import FastAPI

from jobs.errors import OutputError
from orchestrator.daemon.http.connections import BoundedConnection

__all__ = ["ApiServer"]


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
