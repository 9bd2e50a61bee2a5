"""The client of a running orchestrator. Light: the standard library's HTTP, no torch."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from jobs.errors import DreamKilnError, InputError
from orchestrator.host.state_folder import Endpoint, StateFolder

__all__ = ["Client", "NotRunningError", "PatientClient", "UnavailableError", "answer_of"]

SECONDS_OF_PATIENCE = 60.0
SECONDS_BETWEEN_TRIES = 1.0
SUBMIT_SECONDS = 300.0
SECONDS_OF_SILENCE = 20.0
"""After which a stream of events is given up; the orchestrator says every fifteen that there is nothing new."""


class NotRunningError(InputError):
    """No orchestrator answers."""


class UnavailableError(DreamKilnError):
    """The orchestrator answers that it cannot say now, as while its database restarts."""


class Client:
    """Talks to the orchestrator of a state folder.

    Raises:
        NotRunningError: there is none, at once or at any call.
    """

    def __init__(self, folder: StateFolder, *, timeout_seconds: float = 30.0) -> None:
        self.folder = folder
        self._timeout = timeout_seconds
        self.reconnect()

    @property
    def where(self) -> str:
        """Whose orchestrator it is, for messages."""
        return str(self.folder.path)

    def request_of(self, job: Any, **fields: Any) -> dict[str, Any]:
        """What queues an `orchestrator.client.prepared_job.PreparedJob`; `fields` are the request's others."""
        return job.request(state=self.folder.path, **fields)

    def reconnect(self) -> None:
        """Look up where the orchestrator listens, which another one may do elsewhere by now."""
        endpoint = self.folder.endpoint()
        if endpoint is None:
            raise NotRunningError(f"No orchestrator is running ({self.folder.path}); start one with 'dreamkiln up'.")
        self.endpoint: Endpoint = endpoint
        self._token = self.folder.token()
        self._is_ours = False

    def get(self, path: str, **query: Any) -> Any:
        """The parsed answer. Raises what the orchestrator raised: InputError, or DreamKilnError."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", f"{path}?{urlencode(given, doseq=True)}" if given else path)

    def events(self, job: int, *, after: int) -> Iterator[tuple[str, Any]]:
        """(event, data) of a job from the one after that number on; ("", None) when nothing has happened for a while.

        Raises NotRunningError where the orchestrator cannot be heard any more.
        """
        connection, event = self._connection(SECONDS_OF_SILENCE), ""
        try:
            headers = {"Authorization": f"Bearer {self._token}"}
            connection.request("GET", self._path(f"/v1/jobs/{job}/events?after={after}"), headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                answer_of(response.status, response.read())
            while line := response.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    yield event, json.loads(value)
                elif line.startswith(b":"):
                    yield "", None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotRunningError(f"The orchestrator at {self.endpoint.url} cannot be heard any more ({error}).") from error
        finally:
            connection.close()

    def post(self, path: str, body: Any = None, *, timeout_seconds: float | None = None) -> Any:
        """POST a JSON body; a call that takes long, as the first one for a prior of gigabytes, is given its own time."""
        before, self._timeout = self._timeout, timeout_seconds or self._timeout
        try:
            return self._call("POST", path, body)
        finally:
            self._timeout = before

    def submit(self, jobs: Sequence[Mapping[str, Any]], group: Mapping[str, Any] | None = None) -> Any:
        """Queue jobs; the orchestrator reads their priors before it answers."""
        body = {"jobs": list(jobs), **({} if group is None else {"group": group})}
        return self.post("/v1/jobs", body, timeout_seconds=SUBMIT_SECONDS)

    def put(self, path: str, **query: Any) -> Any:
        """PUT; parameters and errors are those of `get`."""
        return self._call("PUT", f"{path}?{urlencode(query)}")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        if not self._is_ours:
            self._check_identity()
        return answer_of(*self._ask(method, path, body, {"Authorization": f"Bearer {self._token}"}))

    def _check_identity(self) -> None:
        """Before the token goes anywhere: a dead orchestrator's port may be another program's by now."""
        challenge = secrets.token_hex(16)
        status, data = self._ask("GET", f"/health?challenge={challenge}", None, {})
        try:
            proof = str(json.loads(data)["proof"]) if status == 200 else ""
        except (ValueError, LookupError, TypeError):
            proof = ""
        if not secrets.compare_digest(proof.encode(), self.folder.proof(challenge).encode()):
            raise NotRunningError(
                f"What answers at {self.endpoint.url} is not the orchestrator of {self.folder.path}, which has died; "
                "'dreamkiln up' starts it again and every job goes on."
            )
        self._is_ours = True

    def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, bytes]:
        headers = {**headers, "Content-Type": "application/json"}
        connection = self._connection(self._timeout)
        try:
            connection.request(method, self._path(path), None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotRunningError(
                f"The orchestrator at {self.endpoint.url} does not answer ({error or type(error).__name__}); if it has died, "
                "'dreamkiln up' starts it again and every job goes on."
            ) from error
        finally:
            connection.close()

    def _connection(self, timeout_seconds: float) -> http.client.HTTPConnection:
        address = urlsplit(self.endpoint.url)
        make = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        return make(address.hostname or "", address.port, timeout=timeout_seconds)

    def _path(self, path: str) -> str:
        """Behind whatever a proxy has put before ours."""
        return f"{urlsplit(self.endpoint.url).path}{path}"


class PatientClient:
    """Looks again and again for as long as a job takes.

    It bears a slow answer, and a restart of the orchestrator, which may then listen elsewhere, or of its database.

    Args:
        say: where a person is told, once a pause.
        meanwhile: what is true of the jobs although nobody answers, for the last sentence.
        has_answered: False: a first question that nobody answers is an error at once.
    """

    def __init__(self, client: Client, *, say: Callable[[str], None], meanwhile: str, has_answered: bool = False) -> None:
        self._client, self._say, self._meanwhile, self._has_answered = client, say, meanwhile, has_answered

    def events(self, job: int, *, after: int) -> Iterator[tuple[str, Any]]:
        """As `Client.events`."""
        return self._client.events(job, after=after)

    def get(self, path: str, **query: Any) -> Any:
        """As `Client.get`. Raises DreamKilnError after a minute of no answer."""
        began: float | None = None
        while True:
            try:
                if began is not None:
                    self._client.reconnect()
                answer = self._client.get(path, **query)
            except (NotRunningError, UnavailableError) as error:
                if not self._has_answered:
                    raise
                now = time.monotonic()
                if began is None:
                    began = now
                    self._say(f"{error} Trying again for {SECONDS_OF_PATIENCE:.0f} s.")
                elif now - began > SECONDS_OF_PATIENCE:
                    raise DreamKilnError(
                        f"The orchestrator of {self._client.where} has not answered for {now - began:.0f} s; {self._meanwhile}."
                    ) from error
                time.sleep(SECONDS_BETWEEN_TRIES)
            else:
                self._has_answered = True
                return answer


def answer_of(status: int, data: bytes) -> Any:
    """The parsed answer of a call. Raises what the orchestrator raised: InputError, UnavailableError or DreamKilnError."""
    try:
        content = json.loads(data)
    except ValueError:
        content = {}
    if status < 400:
        return content
    sentence = content.get("error") or f"The orchestrator answered with status {status}."
    if status == 503:
        raise UnavailableError(str(sentence))
    if content.get("exit_code") == 2:
        raise InputError(str(sentence))
    raise DreamKilnError(str(sentence))
