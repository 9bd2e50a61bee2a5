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
from orchestrator.host.atomic import TEMPORARY_PREFIX, clear_output_errors, write_text

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
        """`given`, else the environment's, else the home's. Raises InputError where there is no home."""
        named = given or os.environ.get("DREAMKILN_STATE")
        try:
            return cls(Path(named or Path.home() / ".dreamkiln").absolute())
        except RuntimeError as error:  # a user without an entry among the users, as in some containers
            raise InputError("There is no home folder for the orchestrator's state; set HOME or DREAMKILN_STATE.") from error

    def create(self) -> None:
        """Make it and the token. Raises OutputError."""
        with clear_output_errors(self.path, option="--state (DREAMKILN_STATE)"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.path / "logs").mkdir(mode=0o700, exist_ok=True)
            (self.path / "logs").chmod(0o700)  # of an earlier version
            for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm", "daemon.log", "daemon.err", "endpoint.json"):
                with contextlib.suppress(FileNotFoundError):
                    (self.path / name).chmod(0o600)
            self.touch_private(self.path / "ledger.db", self.daemon_log)
        with clear_output_errors(self.token_file, option="--state (DREAMKILN_STATE)"):
            self._make_token()

    @staticmethod
    def touch_private(*paths: Path) -> None:
        """Make files that nobody but their owner reads, before somebody else makes them readable to all. Raises OSError."""
        for path in paths:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))

    def _make_token(self) -> None:
        """Write the token whole or not at all, and never in the place of one that clients know. Raises OSError.

        A full disk once left an empty file, which locked everybody out.
        """
        if self.token_file.exists() and self.token_file.read_text().strip():
            return
        temporary = self.path / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}"
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
                file.flush()
                os.fsync(file.fileno())
            if self.token_file.exists():
                os.replace(temporary, self.token_file)  # an empty one
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, self.token_file)
        finally:
            temporary.unlink(missing_ok=True)

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
        """Raises InputError where there is none, it may not be read, or is empty."""
        try:
            token = self.token_file.read_text().strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"The orchestrator's token {self.token_file} cannot be read ({reason}).") from error
        if not token:
            raise InputError(
                f"The orchestrator's token {self.token_file} is empty, as a full disk may leave it; end the orchestrator and "
                "run 'dreamkiln up' again, which writes another."
            )
        return token

    def proof(self, challenge: str) -> str:
        """What only one who knows the token can answer; it does not give the token away. Raises InputError as `token` does."""
        return hmac.new(self.token().encode(), f"health {challenge}".encode(), "sha256").hexdigest()

    def announce(self, endpoint: Endpoint) -> None:
        """Say where we listen."""
        self.touch_private(self.path / "endpoint.json")
        write_text(self.path / "endpoint.json", json.dumps(endpoint.__dict__) + "\n")
        (self.path / "endpoint.json").chmod(0o600)

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
