"""One ledger, one writer.

Three nets, each for what slips through the one before: a lock of the operating system (SQLite) or an advisory lock of the
server (PostgreSQL) that ends with the process that holds it, however it ends; a row that says who holds it, for the
message; and an epoch in that row that every write transaction compares, so that an owner whose lock was lost behind its
back (a dropped connection) can write nothing more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, insert, select, text, update

from jobs.errors import InputError
from jobs.ledger.database import Database, OwnershipError
from jobs.ledger.tables import Owner

__all__ = ["Ownership"]

ADVISORY_LOCK = 0x6472656D  # "drem"


class Ownership:
    """Holds a ledger from its making to `release`; `begin` follows once the tables are there.

    Raises:
        OwnershipError: somebody else holds it.
        InputError: SQLite's lock file cannot be written or locked.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._handle: int | None = None
        self._connection: Connection | None = None
        if database.is_sqlite:
            self._lock_file()
        else:
            with database.explained():
                if not self._lock_advisory():
                    raise OwnershipError(self._taken())

    def begin(self, name: str) -> int:
        """Write the owner's row and return the new epoch; from here on this process may write.

        Args:
            name: who we are, for the message that a second orchestrator gets.
        """
        now = self._database.clock()
        values = {"name": name, "started_at": now, "heartbeat_at": now}
        with self._database.connect() as connection:
            before = connection.scalar(select(Owner.epoch).where(Owner.id == 1).with_for_update())
            if before is None:
                connection.execute(insert(Owner).values(id=1, epoch=1, **values))
            else:
                connection.execute(update(Owner).values(epoch=before + 1, **values))
        self._database.epoch = (before or 0) + 1
        return self._database.epoch

    def heartbeat(self) -> None:
        """Say that we live, and keep PostgreSQL's connection with the lock from idling away.

        Where that connection broke and the server has not noticed, its lock is still held, by nobody but ourselves: the epoch
        is ours. The next heartbeat asks for it again; until then the epoch alone guards the ledger.

        Raises:
            OwnershipError: another orchestrator has taken over.
            LedgerError: the database does not answer now.
        """
        with self._database.write() as session:
            session.execute(update(Owner).values(heartbeat_at=self._database.clock()))
        if not self._database.is_sqlite and not self._holds_advisory_lock():
            with self._database.explained():
                self._lock_advisory()

    def release(self) -> None:
        """Let another process take over."""
        self._database.epoch = None
        if self._connection is not None:
            with contextlib.suppress(Exception):  # a connection that is gone holds no lock either
                self._connection.close()
            self._connection = None
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _lock_file(self) -> None:
        path = Path(str(self._database.engine.url.database) + ".lock")
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            if isinstance(error, BlockingIOError):
                raise OwnershipError(self._taken()) from None
            raise InputError(
                f"{path}, which says that the ledger is in use, cannot be opened and locked ({error.strerror}); give rights to "
                "it, or keep the ledger on another disk."
            ) from error

    def _lock_advisory(self) -> bool:
        """False where it is held."""
        # Detached, so that closing it ends the session and with it the lock, instead of going back to the pool.
        connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        if not connection.scalar(text(f"SELECT pg_try_advisory_lock({ADVISORY_LOCK})")):
            connection.close()
            return False
        self._connection = connection
        return True

    def _holds_advisory_lock(self) -> bool:
        """False where the server was restarted: the lock went with the connection."""
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
            except Exception:
                with contextlib.suppress(Exception):
                    self._connection.close()
                self._connection = None
        return self._connection is not None

    def _taken(self) -> str:
        who = "another process"
        with contextlib.suppress(Exception), self._database.read() as session:
            if owner := session.get(Owner, 1):
                moment = datetime.fromtimestamp(owner.heartbeat_at, UTC)
                who = f"{owner.name}, last seen {moment:%Y-%m-%d %H:%M:%S} UTC"
        return (
            f"The ledger {self._database.where} is owned by another orchestrator ({who}); use that one, stop it with "
            "'dreamkiln down', or give this one another ledger."
        )
