"""Priors: how much memory each takes."""

from __future__ import annotations

from sqlalchemy import select

from jobs.ledger.database import Database
from jobs.ledger.tables import PriorSize

__all__ = ["PriorTable"]


class PriorTable:
    """The table `prior_sizes`; `Ledger.priors`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sizes(self) -> dict[str, int]:
        """Source -> bytes of memory that one copy takes."""
        with self._database.read() as session:
            return {row.source: row.num_bytes for row in session.scalars(select(PriorSize))}

    def note(self, source: str, num_bytes: int) -> None:
        """Write down a size, in place of an earlier one."""
        with self._database.write() as session:
            session.merge(PriorSize(source=source, num_bytes=num_bytes, measured_at=self._database.clock()))
