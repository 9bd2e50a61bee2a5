"""The connection to SQLite or PostgreSQL, and transactions that read or write.

A write transaction of SQLite begins with BEGIN IMMEDIATE: it waits for other writers at its start, where waiting is
harmless, instead of failing halfway. Journal mode is WAL, so readers never wait, and `synchronous` is FULL: what was
committed survives the loss of power.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import sqlite3
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from jobs.errors import DreamKilnError, InputError
from jobs.ledger.counting import StateCounts
from jobs.ledger.tables import Owner

__all__ = ["Clock", "Database", "LedgerError", "OwnershipError", "open_database"]

Clock = Callable[[], float]
"""Seconds since 1970, UTC."""

BUSY_SECONDS = 10
RESTORE = "the file is damaged: put a backup in its place, or move it away for a new one to be made (docs/orchestrator.md)"
SSL_MODES = ("disable", "require", "verify-ca", "verify-full")
"""As libpq defines them; "allow" and "prefer" encrypt or not as the server likes, and so promise nothing."""
POSTGRESQL_OPTIONS = ("sslmode", "sslrootcert", "unix_sock", "application_name")


class LedgerError(DreamKilnError):
    """The ledger's database cannot be reached, read or written now; the same command may succeed later."""


class OwnershipError(InputError):
    """Another orchestrator owns the ledger, or this process has only opened it for reading."""


class Database:
    """An engine, the clock, and the epoch of the owner that may write (None: this process only reads)."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.epoch: int | None = None
        self.counts = StateCounts()
        self.num_changes = self.num_moves = 0
        self._numbers = itertools.count(1)

    @property
    def is_sqlite(self) -> bool:
        """SQLite, not PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    @property
    def where(self) -> str:
        """The database's address without its password, for messages."""
        return str(self.engine.url.database) if self.is_sqlite else self.engine.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one moment.

        Raises:
            LedgerError: the database does not answer.
        """
        with self.explained(), Session(self.engine) as session, session.begin():
            if not self.is_sqlite:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextlib.contextmanager
    def write(self, *, is_move: bool = False) -> Iterator[Session]:
        """A transaction that changes rows: all of it, or after an exception nothing.

        Args:
            is_move: nothing but that jobs live, and how far they are.

        Raises:
            LedgerError: the database does not answer, or is full.
            OwnershipError: this process does not own the ledger, or another has taken it over.
        """
        with self.explained(), Session(self.engine) as session, self.counts.writing(session), session.begin():
            if self.is_sqlite:
                session.connection(execution_options={"begin": "IMMEDIATE"})
            epoch = session.scalar(select(Owner.epoch).where(Owner.id == 1).with_for_update(read=True))
            if self.epoch is None or epoch != self.epoch:
                raise OwnershipError(
                    f"This process may not write to the ledger {self.where}: "
                    + ("it was opened for reading." if self.epoch is None else "another orchestrator has taken it over.")
                )
            yield session
        if is_move:
            self.num_moves = next(self._numbers)
        else:
            self.num_changes = next(self._numbers)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """A plain connection inside a write transaction, for migrations and the owner's row."""
        with self.explained(), self.engine.connect() as connection:
            if self.is_sqlite:
                connection = connection.execution_options(begin="IMMEDIATE")
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """What goes wrong with the database in the block becomes a LedgerError.

        SQLAlchemy wraps what its drivers call an error; that the server went away while pg8000 connected or closed is not.
        """
        try:
            yield
        except (SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error, OSError) as error:
            cause = getattr(error, "orig", None) or error
            words = _first_line(cause)
            advice = f"; {RESTORE}" if _is_damaged(words) else ""
            raise LedgerError(f"The ledger {self.where} cannot be used: {words}{advice}.") from error


def open_database(url: str, clock: Clock) -> Database:
    """Connect once, to find out now rather than later.

    Args:
        url: "sqlite:///folder/ledger.db", a path, or "postgresql://user:password@host/name"; without a user it is ours. The
            latter takes "?sslmode=" (disable, require, verify-ca, verify-full), "sslrootcert=", "unix_sock=" and
            "application_name=".

    Raises:
        InputError: not such a URL, or nothing answers at it.
    """
    address = _parse(url)
    if address.get_backend_name() == "sqlite":
        with contextlib.suppress(OSError):  # connecting says it better
            Path(address.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(address, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        address, ssl_context = _encryption(address)
        arguments = {} if ssl_context is None else {"ssl_context": ssl_context}
        engine = create_engine(address, connect_args=arguments, pool_pre_ping=True, pool_size=10, max_overflow=20)
    database = Database(engine, clock)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:
        engine.dispose()
        cause = getattr(error, "orig", None) or error
        words = _first_line(cause)
        advice = RESTORE if _is_damaged(words) else "check the URL, its rights and that the server runs"
        raise InputError(f"The ledger's database {database.where} cannot be opened ({words}); {advice}.") from error
    return database


def _parse(url: str) -> URL:
    expected = "a path, sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME was expected"
    try:
        address = make_url(url if "://" in url else f"sqlite:///{url}")
        backend = address.get_backend_name()
        if backend == "sqlite" and address.database in (None, "", ":memory:"):
            raise InputError(f"The ledger's URL {url!r} names no file; {expected}.")
        if backend == "sqlite":
            return address.set(drivername="sqlite")
        if backend in ("postgresql", "postgres"):
            return address.set(drivername="postgresql+pg8000", username=address.username or getpass.getuser())
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise InputError(f"The ledger's URL {url!r} cannot be read; {expected}.") from error
    raise InputError(f"The ledger cannot be kept in {backend!r}; {expected}.")


def _encryption(address: URL) -> tuple[URL, ssl.SSLContext | None]:
    """libpq's sslmode and sslrootcert, of which the driver knows nothing, taken out of the URL. Raises InputError."""
    known = ", ".join(POSTGRESQL_OPTIONS)
    for name, value in address.query.items():
        if name not in POSTGRESQL_OPTIONS or not isinstance(value, str):
            fault = "is not known here" if isinstance(value, str) else "is there twice"
            raise InputError(f"The ledger's URL has an option {name!r}, which {fault}; leave it out (known: {known}).")
    mode, root = str(address.query.get("sslmode", "disable")), address.query.get("sslrootcert")
    address = address.difference_update_query(["sslmode", "sslrootcert"])
    if mode not in SSL_MODES:
        raise InputError(f"The sslmode of the ledger's URL is {mode!r}; choose one of {', '.join(SSL_MODES)}.")
    if mode == "disable" or "unix_sock" in address.query:  # what goes through a socket of this machine is never encrypted
        return address, None
    try:
        context = ssl.create_default_context(cafile=str(root) if root else None)
    except OSError as error:  # an SSLError is one too
        raise InputError(f"The ledger's sslrootcert {str(root)!r} cannot be read ({error}); give a file of PEM.") from error
    context.check_hostname = mode == "verify-full"
    if mode == "require" and root is None:
        context.verify_mode = ssl.CERT_NONE
    return address, context


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, see `_begin_sqlite`
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864"):
        with contextlib.suppress(sqlite3.OperationalError):  # a read-only file cannot change its journal, and need not
            cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")


def _is_damaged(words: str) -> bool:
    """Whether SQLite says that its file is no longer one."""
    return "malformed" in words or "not a database" in words


def _first_line(error: object) -> str:
    """The driver's own words; pg8000 gives a table of fields."""
    arguments = getattr(error, "args", ())
    if arguments and isinstance(arguments[0], dict):
        return str(arguments[0].get("M", arguments[0]))
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
