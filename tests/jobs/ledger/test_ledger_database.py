"""The ledger's database: who may own it, its version, and addresses that do not work."""

from __future__ import annotations

import gc
import gzip
import os
import random
import signal
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, make_url, text

from jobs.errors import InputError
from jobs.ledger import Ledger, LedgerError, OwnershipError, ShardRecord, migrations
from jobs.ledger.database import _encryption, open_database
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


def test_a_broken_connection_that_the_server_takes_for_alive_does_not_end_the_owner(postgresql: PostgreSQL, clock: Clock):
    url = postgresql.new_database()
    with Ledger.own(url, name="the first", clock=clock) as ledger:
        ownership = ledger._ownership
        assert ownership is not None and ownership._connection is not None
        still_alive, ownership._connection = ownership._connection, ledger._database.engine.connect()
        ownership._connection.close()
        for _ in range(2):
            ledger.heartbeat()
            ledger.jobs.submit([submission()])
            with pytest.raises(OwnershipError, match="the first"):
                Ledger.own(url, clock=clock)
        still_alive.close()
        ledger.heartbeat()
        with pytest.raises(OwnershipError, match="the first"):
            Ledger.own(url, clock=clock)
        with ledger._database.connect() as connection:
            connection.execute(text("UPDATE owner SET epoch = epoch + 1"))
        with pytest.raises(OwnershipError, match="taken it over"):
            ledger.heartbeat()


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
    steps = (*migrations.STEPS, add_note)
    version = newest_version()
    database = open_database(url, lambda: 0.0)
    with pytest.raises(InputError, match=f"has version {version}, older than this program's {version + 1}"):
        check_version(database, steps)
    migrate(database, steps)
    migrate(database, steps)
    check_version(database, steps)
    with pytest.raises(RuntimeError, match="in the middle"):
        migrate(database, (*steps, add_colour_badly))
    assert "note" in columns(url) and "colour" not in columns(url)
    with pytest.raises(InputError, match=f"has version {version + 1}, but this program knows up to {version}; update"):
        migrate(database)
    database.close()
    with pytest.raises(InputError, match="update dreamkiln"):
        Ledger.own(url)
    assert submitted.is_new


NEW_INDICES = ("state", "user_state", "kind_state", "user_kind_state", "queue", "fingerprint")
TABLES_OF_VERSION_1 = (
    "DROP TABLE job_keys",
    "DROP TABLE prior_sizes",
    "DROP TABLE shards",
    'CREATE TABLE shards (job_id BIGINT NOT NULL REFERENCES jobs (id), "index" BIGINT NOT NULL, first_row BIGINT NOT NULL, '
    "num_rows BIGINT NOT NULL, state VARCHAR(16) NOT NULL, fence BIGINT NOT NULL, lease_holder TEXT, lease_expires_at DOUBLE "
    "PRECISION, not_before DOUBLE PRECISION NOT NULL, num_failures INTEGER NOT NULL, num_rows_succeeded BIGINT NOT NULL, "
    "num_rows_failed BIGINT NOT NULL, seconds DOUBLE PRECISION NOT NULL, reason TEXT NOT NULL, "
    'PRIMARY KEY (job_id, "index"))',
    'CREATE INDEX ix_shards_state ON shards (job_id, state, "index")',
    *(f"DROP INDEX ix_jobs_{name}" for name in NEW_INDICES),
    "DROP INDEX ix_attempts_ended",
    "CREATE INDEX ix_jobs_state ON jobs (state, priority, id)",
    "UPDATE schema_version SET version = 1",
)


