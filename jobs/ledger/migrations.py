"""The schema's version, and the steps from each version to the next.

A list of small functions rather than alembic: a ledger has one line of history and its users run no migration command, it is
brought up to date when an orchestrator opens it. Each step runs in one transaction with the new version number, on both
databases, so a killed migration has not happened. A new database is made from the tables and marked with the newest
version; a test compares the two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Double, insert, inspect, select, text, update

from jobs.errors import InputError
from jobs.ledger.database import Database
from jobs.ledger.tables import IS_QUEUED, Base, Identifier, SchemaVersion

__all__ = ["FIRST_VERSION", "STEPS", "check_version", "migrate", "newest_version"]

Step = Callable[[Connection], None]
FIRST_VERSION = 1


def _shards_are_records(connection: Connection) -> None:
    """2: `shards` keeps who drew a committed shard. Version 1 had a queue of shards there, which nothing ever filled."""
    number, double = Identifier.compile(connection.dialect), Double().compile(connection.dialect)
    connection.execute(text("DROP TABLE shards"))
    connection.execute(
        text(
            f'CREATE TABLE shards (job_id {number} NOT NULL REFERENCES jobs (id), "index" BIGINT NOT NULL, '
            f"num_rows BIGINT NOT NULL, num_failed BIGINT NOT NULL, seconds {double} NOT NULL, worker TEXT NOT NULL, "
            f"num_attempts INTEGER NOT NULL, fence BIGINT NOT NULL, recorded_at {double} NOT NULL, "
            'PRIMARY KEY (job_id, "index"))'
        )
    )


def _priors_have_sizes(connection: Connection) -> None:
    """3: `prior_sizes`, which the scheduler goes by. Before, every prior was taken for a gigabyte."""
    double = Double().compile(connection.dialect)
    connection.execute(
        text(
            "CREATE TABLE prior_sizes (source VARCHAR(2000) NOT NULL, num_bytes BIGINT NOT NULL, "
            f"measured_at {double} NOT NULL, PRIMARY KEY (source))"
        )
    )


def _jobs_have_further_keys(connection: Connection) -> None:
    """4: `job_keys`. Before, a key given for a job that was there already was not kept, and later made a second job."""
    number = Identifier.compile(connection.dialect)
    connection.execute(
        text(
            'CREATE TABLE job_keys ("user" VARCHAR(200) NOT NULL, "key" VARCHAR(200) NOT NULL, '
            f'job_id {number} NOT NULL REFERENCES jobs (id), PRIMARY KEY ("user", "key"))'
        )
    )
    connection.execute(text("CREATE INDEX ix_job_keys_job_id ON job_keys (job_id)"))


def _jobs_are_found_by_what_lists_ask(connection: Connection) -> None:
    """5: indices by user, kind and fingerprint. Before, a list of a user's among 100,000 jobs read them all."""
    for name, columns in (
        ("ix_jobs_user", '"user", id'),
        ("ix_jobs_user_state", '"user", state'),
        ("ix_jobs_kind", "kind, id"),
        ("ix_jobs_fingerprint", "fingerprint"),
    ):
        connection.execute(text(f"CREATE INDEX {name} ON jobs ({columns})"))


def _lists_and_rounds_read_what_they_show(connection: Connection) -> None:
    """6: indices by state in the order of the numbers, and of the queue's order. Before, a list of a state sorted all of it.

    `not_before` is never before the submission, so that the queue's order is one column's.
    """
    connection.execute(text("UPDATE jobs SET not_before = created_at WHERE not_before < created_at"))
    for name in ("ix_jobs_state", "ix_jobs_user", "ix_jobs_user_state", "ix_jobs_kind"):
        connection.execute(text(f"DROP INDEX {name}"))
    for name, columns in (
        ("ix_jobs_state", "jobs (state, id)"),
        ("ix_jobs_user_state", 'jobs ("user", state, id)'),
        ("ix_jobs_kind_state", "jobs (kind, state, id)"),
        ("ix_jobs_user_kind_state", 'jobs ("user", kind, state, id)'),
        ("ix_jobs_queue", f'jobs (state, "user", priority, prior, not_before, id) WHERE {IS_QUEUED}'),
        ("ix_attempts_ended", "attempts (ended_at)"),
    ):
        connection.execute(text(f"CREATE INDEX {name} ON {columns}"))


STEPS: tuple[Step, ...] = (
    _shards_are_records,
    _priors_have_sizes,
    _jobs_have_further_keys,
    _jobs_are_found_by_what_lists_ask,
    _lists_and_rounds_read_what_they_show,
)
"""STEPS[0] leads from version 1 to version 2, and so on."""


def newest_version(steps: Sequence[Step] = STEPS) -> int:
    """What this program writes."""
    return FIRST_VERSION + len(steps)


def migrate(database: Database, steps: Sequence[Step] = STEPS) -> None:
    """Make the tables of an empty database, or bring an older one up to date.

    Raises:
        InputError: the database is newer than this program, or holds something else.
    """
    with database.connect() as connection:
        version = _version(connection, database.where)
        if version is None:
            Base.metadata.create_all(connection)
            connection.execute(insert(SchemaVersion).values(id=1, version=newest_version(steps)))
            return
    _refuse_newer(version, database.where, steps)
    for number in range(version, newest_version(steps)):
        with database.connect() as connection:
            steps[number - FIRST_VERSION](connection)
            connection.execute(update(SchemaVersion).values(version=number + 1))


def check_version(database: Database, steps: Sequence[Step] = STEPS) -> None:
    """For one who only reads.

    Raises:
        InputError: there is no ledger in the database, or one of another version.
    """
    with database.engine.connect() as connection:
        version = _version(connection, database.where)
    if version is None:
        raise InputError(f"There is no ledger in {database.where}; 'dreamkiln up' makes one.")
    _refuse_newer(version, database.where, steps)
    if version < newest_version(steps):
        raise InputError(
            f"The ledger {database.where} has version {version}, older than this program's {newest_version(steps)}; start the "
            "orchestrator once to bring it up to date: dreamkiln up."
        )


def _version(connection: Connection, where: str) -> int | None:
    tables = set(inspect(connection).get_table_names())
    if SchemaVersion.__tablename__ in tables:
        return connection.scalar(select(SchemaVersion.version))
    if ours := tables & set(Base.metadata.tables):
        raise InputError(
            f"The database {where} holds a table {min(ours)!r} that is no ledger's; give the ledger a database of its own."
        )
    return None


def _refuse_newer(version: int, where: str, steps: Sequence[Step]) -> None:
    if version > newest_version(steps):
        raise InputError(
            f"The ledger {where} has version {version}, but this program knows up to {newest_version(steps)}; update dreamkiln."
        )
