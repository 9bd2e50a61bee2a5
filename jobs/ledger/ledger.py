"""The door to the ledger."""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType

from jobs.ledger.attempt_table import AttemptTable
from jobs.ledger.database import Clock, open_database
from jobs.ledger.group_table import GroupTable
from jobs.ledger.job_table import JobTable
from jobs.ledger.migrations import check_version, migrate
from jobs.ledger.ownership import Ownership
from jobs.ledger.prior_table import PriorTable
from jobs.ledger.shard_table import ShardTable

__all__ = ["Ledger"]


class Ledger:
    """Jobs, shards and groups in one database. A context manager: leaving it gives the ledger free.

    ::

        with Ledger.own("sqlite:///ledger.db") as ledger:
            (submitted,) = ledger.jobs.submit([Submission.of(spec, out="/runs/a")])
            lease = ledger.attempts.start(submitted.id, "worker-1", seconds=30)
            lease, desired_state = ledger.attempts.renew(lease, seconds=30)
            ledger.attempts.succeed(lease)
    """

    def __init__(self, url: str, *, clock: Clock = time.time) -> None:
        """Prefer `own` and `read`.

        Raises:
            InputError: the URL cannot be read, or nothing answers at it.
        """
        self._database = open_database(url, clock)
        self._ownership: Ownership | None = None
        self.jobs = JobTable(self._database)
        self.attempts = AttemptTable(self._database)
        self.shards = ShardTable(self._database)
        self.groups = GroupTable(self._database)
        self.priors = PriorTable(self._database)

    @classmethod
    def own(cls, url: str, *, name: str | None = None, clock: Clock = time.time) -> Ledger:
        """As its one writer; makes the tables or brings them up to date.

        Args:
            url: "sqlite:///folder/ledger.db", a path, or "postgresql://user:password@host/name".
            name: who we are, shown to others who try; process and host by default.

        Raises:
            OwnershipError: another orchestrator is its writer.
            InputError: the database cannot be opened, or belongs to a newer program.
        """
        ledger = cls(url, clock=clock)
        try:
            ledger._ownership = Ownership(ledger._database)
            migrate(ledger._database)
            ledger._ownership.begin(name or f"process {os.getpid()} on {socket.gethostname()}")
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def read(cls, url: str, *, clock: Clock = time.time) -> Ledger:
        """As a reader, beside its writer; whatever would write raises OwnershipError.

        Raises:
            InputError: there is no ledger, or one of another version.
        """
        ledger = cls(url, clock=clock)
        try:
            check_version(ledger._database)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def heartbeat(self) -> None:
        """Every few seconds, by the owner. Raises OwnershipError if another process has taken over."""
        assert self._ownership is not None, "a reader has no heartbeat"
        self._ownership.heartbeat()

    @property
    def where(self) -> str:
        """The database's address, without its password."""
        return self._database.where

    def revision(self) -> tuple[int, int]:
        """Two numbers of this process: the first is another when something has changed, the second when a job has moved."""
        return self._database.num_changes, self._database.num_moves

    def now(self) -> float:
        """The ledger's clock: seconds since 1970, UTC."""
        return self._database.clock()

    def close(self) -> None:
        """Give it free; may be called twice."""
        if self._ownership is not None:
            self._ownership.release()
            self._ownership = None
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
