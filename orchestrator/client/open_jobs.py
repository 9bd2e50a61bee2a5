"""What `dreamkiln jobs watch` looks at: given jobs, or every job that has not ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.states import State

__all__ = ["ENDED", "OpenJobs", "Sight", "look_at"]

ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
AT_WORK = (State.RUNNING, State.LOST, State.PAUSED)
PAGE = 1000


class Getter(Protocol):
    """A client, patient or not."""

    def get(self, path: str, **query: Any) -> Any:
        """What the orchestrator answers to a GET of a path with a query, as plain JSON values."""
        ...


@dataclass(frozen=True)
class Sight:
    """One look.

    Args:
        jobs: as the API tells them, newest first. now: on the ledger's clock. num_more: open jobs that `jobs` leaves out.
        has_failed: one of those that are watched.
    """

    jobs: list[dict[str, Any]]
    now: float
    num_more: int
    has_failed: bool

    @property
    def is_over(self) -> bool:
        """There is nothing left to wait for: a paused job goes on only when somebody asks."""
        return self.num_more == 0 and all(job["state"] in (*ENDED, State.PAUSED) for job in self.jobs)

    @property
    def paused(self) -> list[int]:
        """Numbers of the jobs that wait for 'jobs resume'."""
        return [job["id"] for job in self.jobs if job["state"] == State.PAUSED]


def look_at(client: Getter, numbers: Sequence[int]) -> Sight:
    """The given jobs, in their order."""
    answers = [client.get(f"/v1/jobs/{number}") for number in numbers]
    jobs = [answer["job"] for answer in answers]
    return Sight(jobs, answers[-1]["now"], 0, any(job["state"] == State.FAILED for job in jobs))


class OpenJobs:
    """Jobs that have not ended at the first look, and those that are submitted until all have.

    Args:
        limit: how many a look shows: those at work, then the newest that wait, then what has ended since the first look. A
            queue may hold many thousands, so the others are only counted.
    """

    def __init__(self, client: Getter, *, limit: int) -> None:
        self._client, self._limit = client, limit
        self._since: float | None = None
        self._open: dict[int, dict[str, Any]] = {}
        self._ended: dict[int, dict[str, Any]] = {}

    def look(self) -> Sight:
        """Raises what the client raises."""
        answer = self._client.get("/v1/jobs", state=AT_WORK, limit=self._limit)
        if self._since is None:
            self._since = answer["now"]
        found = {job["id"]: job for job in answer["jobs"]}
        counts = answer["counts"]
        if (room := self._limit - len(found)) and counts[State.QUEUED]:
            waiting = self._client.get("/v1/jobs", state=[State.QUEUED], limit=room)["jobs"]
            found |= {job["id"]: job for job in waiting}
        for number in self._open.keys() - found.keys():
            job = self._client.get(f"/v1/jobs/{number}")["job"]
            if job["state"] in ENDED:
                self._ended[number] = job
        self._open = found
        for number in found:
            self._ended.pop(number, None)  # retried
        num_open = sum(counts.get(state, 0) for state in (*AT_WORK, State.QUEUED))
        are_all_paused = num_open == counts.get(State.PAUSED, 0)
        if not found and not num_open:
            self._ended |= self._failed_since(self._since)
        has_failed = any(job["state"] == State.FAILED for job in self._ended.values())
        ended = sorted(self._ended.values(), key=lambda job: (job["state"] == State.FAILED, job["id"]), reverse=True)
        shown = [*found.values(), *ended][: self._limit]
        shown.sort(key=lambda job: job["id"], reverse=True)
        return Sight(shown, answer["now"], 0 if are_all_paused else max(0, num_open - len(found)), has_failed)

    def _failed_since(self, since: float) -> dict[int, dict[str, Any]]:
        """Also those that no look has shown."""
        failed: dict[int, dict[str, Any]] = {}
        before = None
        while True:
            page = self._client.get("/v1/jobs", state=[State.FAILED], limit=PAGE, before=before)["jobs"]
            failed |= {job["id"]: job for job in page if (job["ended_at"] or 0) >= since}
            if len(page) < PAGE:
                return failed
            before = page[-1]["id"]
