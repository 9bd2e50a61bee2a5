"""The ledger's database: who may own it, its version, and addresses that do not work."""

from __future__ import annotations

import gc
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, text

from jobs.errors import InputError
from jobs.ledger import Ledger, LedgerError, OwnershipError, migrations
from jobs.ledger.database import open_database
from jobs.ledger.migrations import check_version, migrate, newest_version
from jobs.ledger.tables import Base
from jobs.states import State
from tests.jobs.ledger.conftest import Clock, PostgreSQL, submission

ROOT = Path(__file__).parents[3]


def test_a_second_owner_is_refused_and_the_next_one_may(url: str, clock: Clock):
    first = Ledger.own(url, name="the first", clock=clock)
    with pytest.raises(OwnershipError, match="another orchestrator \\(the first, last seen 2027-01-15 08:00:00 UTC\\)"):
        Ledger.own(url, name="the second", clock=clock)
    clock.advance(60)
    first.heartbeat()
    with pytest.raises(OwnershipError, match="08:01:00"):
        Ledger.own(url, clock=clock)
    first.close()
    first.close()
    with Ledger.own(url, name="the second", clock=clock) as second:
        second.heartbeat()


def test_an_owner_that_was_replaced_behind_its_back_can_write_no_more(ledger: Ledger):
    with ledger._database.connect() as connection:
        connection.execute(text("UPDATE owner SET epoch = epoch + 1"))
    with pytest.raises(OwnershipError, match="another orchestrator has taken it over"):
        ledger.jobs.submit([submission()])
    with pytest.raises(OwnershipError, match="taken it over"):
        ledger.heartbeat()


