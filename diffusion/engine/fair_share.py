"""Who is served next: weighted deficit round robin over jobs, counted in network rows.

After Shreedhar and Varghese, "Efficient Fair Queueing Using Deficit Round Robin" (SIGCOMM 1995), with one change: a
request is served whole as long as its job has any credit, and the overdraft is paid back in later rounds, because half
a query is worth nothing.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar


class Waits(Protocol):
    """What is scheduled: a `Ticket`."""

    job: str
    number: int

    @property
    def kind(self) -> str:
        """ "query" or "trajectory"."""
        ...


Item = TypeVar("Item", bound=Waits)


class FairShare:
    """Rounds of at most `capacity` rows, shared by weight among the jobs that have something to do.

    What a job leaves unused goes to the others in the same round (max-min fairness) and is not saved up; what it took
    too much is paid back, also while it has nothing to do, so that coming and going is no advantage.
    """

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._credit: dict[str, float] = {}
        self._last_turn: dict[str, int] = {}
        self._turns = 0

    def weight(self, job: str) -> float:
        """The job's weight; 1 unless set."""
        return self._weights.get(job, 1.0)

    def set_weight(self, job: str, weight: float) -> None:
        """A job of weight 2 gets twice the rows of one of weight 1 while both have enough to do.

        Raises:
            ValueError: the weight is not positive.
        """
        if not weight > 0:
            raise ValueError(f"the weight of job {job!r} is {weight}; give a positive number")
        self._weights[job] = weight

    def forget(self, job: str) -> None:
        """The job has ended."""
        for table in (self._weights, self._credit, self._last_turn):
            table.pop(job, None)

    def allot(self, demand: Mapping[str, int], capacity: int) -> dict[str, float]:
        """Weighted max-min shares of `capacity` rows: nobody gets more than it asks for, and nothing is wasted."""
        shares = dict.fromkeys(demand, 0.0)
        wanting, left = set(demand), float(capacity)
        while wanting and left > 1e-9:
            per_weight = left / sum(self.weight(job) for job in wanting)
            satisfied = {job for job in wanting if demand[job] <= per_weight * self.weight(job)}
            for job in satisfied or wanting:
                shares[job] = min(demand[job], per_weight * self.weight(job))
            if not satisfied:
                break
            left -= sum(demand[job] for job in satisfied)
            wanting -= satisfied
        return shares

    def turns(self, waiting: Iterable[tuple[Item, int]], capacity: int) -> Iterator[Item]:
        """One round: items in the order in which they should be served; each is charged as it is taken.

        Take as many as fit, and `refund` what was not served after all.

        Jobs with credit come first, among them queries by arrival and then trajectories, richest job first. After them
        comes everybody else in the same order, so that no row of the batch stays empty.

        Args:
            waiting: items and how many rows each still needs.
        """
        in_order = sorted(waiting, key=lambda pair: pair[0].number)
        demand: dict[str, int] = {}
        queries: deque[tuple[Item, int]] = deque()
        queues: dict[str, deque[tuple[Item, int]]] = {}
        for item, rows in in_order:
            demand[item.job] = demand.get(item.job, 0) + rows
            (queries if item.kind == "query" else queues.setdefault(item.job, deque())).append((item, rows))
        self._open_round(demand, capacity)
        for needs_credit in (True, False):
            for _ in range(len(queries)):
                query, rows = queries.popleft()
                if needs_credit and self._credit[query.job] <= 0:
                    queries.append((query, rows))
                    continue
                self._credit[query.job] -= rows
                yield query
            while jobs := [job for job in queues if not needs_credit or self._credit[job] > 0]:
                richest = max(jobs, key=lambda job: (self._credit[job] / self.weight(job), -self._last_turn.get(job, -1)))
                item, rows = queues[richest].popleft()
                if not queues[richest]:
                    del queues[richest]
                self._turns += 1
                self._last_turn[richest] = self._turns
                self._credit[richest] -= rows
                yield item

    def refund(self, job: str, rows: int) -> None:
        """Rows of the job that were taken and not served."""
        self._credit[job] = self._credit.get(job, 0.0) + rows

    def _open_round(self, demand: Mapping[str, int], capacity: int) -> None:
        total = sum(self.weight(job) for job in demand)
        for job in [job for job in self._credit if job not in demand]:
            weight = self.weight(job)
            self._credit[job] = self._credit[job] + capacity * weight / (total + weight)
            if self._credit[job] >= 0:
                del self._credit[job]
        for job, share in self.allot(demand, capacity).items():
            self._credit[job] = self._credit.get(job, 0.0) + share
