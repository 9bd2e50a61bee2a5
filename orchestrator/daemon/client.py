"""The client of a running orchestrator. Light: the standard library's HTTP, no torch."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlencode, urlsplit

from jobs.errors import DreamKilnError, InputError
from orchestrator.daemon.state_folder import Endpoint, StateFolder

__all__ = ["Client", "NotRunningError"]


class NotRunningError(InputError):
    """No orchestrator answers."""


class Client:
    """Talks to the orchestrator of a state folder.

    Raises:
        NotRunningError: there is none, at once or at any call.
    """

    def __init__(self, folder: StateFolder, *, timeout_seconds: float = 30.0) -> None:
        endpoint = folder.endpoint()
        if endpoint is None:
            raise NotRunningError(f"No orchestrator is running ({folder.path}); start one with 'dreamkiln up'.")
        self.endpoint: Endpoint = endpoint
        self.folder = folder
        self._token = folder.token()
        self._timeout = timeout_seconds

    def get(self, path: str, **query: Any) -> Any:
        """The parsed answer. Raises what the orchestrator raised: InputError, or DreamKilnError."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", f"{path}?{urlencode(given, doseq=True)}" if given else path)

    def post(self, path: str, body: Any = None) -> Any:
        """Likewise."""
        return self._call("POST", path, body)

    def put(self, path: str, **query: Any) -> Any:
        """Likewise."""
        return self._call("PUT", f"{path}?{urlencode(query)}")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        address = urlsplit(self.endpoint.url)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=self._timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            status, data = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotRunningError(
                f"The orchestrator at {self.endpoint.url} does not answer ({error or type(error).__name__}); if it has died, "
                "'dreamkiln up' starts it again and every job goes on."
            ) from error
        finally:
            connection.close()
        return _answer(status, data)


def _answer(status: int, data: bytes) -> Any:
    try:
        content = json.loads(data)
    except ValueError:
        content = {}
    if status < 400:
        return content
    sentence = content.get("error") or content.get("detail") or f"The orchestrator answered with status {status}."
    if content.get("exit_code") == 2 or status in (401, 422):
        raise InputError(str(sentence))
    raise DreamKilnError(str(sentence))