def test_the_next_owner_takes_back_what_a_killed_one_was_doing(url: str, tmp_path: Path):
    program = f"""
        import os, signal
        from jobs.ledger import Ledger
        from tests.jobs.ledger.conftest import submission
        ledger = Ledger.own({url!r})
        (submitted,) = ledger.jobs.submit([submission()])
        ledger.attempts.start(submitted.id, "worker", seconds=3600)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Ledger.own(url) as ledger:
        (job,) = ledger.jobs.recent()
        assert job.state == State.RUNNING and job.lease_expires_at and job.lease_expires_at > ledger.now()
        assert ledger.attempts.expire() == [job.id]
        assert "its orchestrator ended" in ledger.jobs.get(job.id).reason


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_restart_of_the_server_loses_nothing(postgresql: PostgreSQL, clock: Clock):
    url = postgresql.new_database()
    with Ledger.own(url, name="the first", clock=clock) as ledger:
        (submitted,) = ledger.jobs.submit([submission()])
        lease = ledger.attempts.start(submitted.id, "w", seconds=30)
        for _ in range(2):
            postgresql.stop()
            with pytest.raises(LedgerError, match="cannot be used"):
                ledger.jobs.get(submitted.id)
            with pytest.raises(LedgerError, match="cannot be used"):
                ledger.heartbeat()
            postgresql.start()
            ledger.heartbeat()
            with pytest.raises(OwnershipError, match="the first"):
                Ledger.own(url, clock=clock)
        ledger.attempts.succeed(lease)
        assert ledger.jobs.get(submitted.id).state == State.SUCCEEDED
    gc.collect()  # the driver leaves the sockets of broken connections to the collector, which warns


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_the_server_is_doing_when_it_ends_the_owner_hears_of_it_in_one_way(postgresql: PostgreSQL):
    """Connecting, closing and in the middle of a transaction; anything but a LedgerError would end the orchestrator."""
    moments, ends = random.Random(0), threading.Event()

    def restart() -> None:
        for _ in range(6):
            time.sleep(moments.uniform(0.1, 0.6))
            postgresql.stop()
            time.sleep(moments.uniform(0, 0.3))
            postgresql.start()
        ends.set()

    with Ledger.own(postgresql.new_database()) as ledger:
        (submitted,) = ledger.jobs.submit([submission()])
        lease = ledger.attempts.start(submitted.id, "w", seconds=1e6)
        thread = threading.Thread(target=restart)
        thread.start()
        num_errors = 0
        while not ends.is_set():
            try:
                ledger.heartbeat()
                lease, _ = ledger.attempts.renew(lease, seconds=1e6)
                ledger.attempts.expire()
                ledger.jobs.waiting()
            except LedgerError:
                num_errors += 1
        thread.join()
        ledger.heartbeat()
        ledger.attempts.succeed(lease)
        assert num_errors > 0 and ledger.jobs.get(submitted.id).state == State.SUCCEEDED
    gc.collect()


def add_note(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE jobs ADD COLUMN note TEXT"))


def add_colour_badly(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE jobs ADD COLUMN colour TEXT"))
    raise RuntimeError("killed in the middle")


def columns(url: str) -> set[str]:
    database = open_database(url, lambda: 0.0)
    found = {column["name"] for column in inspect(database.engine).get_columns("jobs")}
    database.close()
    return found


def test_migrations_run_once_and_whole(url: str):
    with Ledger.own(url) as ledger:
        (submitted,) = ledger.jobs.submit([submission()])
    database = open_database(url, lambda: 0.0)
    with pytest.raises(InputError, match="has version 1, older than this program's 2"):
        check_version(database, (add_note,))
    migrate(database, (add_note,))
    migrate(database, (add_note,))
    check_version(database, (add_note,))
    with pytest.raises(RuntimeError, match="in the middle"):
        migrate(database, (add_note, add_colour_badly))
    assert "note" in columns(url) and "colour" not in columns(url)
    with pytest.raises(InputError, match="has version 2, but this program knows up to 1; update dreamkiln"):
        migrate(database)
    database.close()
    with pytest.raises(InputError, match="update dreamkiln"):
        Ledger.own(url)
    assert submitted.is_new


def test_a_migrated_database_is_like_a_new_one(url: str):
    """Holds from the second version on as well: a step that is forgotten shows here."""
    first_version = open_database(url, lambda: 0.0)
    migrate(first_version, migrations.STEPS)
    assert newest_version() == migrations.FIRST_VERSION + len(migrations.STEPS)
    found = inspect(first_version.engine)
    for name, table in Base.metadata.tables.items():
        assert {column["name"] for column in found.get_columns(name)} == set(table.columns.keys())
        indices = {index["name"] for index in found.get_indexes(name) if not index.get("duplicates_constraint")}
        assert indices == {index.name for index in table.indexes}
    first_version.close()


def test_another_programs_database_is_left_alone(tmp_path: Path):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE jobs (x)")
    connection.close()
    for opened in (Ledger.own, Ledger.read):
        with pytest.raises(InputError, match="a table 'jobs' that is no ledger's"):
            opened(f"sqlite:///{path}")


def test_nothing_to_read(url: str):
    with pytest.raises(InputError, match="no ledger in"):
        Ledger.read(url)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://root@localhost/x", "cannot be kept in 'mysql'"),
        ("oracle-nosql://x", "cannot be (read|kept)"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////proc/nowhere/ledger.db", "cannot be opened"),
        ("postgresql://dreamkiln:secret@127.0.0.1:9/none", "cannot be opened"),
        ("postgresql://dreamkiln@127.0.0.1:port/none", "cannot be read"),
        ("postgresql://127.0.0.1:9", "cannot be opened"),
    ],
)
def test_addresses_that_do_not_work(url: str, sentence: str):
    with pytest.raises(InputError, match=sentence) as caught:
        Ledger.own(url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path):
    (tmp_path / "ledger.db").write_bytes(b"this is not a database, but it is long enough to look at" * 100)
    with pytest.raises((InputError, LedgerError), match="not a database"):
        Ledger.own(str(tmp_path / "ledger.db"))


def test_sqlite_keeps_a_write_ahead_log(tmp_path: Path):
    with Ledger.own(str(tmp_path / "ledger.db")) as ledger, ledger._database.read() as session:
        pragmas = {name: session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