def test_a_ledger_of_the_first_version_is_brought_up_to_date_with_its_jobs(url: str):
    with Ledger.own(url) as ledger:
        (submitted,) = ledger.jobs.submit([submission()])
        with ledger._database.connect() as connection:
            for sentence in TABLES_OF_VERSION_1:
                connection.execute(text(sentence))
    with pytest.raises(InputError, match="has version 1, older than this program's 6; start the orchestrator once"):
        Ledger.read(url)
    with Ledger.own(url) as ledger:
        lease = ledger.attempts.start(submitted.id, "w", seconds=30)
        ledger.shards.record(lease, [ShardRecord(index=0, num_rows=5, num_failed=1, seconds=2.5, worker="w", num_attempts=1)])
        assert ledger.shards.summary(submitted.id).num_rows == 5
        assert_has_the_tables_of_a_new_one(ledger)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_a_file_of_every_earlier_version_is_brought_up_to_date_with_its_jobs(tmp_path: Path, version: int):
    """Files that the programs of those days wrote: one job succeeded, one was running, one cancelled."""
    data = gzip.decompress((Path(__file__).parent / "old" / f"version_{version}.db.gz").read_bytes())
    (tmp_path / "ledger.db").write_bytes(data)
    with Ledger.own(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        first, second, third = (ledger.jobs.get(number) for number in (1, 2, 3))
        assert (first.state, first.metrics, first.user) == (State.SUCCEEDED, {"num_faces": 12}, "ada")
        assert (second.state, second.priority, second.user) == (State.RUNNING, 3, "bob")
        assert (third.state, third.spec["prompt"]) == (State.CANCELLED, "a table number 3")
        assert [artefact.sha256 for artefact in ledger.attempts.artefacts(1)] == ["a" * 64]
        again = {"idempotency_key": "k", "user": "ada"}
        assert ledger.jobs.submit([submission(1, **again)])[0].id == 1
        (fourth,) = ledger.jobs.submit([submission(4, user="ada")])
        assert [job.id for job in ledger.jobs.recent(user="ada")] == [fourth.id, 3, 1]
        assert ledger.jobs.events(1)[0].text.startswith("queued")
        assert_has_the_tables_of_a_new_one(ledger)


def test_a_new_ledger_has_the_newest_version(ledger: Ledger):
    assert newest_version() == migrations.FIRST_VERSION + len(migrations.STEPS)
    check_version(ledger._database)
    assert_has_the_tables_of_a_new_one(ledger)


def assert_has_the_tables_of_a_new_one(ledger: Ledger) -> None:
    """A step that is forgotten, or that differs from the tables, shows here."""
    dialect, found = ledger._database.engine.dialect, inspect(ledger._database.engine)
    for name, table in Base.metadata.tables.items():
        columns = {column["name"]: (column["type"].compile(dialect), column["nullable"]) for column in found.get_columns(name)}
        assert columns == {column.name: (column.type.compile(dialect), column.nullable) for column in table.columns}, name
        indices = {index["name"] for index in found.get_indexes(name) if not index.get("duplicates_constraint")}
        assert indices == {index.name for index in table.indexes}


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
        ("postgresql://dreamkiln:secret@127.0.0.1:9/none?sslmode=require", "cannot be opened"),
        ("postgresql://dreamkiln:secret@host/none?sslmode=prefer", "sslmode .* is 'prefer'; choose one of disable, require"),
        ("postgresql://dreamkiln:secret@host/none?sslmod=require", "option 'sslmod', which is not known here; leave it out"),
        ("postgresql://dreamkiln:secret@host/none?sslmode=require&sslmode=disable", "'sslmode', which is there twice"),
        (
            "postgresql://u:secret@host/none?sslmode=verify-ca&sslrootcert=/proc/nowhere.pem",
            "'/proc/nowhere.pem' cannot be read",
        ),
    ],
)
def test_addresses_that_do_not_work(url: str, sentence: str):
    with pytest.raises(InputError, match=sentence) as caught:
        Ledger.own(url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "is_verified", "is_named"),
    [("require", False, False), ("verify-ca", True, False), ("verify-full", True, True)],
)
def test_encryption_as_libpq_means_it(mode: str, is_verified: bool, is_named: bool):
    address, context = _encryption(make_url(f"postgresql://u@host/name?sslmode={mode}&application_name=kiln"))
    assert context is not None and address.query == {"application_name": "kiln"}
    assert (context.verify_mode == ssl.CERT_REQUIRED, context.check_hostname) == (is_verified, is_named)


def test_nothing_is_said_unencrypted_to_a_server_that_cannot_encrypt():
    ssl_request = struct.pack("!II", 8, 80877103)
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard: list[bytes] = []

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(100))
                connection.sendall(b"N")
                heard.append(connection.recv(100))

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(InputError, match=r"cannot be opened .*SSL"):
            Ledger.own(f"postgresql://u:secret@127.0.0.1:{server.getsockname()[1]}/name?sslmode=require")
        gc.collect()  # the driver leaves its socket to the collector
        thread.join(timeout=10)
    assert heard == [ssl_request, b""]


def test_a_socket_of_this_machine_needs_no_encryption(postgresql: PostgreSQL):
    with Ledger.own(postgresql.new_database() + "&sslmode=require") as ledger:
        assert ledger.jobs.recent() == []


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path: Path):
    (tmp_path / "ledger.db.lock").mkdir()
    with pytest.raises(InputError, match=r"ledger\.db\.lock, which .* cannot be opened and locked \(Is a directory\)"):
        Ledger.own(str(tmp_path / "ledger.db"))


def test_a_file_that_is_no_database(tmp_path: Path):
    (tmp_path / "ledger.db").write_bytes(b"this is not a database, but it is long enough to look at" * 100)
    with pytest.raises((InputError, LedgerError), match=r"not a database.*put a backup in its place"):
        Ledger.own(str(tmp_path / "ledger.db"))


def test_sqlite_keeps_a_write_ahead_log(tmp_path: Path):
    with Ledger.own(str(tmp_path / "ledger.db")) as ledger, ledger._database.read() as session:
        pragmas = {name: session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
