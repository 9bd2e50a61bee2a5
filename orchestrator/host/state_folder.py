"""Where an orchestrator keeps what must outlive it, and how its clients find it.

::

    STATE/ledger.db         unless --ledger names another database
    STATE/token             the clients' password, readable by its owner alone
    STATE/endpoint.json     where the running orchestrator listens
    STATE/daemon.log        its own words
    STATE/daemon.err        what went wrong before it had a log, or below it
    STATE/logs/7.log        those of job 7
    STATE/pictures/         copies of what queued editing jobs start from
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import InputError, OutputError
from orchestrator.host.atomic import clear_output_errors, write_text

__all__ = ["Endpoint", "StateFolder"]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A running orchestrator: its address, process and the database it writes to."""

    url: str
    pid: int
    ledger: str


@dataclass(frozen=True)
class StateFolder:
    """The folder; ~/.dreamkiln unless DREAMKILN_STATE or --state says otherwise."""

    path: Path

    @classmethod
    def find(cls, given: Path | None = None) -> StateFolder:
        """`given`, else the environment's, else the home's."""
        return cls(Path(given or os.environ.get("DREAMKILN_STATE") or Path.home() / ".dreamkiln").absolute())

    def create(self) -> None:
        """Make it and the token. Raises OutputError."""
        with clear_output_errors(self.path, option="--state"):
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
            if not self.token_file.exists():
                with contextlib.suppress(FileExistsError):
                    handle = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with os.fdopen(handle, "w") as file:
                        file.write(secrets.token_urlsafe(32))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block no other orchestrator has the folder. Raises OutputError where one has."""
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._lock(handle)
            yield
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"Another orchestrator is running in {self.path}; 'dreamkiln down' ends it, --state names another folder."
            ) from None
        except OSError:
            pass  # a file system without locks; the ledger has its own

    @property
    def token_file(self) -> Path:
        """The clients' password."""
        return self.path / "token"

    @property
    def daemon_log(self) -> Path:
        """What the orchestrator says."""
        return self.path / "daemon.log"

    @property
    def default_ledger(self) -> str:
        """URL of the SQLite file."""
        return f"sqlite:///{self.path / 'ledger.db'}"

    def job_log(self, job_id: int) -> Path:
        """What one job says, over all its attempts."""
        return self.path / "logs" / f"{job_id}.log"

    def token(self) -> str:
        """Raises InputError where there is none, or it may not be read."""
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise InputError(f"The orchestrator's token {self.token_file} cannot be read ({error.strerror}).") from error

    def proof(self, challenge: str) -> str:
        """What only one who knows the token can answer; it does not give the token away. Raises InputError as `token` does."""
        return hmac.new(self.token().encode(), f"health {challenge}".encode(), "sha256").hexdigest()

    def announce(self, endpoint: Endpoint) -> None:
        """Say where we listen."""
        write_text(self.path / "endpoint.json", json.dumps(endpoint.__dict__) + "\n")

    def withdraw(self) -> None:
        """We listen no more."""
        with contextlib.suppress(OSError):
            (self.path / "endpoint.json").unlink()

    def endpoint(self) -> Endpoint | None:
        """What the last orchestrator announced, or None. It may have died since."""
        try:
            data: Any = json.loads((self.path / "endpoint.json").read_text())
            return Endpoint(url=data["url"], pid=int(data["pid"]), ledger=data["ledger"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
