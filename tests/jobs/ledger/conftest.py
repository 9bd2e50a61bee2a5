"""A clock moved by hand, and a ledger on each database: a SQLite file and a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.ledger import Ledger, Submission

UNPRIVILEGED = 65534  # "nobody", where there is no user "postgres"


class Clock:
    """Seconds since 1970 that pass only when told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class PostgreSQL:
    """A server of our own: a temporary folder, a unix socket, no port."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._user = "postgres" if _has_user("postgres") else None
        if os.getuid() == 0:
            identity = pwd.getpwnam(self._user).pw_uid if self._user else UNPRIVILEGED
            os.chown(folder, identity, -1)
            self._prefix = ["setpriv", f"--reuid={identity}", "--clear-groups", "--"]
        else:
            self._prefix = []
        self._run("initdb", "--no-sync", "-A", "trust", "-U", "dreamkiln", "-E", "UTF8", "--locale=C", "-D", folder / "data")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self._folder} -c fsync=off -c client_min_messages=warning"
        self._run("pg_ctl", "-D", self._folder / "data", "-l", self._folder / "log", "-w", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """The URL of an empty database."""
        reset = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"  # quicker than a new database, by hundreds of files
        self._run("psql", "-q", "-h", self._folder, "-U", "dreamkiln", "-d", "postgres", "-c", reset)
        return f"postgresql://dreamkiln@/postgres?unix_sock={self._folder}/.s.PGSQL.5432"

    def _run(self, program: str, *arguments: object) -> None:
        command = [*self._prefix, str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def find_programs() -> Path | None:
    """The folder of initdb and pg_ctl, which Debian keeps out of the PATH."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _has_user(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    programs = find_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's programs initdb and pg_ctl: apt-get install postgresql")
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL refuses to run as root, and setpriv is missing: apt-get install util-linux")
    folder = Path(tempfile.mkdtemp(prefix="ledger-"))
    server = PostgreSQL(programs, folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, on each kind of server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgresql").new_database()


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    with Ledger.own(url, name="the test", clock=clock) as opened:
        yield opened


def submission(number: int = 0, **others) -> Submission:
    """A small valid submission; `number` makes its spec and its folder different."""
    spec = {"kind": "text-to-3d", "prompt": f"a table number {number}"}
    values = {
        "kind": "text-to-3d",
        "spec": spec,
        "name": f"table-{number}",
        "fingerprint": f"{number:064d}",
        "out": f"/runs/table-{number}",
    }
    return Submission(**values | others)
