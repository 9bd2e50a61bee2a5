"""How jobs come in: each of them once, and into a folder one at a time.

Two jobs that write into one folder destroy each other's work. So what is asked for twice is one job: as long as the first
has not ended, or for ever where both carry the same idempotency key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from jobs.errors import Conflict
from jobs.ledger.counting import note_move
from jobs.ledger.records import NewGroup, Submission
from jobs.ledger.tables import Event, Group, Job, JobKey
from jobs.states import TERMINAL, DesiredState, State

__all__ = ["LIVE", "VALUES_PER_QUERY", "Submitted", "take_in"]

LIVE = tuple(state for state in State if state not in TERMINAL)
"""States of a job that still writes into its folder, or will."""

VALUES_PER_QUERY = 500


@dataclass(frozen=True)
class Submitted:
    """What became of a submission. is_new: False if it is a job that was there. group_id: of the job's group."""

    id: int
    is_new: bool
    group_id: int | None = None


def take_in(session: Session, submissions: Sequence[Submission], *, group: NewGroup | None, now: float) -> list[Submitted]:
    """Queue what is not there yet; see `JobTable.submit`."""
    known, rows = _Known(session, submissions), []
    for submission in submissions:
        row = known.find(submission)
        if row is None:
            row = _new_job(submission, now)
            known.add(row)
        rows.append(row)
    new = [row for row in dict.fromkeys(rows) if row.id is None]
    if group is not None and rows:
        _bring_together(session, group, rows, new, now)
    session.add_all(new)
    for row in new:
        note_move(session, row.user, None, row.state)
    session.flush()
    session.add_all(known.further_keys(submissions, rows))
    if new:
        session.execute(
            insert(Event),
            [{"job_id": row.id, "at": now, "kind": "state", "text": f"{row.state}: submitted"} for row in new],
        )
    not_told = {row.id for row in new}
    answers = []
    for row in rows:
        answers.append(Submitted(row.id, row.id in not_told, row.group_id))
        not_told.discard(row.id)
    return answers


def _bring_together(session: Session, group: NewGroup, rows: Sequence[Job], new: Sequence[Job], now: float) -> None:
    """Make the group of new jobs, or find that all of them are its jobs already. Raises Conflict for anything between."""
    wanted = dataclasses.asdict(group)
    if len(new) == len(set(rows)):
        made = Group(**wanted, created_at=now)
        session.add(made)
        session.flush()
        for row in new:
            row.group_id = made.id
        return
    before = {row.group_id for row in rows}
    found = session.get(Group, next(iter(before))) if len(before) == 1 and None not in before else None
    if found is None or {name: getattr(found, name) for name in wanted} != wanted:
        known = sorted(row.id for row in set(rows) - set(new))
        raise Conflict(
            f"{len(known)} of the {len(set(rows))} jobs of group {group.name!r} were submitted before, outside such a group "
            f"(job {known[0]} is one); repeat what was submitted exactly, or wait for their end and choose another --key."
        )


class _Known:
    """Jobs that a submission may turn out to be: of the ledger, and of the request itself (those have no number yet)."""

    def __init__(self, session: Session, submissions: Sequence[Submission]) -> None:
        self._by_key: dict[tuple[str, str], Job] = {}
        self._by_folder: dict[str, Job] = {}
        users = {submission.user for submission in submissions}
        for keys in _chunks({submission.idempotency_key for submission in submissions} - {None}):
            query = select(Job).where(Job.user.in_(users), Job.idempotency_key.in_(keys))
            for row in session.scalars(query):
                self._by_key[row.user, row.idempotency_key or ""] = row
            further = select(JobKey.user, JobKey.key, Job).join(Job).where(JobKey.user.in_(users), JobKey.key.in_(keys))
            for user, key, row in session.execute(further):
                self._by_key[user, key] = row
        for folders in _chunks({submission.out for submission in submissions}):
            for row in session.scalars(select(Job).where(Job.state.in_(LIVE), Job.out.in_(folders)).order_by(Job.id)):
                self._by_folder.setdefault(row.out, row)

    def add(self, row: Job) -> None:
        """One of the request."""
        self._by_folder[row.out] = row
        if row.idempotency_key:
            self._by_key[row.user, row.idempotency_key] = row

    def further_keys(self, submissions: Sequence[Submission], rows: Sequence[Job]) -> Iterator[JobKey]:
        """Keys under which jobs were asked for that have none, or another one."""
        for submission, row in zip(submissions, rows, strict=True):
            name = submission.user, submission.idempotency_key or ""
            if submission.idempotency_key and name not in self._by_key:
                self._by_key[name] = row
                yield JobKey(user=submission.user, key=submission.idempotency_key, job_id=row.id)

    def find(self, submission: Submission) -> Job | None:
        """Raises Conflict where it is neither one of them nor can stand beside them."""
        key = submission.idempotency_key
        if key and (row := self._by_key.get((submission.user, key))):
            _check_key(submission, row)
            return row
        row = self._by_folder.get(submission.out)
        if row is not None:
            _check_folder(submission, row)
        return row


def _check_key(submission: Submission, row: Job) -> None:
    if submission.digest() != _digest(row):
        which = "another line of this table" if row.id is None else f"job {row.id}"
        raise Conflict(
            f"The idempotency key {submission.idempotency_key!r} belongs to {which} with another spec, other settings or "
            "another folder; repeat those exactly, or choose another key."
        )


def _check_folder(submission: Submission, row: Job) -> None:
    if submission.digest() != _digest(row):
        difference = "other settings" if submission.fingerprint == row.fingerprint else "another spec"
        if row.id is None:
            raise Conflict(
                f"Two jobs of this request, {row.name} and {submission.name} with {difference}, would write into {row.out}; "
                "give each a folder of its own (out)."
            )
        raise Conflict(
            f"Job {row.id}, which is {row.state} and has {difference}, writes into {row.out}; give this one another folder "
            f"(--out), or end that one with 'dreamkiln jobs cancel {row.id}'."
        )
    if row.desired_state == DesiredState.CANCEL:
        raise Conflict(
            f"Job {row.id}, which is the same and writes into {row.out}, is being cancelled; submit this one when it has "
            f"stopped: 'dreamkiln jobs watch {row.id}' waits for that."
        )


def _digest(row: Job) -> str:
    return Submission(
        kind=row.kind, spec=row.spec, name=row.name, fingerprint=row.fingerprint, out=row.out, settings=row.settings
    ).digest()


def _chunks(values: set[str] | set[str | None]) -> Iterator[list[str]]:
    """A database takes only so many values in one query."""
    rest = iter(sorted(value for value in values if value is not None))
    while chunk := list(islice(rest, VALUES_PER_QUERY)):
        yield chunk


def _new_job(submission: Submission, now: float) -> Job:
    return Job(
        kind=submission.kind,
        name=submission.name,
        user=submission.user,
        spec=dict(submission.spec),
        settings=dict(submission.settings),
        fingerprint=submission.fingerprint,
        prior=submission.prior,
        out=submission.out,
        priority=submission.priority,
        memory_bytes=submission.memory_bytes,
        idempotency_key=submission.idempotency_key,
        max_failures=submission.max_failures,
        state=State.PAUSED if submission.is_paused else State.QUEUED,
        desired_state=DesiredState.RUN,
        metrics={},
        not_before=now,
        created_at=now,
        updated_at=now,
    )
