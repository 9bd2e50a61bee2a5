"""Groups: several jobs of which the first, or the best, are enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sqlalchemy import select

from jobs.errors import InputError
from jobs.ledger.database import Database
from jobs.ledger.records import GroupRecord
from jobs.ledger.tables import Event, Group, Job

__all__ = ["GroupTable"]


class GroupTable:
    """The table `groups`; `Ledger.groups`. A group comes in with its jobs: `JobTable.submit`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, group_id: int) -> GroupRecord:
        """Raises InputError where there is no such group."""
        with self._database.read() as session:
            row = session.get(Group, group_id)
            if row is None:
                raise InputError(f"There is no group {group_id}.")
            return _record(row)

    def undecided(self) -> list[GroupRecord]:
        """Those whose winners do not stand yet."""
        with self._database.read() as session:
            return [_record(row) for row in session.scalars(select(Group).where(Group.decided_at.is_(None)).order_by(Group.id))]

    def decide(self, group_id: int, winners: Sequence[int], reason: str) -> None:
        """Write down which jobs won; once, later calls change nothing."""
        with self._database.write() as session:
            now = self._database.clock()
            row = session.get(Group, group_id, with_for_update=True)
            if row is None or row.decided_at is not None:
                return
            row.decided_at = now
            for member in session.scalars(select(Job).where(Job.group_id == group_id)):
                member.is_winner = member.id in winners
                result = "won" if member.is_winner else "did not win"
                session.add(Event(job_id=member.id, at=now, kind="info", text=f"{result} in {row.name}: {reason}"))


def _record(row: Group) -> GroupRecord:
    return GroupRecord(**{field.name: getattr(row, field.name) for field in dataclasses.fields(GroupRecord)})
