"""Jobs: how they come in, how they are found, and what their users ask for."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, delete, func, or_, select, text, tuple_, union_all
from sqlalchemy.orm import Session

from jobs.errors import InputError
from jobs.ledger.counting import Counts, note_move
from jobs.ledger.database import Database
from jobs.ledger.records import MAX_PRIORITY, EventRecord, JobRecord, NewGroup, Submission, check_name
from jobs.ledger.rows import find_job, job_record, move_job
from jobs.ledger.submitting import LIVE, VALUES_PER_QUERY, Submitted, take_in
from jobs.ledger.tables import IS_QUEUED, Artefact, Attempt, Event, Group, Job, JobKey, Shard, User
from jobs.states import TERMINAL, DesiredState, IllegalTransition, State
from jobs.words.prompts import slug

__all__ = ["JobTable", "WaitingJob"]


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """What a scheduler needs to know of a queued job; no spec, so that thousands can be read in every round."""

    id: int
    user: str
    prior: str
    priority: int
    memory_bytes: int
    not_before: float
    created_at: float
    reason: str


def _forgettable(before: float) -> tuple[ColumnElement[bool], ...]:
    """Ended before that time, not the newest of all, not the one that the newest event tells of, in no undecided group."""
    undecided = select(Group.id).where(Group.decided_at.is_(None))
    newest_event = func.coalesce(select(Event.job_id).order_by(Event.id.desc()).limit(1).scalar_subquery(), 0)
    return (
        Job.state.in_(sorted(TERMINAL)),
        Job.ended_at < before,
        Job.id < select(func.max(Job.id)).scalar_subquery(),
        Job.id != newest_event,
        or_(Job.group_id.is_(None), Job.group_id.not_in(undecided)),
    )


MAX_QUEUES = 500
"""Of users, priorities and priors that are asked one by one; where there are more, one query reads all that is queued."""
NUM_SEARCHED = 2000
"""Jobs whose names one page of a search looks at."""
_MOVING_COLUMNS = (Job.id, Job.stage, Job.step, Job.total, Job.seconds_left, Job.metrics)
_WAITING_COLUMNS = tuple(getattr(Job, field.name) for field in dataclasses.fields(WaitingJob))


class JobTable:
    """The tables `jobs`, `users` and `events`; `Ledger.jobs`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._submitting = threading.Lock()  # two requests must not both find a key or a folder free

    def submit(self, submissions: Sequence[Submission], *, group: NewGroup | None = None) -> list[Submitted]:
        """Queue them all, or after an error none.

        One that repeats a job, of the ledger or of these, is that job: by its idempotency key, or as it has the same spec,
        settings and folder as one that has not ended.

        Args:
            group: made with its jobs. Where they were all submitted before, it is the group they came in.

        Raises:
            InputError: an idempotency key that stands for another job; a folder that another job will write into; a group of
                which some jobs were submitted before, or all of them but not in such a group.
        """
        with self._submitting, self._database.write() as session:
            now = self._database.clock()
            self._add_users(session, {submission.user for submission in submissions}, now)
            return take_in(session, submissions, group=group, now=now)

    def get(self, job_id: int) -> JobRecord:
        """Raises InputError where there is no such job."""
        with self._database.read() as session:
            return job_record(find_job(session, job_id))

    def recent(
        self,
        *,
        states: Iterable[State] = (),
        user: str | None = None,
        group_id: int | None = None,
        fingerprint: str | None = None,
        kind: str | None = None,
        words: str = "",
        limit: int = 100,
        before_id: int | None = None,
        from_id: int = 0,
    ) -> list[JobRecord]:
        """Newest first, down to `from_id`; `before_id` goes on from an earlier page. words: each stands in the job's name."""
        asked = {Job.kind: kind, Job.user: user, Job.group_id: group_id, Job.fingerprint: fingerprint}
        where = [Job.id >= from_id, *(column == value for column, value in asked.items() if value is not None)]
        where += [Job.name.contains(word, autoescape=True) for word in slug(words).split("-") if words.strip()]
        if before_id is not None:
            where.append(Job.id < before_id)
        states = tuple(states)
        if group_id is not None or fingerprint is not None:  # a few
            where += [Job.state.in_(states)] if states else []
        elif states or kind is not None or user is not None:
            # The newest of each state lie together in an index; those of several states would all be sorted.
            each = [
                select(Job.id).where(*where, Job.state == state).order_by(Job.id.desc()).limit(limit).subquery()
                for state in states or State
            ]
            where = [Job.id.in_(union_all(*(select(one.c.id) for one in each)))]
        query = select(Job).where(*where).order_by(Job.id.desc()).limit(limit)
        with self._database.read() as session:
            return [job_record(row) for row in session.scalars(query)]

    def page(
        self, *, words: str = "", limit: int = 100, before_id: int | None = None, **filters: Any
    ) -> tuple[list[JobRecord], int | None]:
        """What `recent` finds, and where the next page goes on; None after the last one.

        A search looks at `NUM_SEARCHED` jobs a page, because no index knows the middle of a name in both databases: its page
        may be short, or empty, before the last one.
        """
        from_id = 0
        if words.strip():
            with self._database.read() as session:
                newest = session.scalar(select(func.max(Job.id))) or 0
            from_id = min(newest + 1, newest + 1 if before_id is None else before_id) - NUM_SEARCHED
        jobs = self.recent(words=words, limit=limit, before_id=before_id, from_id=from_id, **filters)
        if len(jobs) == limit:
            return jobs, jobs[-1].id
        return jobs, from_id if from_id > 1 else None

    def waiting(self, num_each: int = 1_000_000) -> list[WaitingJob]:
        """Of every user, priority and prior as many of those that are queued as may start first, in the order they came."""
        key, is_queued = (Job.user, Job.priority, Job.prior), text(IS_QUEUED)
        keys, heads = select(*key).where(is_queued).order_by(*key).limit(1), select(*_WAITING_COLUMNS).where(is_queued)
        found: list[WaitingJob] = []
        with self._database.read() as session:
            values = session.execute(keys).first()
            for _ in range(MAX_QUEUES):
                if values is None:
                    return sorted(found, key=lambda job: job.id)
                same = [column == value for column, value in zip(key, values, strict=True)]
                query = heads.where(*same).order_by(Job.not_before, Job.id).limit(num_each)
                found += [WaitingJob(*row) for row in session.execute(query)]
                # SQLite would read through all that equals the three alone.
                past = tuple_(*key, Job.not_before) > tuple_(*values, 1e300)
                values = session.execute(keys.where(past)).first()
            return [WaitingJob(*row) for row in session.execute(heads.order_by(Job.id))]

    def desired_states(self) -> dict[int, DesiredState]:
        """Running job -> its desired state."""
        query = select(Job.id, Job.desired_state).where(Job.state == State.RUNNING)
        with self._database.read() as session:
            return {job_id: DesiredState(desired_state) for job_id, desired_state in session.execute(query)}

    def at_work(self) -> list[dict[str, Any]]:
        """Of every running job what moves: its stage, step, total, seconds left and metrics."""
        query = select(*_MOVING_COLUMNS).where(Job.state == State.RUNNING).order_by(Job.id)
        with self._database.read() as session:
            return [dict(row) for row in session.execute(query).mappings()]

    def num_live(self, user: str) -> int:
        """How many jobs of theirs wait, run or are paused."""
        counts = self._counts()
        return sum(counts[user, state] for state in LIVE)

    def failures(self, since: float) -> dict[str, int]:
        """Kind of failure -> attempts that ended so since that time."""
        query = select(Attempt.failure_kind, func.count()).where(Attempt.ended_at > since, Attempt.failure_kind.is_not(None))
        with self._database.read() as session:
            return {str(kind): num for kind, num in session.execute(query.group_by(Attempt.failure_kind))}

    def set_priority(self, job_id: int, priority: int) -> None:
        """Raises InputError for a priority that is not allowed, NotFound for no such job."""
        if abs(priority) > MAX_PRIORITY:
            raise InputError(f"The priority is {priority}, but -{MAX_PRIORITY} to {MAX_PRIORITY} is allowed.")
        with self._database.write() as session:
            find_job(session, job_id, lock=True).priority = priority

    def delete(self, job_id: int) -> None:
        """Forget one job that has ended, as `forget` does.

        Raises:
            IllegalTransition: it has not ended, or has to stay: the newest job, or one of a group that is not decided.
        """
        job = self.get(job_id)
        if not job.is_terminal:
            raise IllegalTransition(f"Job {job_id} is {job.state}; cancel it before it is deleted.")
        with self._database.write() as session:  # the newest event keeps its number, so it must not be this job's
            session.add(Event(job_id=None, at=self._database.clock(), kind="info", text=f"job {job_id} is forgotten"))
        if not self.forget([job_id], before=self._database.clock() + 1.0):
            raise IllegalTransition(
                f"Job {job_id} cannot be forgotten now: the newest job keeps its number, and so does one of a best-of that is "
                "not decided; try again after another one was submitted."
            )

    def counts(self) -> dict[State, int]:
        """State -> number of jobs, every state named."""
        found = dict.fromkeys(State, 0)
        for (_, state), num in self._counts().items():
            if state is not None:
                found[State(state)] += num
        return found

    def _counts(self) -> Counts:
        is_owner = self._database.epoch is not None
        return self._database.counts.get(self._counted) if is_owner else self._counted()

    def _counted(self) -> Counts:
        query = select(Job.user, Job.state, func.count()).group_by(Job.user, Job.state)
        with self._database.read() as session:
            return Counter({(user, state): num for user, state, num in session.execute(query)})

    def events(self, job_id: int | None = None, *, after_id: int = 0, limit: int = 1000) -> list[EventRecord]:
        """In order, of one job or of all, from the one after `after_id` on."""
        query = select(Event).where(Event.id > after_id).order_by(Event.id).limit(limit)
        if job_id is not None:
            query = query.where(Event.job_id == job_id)
        with self._database.read() as session:
            return [
                EventRecord(id=row.id, job_id=row.job_id, at=row.at, kind=row.kind, text=row.text)
                for row in session.scalars(query)
            ]

    def last_event(self) -> int:
        """The newest event's number; 0 where there is none."""
        with self._database.read() as session:
            return session.scalar(select(func.max(Event.id))) or 0

    def usage(self, since: float) -> dict[str, float]:
        """User -> seconds that attempts of theirs ran since that time."""
        now = self._database.clock()
        begin = case((Attempt.started_at > since, Attempt.started_at), else_=since)
        seconds = func.coalesce(Attempt.ended_at, now) - begin
        query = (
            select(Job.user, func.sum(seconds))
            .join(Attempt, Attempt.job_id == Job.id)
            .where(or_(Attempt.ended_at.is_(None), Attempt.ended_at > since))
            .group_by(Job.user)
        )
        with self._database.read() as session:
            return {user: max(0.0, float(total)) for user, total in session.execute(query)}

    def mean_run(self, since: float) -> float | None:
        """Mean seconds of the attempts that ended since that time; None where none has."""
        seconds = func.avg(Attempt.ended_at - Attempt.started_at)
        with self._database.read() as session:
            mean = session.scalar(select(seconds).where(Attempt.ended_at > since))
        return None if mean is None else max(0.0, float(mean))

    def weights(self) -> dict[str, float]:
        """User -> weight of their share."""
        with self._database.read() as session:
            return {user.name: user.weight for user in session.scalars(select(User))}

    def set_weight(self, user: str, weight: float) -> None:
        """Raises InputError for a weight that is not positive, and for what is no user's name."""
        check_name("user", user)
        if not 0 < weight <= 1000:
            raise InputError(f"The weight of {user} is {weight:g}, but a number above 0, up to 1000, was expected.")
        with self._database.write() as session:
            self._add_users(session, {user}, self._database.clock())
            row = session.get(User, user)
            assert row is not None
            row.weight = weight

    def cancel(self, job_id: int, reason: str = "cancelled by its user") -> State:
        """Now if it waits, at its worker's next step if it runs. Returns the state it is in. Raises IllegalTransition."""
        return self._ask(job_id, State.CANCELLED, DesiredState.CANCEL, reason)

    def pause(self, job_id: int, reason: str = "paused by its user") -> State:
        """Like `cancel`; `resume` goes on from the checkpoint."""
        return self._ask(job_id, State.PAUSED, DesiredState.PAUSE, reason)

    def resume(self, job_id: int, reason: str = "resumed by its user") -> State:
        """paused -> queued. A job that was only asked to pause goes on running."""
        with self._database.write() as session:
            row = find_job(session, job_id, lock=True)
            if row.state == State.RUNNING and row.desired_state == DesiredState.PAUSE:
                row.desired_state = DesiredState.RUN
                return State.RUNNING
            if row.state != State.PAUSED:
                raise IllegalTransition(f"Job {job_id} is {row.state}; only a paused job can be resumed.")
            move_job(session, row, State.QUEUED, reason, self._database.clock())
            return State.QUEUED

    def retry(self, job_id: int, reason: str = "retried by its user") -> State:
        """failed or cancelled -> queued, its failures forgotten, its checkpoint and files kept.

        succeeded -> queued as well if it is a batch job that left rows without a picture (its metrics' `num_failed`).

        Raises:
            IllegalTransition: its state does not allow that, or another job writes into its folder by now.
        """
        with self._submitting, self._database.write() as session:
            row = find_job(session, job_id, lock=True)
            has_bad_rows = row.state == State.SUCCEEDED and row.metrics.get("num_failed", 0) > 0
            if row.state not in (State.FAILED, State.CANCELLED) and not has_bad_rows:
                hint = "'jobs resume' goes on with a paused one" if row.state == State.PAUSED else "it needs no retry"
                raise IllegalTransition(f"Job {job_id} is {row.state}; only failed and cancelled jobs can be retried; {hint}.")
            other = session.scalar(select(Job.id).where(Job.state.in_(LIVE), Job.out == row.out).order_by(Job.id).limit(1))
            if other is not None:
                raise IllegalTransition(
                    f"Job {job_id} cannot be retried now: job {other} writes into the same folder, {row.out}; wait for its end "
                    f"('dreamkiln jobs watch {other}'), or end it with 'dreamkiln jobs cancel {other}'."
                )
            move_job(session, row, State.QUEUED, reason, self._database.clock())
            row.num_failures, row.not_before, row.ended_at = 0, row.created_at, None
            row.is_dead_letter, row.failure_kind = False, None
            return State.QUEUED

    def ended_before(self, before: float, *, user: str | None = None, limit: int | None = None) -> list[int]:
        """Jobs that `forget` would forget, oldest first."""
        query = select(Job.id).where(*_forgettable(before)).order_by(Job.id).limit(limit)
        with self._database.read() as session:
            return list(session.scalars(query if user is None else query.where(Job.user == user)))

    def forget(self, job_ids: Iterable[int], *, before: float) -> int:
        """Remove the rows of jobs that ended before that time, with all that belongs to them, and groups that are empty then.

        The newest job stays, because some databases would give its number again, and so do the jobs of a group that is not
        decided. An idempotency key is forgotten with its job. Returns how many jobs were forgotten.
        """
        rest, num = sorted(job_ids), 0
        while some := rest[:VALUES_PER_QUERY]:
            del rest[:VALUES_PER_QUERY]
            with self._submitting, self._database.write() as session:
                rows = session.execute(select(Job.id, Job.user, Job.state).where(Job.id.in_(some), *_forgettable(before))).all()
                gone = [row.id for row in rows]
                for row in rows:
                    note_move(session, row.user, row.state, None)
                groups = set(session.scalars(select(Job.group_id).where(Job.id.in_(gone)))) - {None}
                for table in (Event, Artefact, Shard, Attempt, JobKey):
                    session.execute(delete(table).where(table.job_id.in_(gone)))
                session.execute(delete(Job).where(Job.id.in_(gone)))
                used = select(Job.group_id).where(Job.group_id.in_(groups))
                session.execute(delete(Group).where(Group.id.in_(groups), Group.id.not_in(used)))
                num += len(gone)
        return num

    def pictures_of_none_but(self, job_ids: Iterable[int]) -> set[str]:
        """The folders of pictures from which these jobs started, and no other."""
        query = select(Job.id, Job.settings["pictures"].as_string()).where(Job.kind == "images")
        mine: set[str] = set()
        others: set[str] = set()
        these = set(job_ids)
        with self._database.read() as session:
            for job_id, folder in session.execute(query) if these else ():
                (mine if job_id in these else others).add(folder or "")
        return mine - others - {""}

    def _ask(self, job_id: int, state: State, desired_state: DesiredState, reason: str) -> State:
        with self._database.write() as session:
            now = self._database.clock()
            row = find_job(session, job_id, lock=True)
            if row.state == State.RUNNING:
                # A cancelled job stays cancelled, whatever comes after.
                if row.desired_state != DesiredState.CANCEL and row.desired_state != desired_state:
                    row.desired_state = desired_state
                    session.add(Event(job_id=job_id, at=now, kind="info", text=f"to be {state} at the next step: {reason}"))
            elif row.state != state:
                move_job(session, row, state, reason, now)
            return State(row.state)

    def _add_users(self, session: Session, names: set[str], now: float) -> None:
        known = set(session.scalars(select(User.name).where(User.name.in_(names))))
        session.add_all(User(name=name, weight=1.0, created_at=now) for name in sorted(names - known))
        session.flush()
