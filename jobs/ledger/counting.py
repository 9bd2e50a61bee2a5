"""How many jobs each user has in each state: counted once, then kept by what the ledger's owner commits."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from sqlalchemy.orm import Session

__all__ = ["Counts", "StateCounts", "note_move"]

_MOVED = "moved"

Counts = Counter[tuple[str, str | None]]
"""(user, state) -> number of jobs."""


def note_move(session: Session, user: str, before: str | None, after: str | None) -> None:
    """A job of theirs changes its state in this transaction. None: the job is new, or forgotten."""
    moved = session.info.setdefault(_MOVED, Counter())
    moved.update({(user, before): -1})
    moved.update({(user, after): 1})


class StateCounts:
    """Of the one process that may write, whose threads all commit here: to count 100,000 rows at every look costs too much."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: Counts | None = None
        self._num_writes = self._num_open = 0

    @contextlib.contextmanager
    def writing(self, session: Session) -> Iterator[None]:
        """Around a transaction. Where one that moved jobs fails, nobody knows whether it was committed: count again."""
        with self._lock:
            self._num_writes, self._num_open = self._num_writes + 1, self._num_open + 1
        is_done = False
        try:
            yield
            is_done = True
        finally:
            moved = session.info.get(_MOVED)
            with self._lock:
                self._num_open -= 1
                if moved and self._known is not None:
                    self._known.update(moved)
                if moved and not is_done:
                    self._known = None

    def get(self, count: Callable[[], Counts]) -> Counts:
        """What is known, else what `count` finds, which is kept if no transaction was open meanwhile."""
        with self._lock:
            if self._known is not None:
                return Counter(self._known)
            begun, is_quiet = self._num_writes, not self._num_open
        found = count()
        with self._lock:
            if is_quiet and self._num_writes == begun:
                self._known = Counter(found)
        return found
