"""Several named priors in one process: loaded when they are first asked for, the least recently used put away."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = ["PriorShelf"]


class Shelved(Protocol):
    """A prior that can be put away, and that may end by itself when something is wrong with it."""

    @property
    def num_bytes(self) -> int: ...
    @property
    def has_ended(self) -> bool: ...
    def close(self) -> None: ...


Kept = TypeVar("Kept", bound=Shelved)


@dataclass(eq=False)
class _Place(Generic[Kept]):
    """A prior, or a lock that one caller holds while it loads it. users: callers that have it in use."""

    lock: threading.Lock
    prior: Kept | None = None
    users: int = 0


class PriorShelf(Generic[Kept]):
    """At most `memory_bytes` of weights, as long as not more than that is in use at once.

    Args:
        load: source -> prior. memory_bytes: 0 for no limit.
    """

    def __init__(self, load: Callable[[str], Kept], *, memory_bytes: int = 0) -> None:
        self._load = load
        self._memory_bytes = memory_bytes
        self._places: OrderedDict[str, _Place[Kept]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def loaded(self) -> dict[str, Kept]:
        """The priors in memory by source, the least recently used first."""
        with self._lock:
            return {source: place.prior for source, place in self._places.items() if place.prior is not None}

    @contextlib.contextmanager
    def using(self, source: str) -> Iterator[Kept]:
        """The prior of that source, which stays in memory inside the block; one that has ended is loaded anew.

        Raises what `load` raises.
        """
        with self._lock:
            place = self._places.setdefault(source, _Place(threading.Lock()))
            self._places.move_to_end(source)
            place.users += 1
        try:
            with place.lock:
                if place.prior is None or place.prior.has_ended:
                    place.prior = None
                    place.prior = self._load(source)
                    self._put_away()
                prior = place.prior
            yield prior
        finally:
            with self._lock:
                place.users -= 1
                if place.prior is None and not place.users:
                    self._places.pop(source, None)
            self._put_away()

    def close(self) -> None:
        """Put everything away."""
        with self._lock:
            places, self._places = self._places, OrderedDict()
        for place in places.values():
            if place.prior is not None:
                place.prior.close()

    def _put_away(self) -> None:
        """Close idle priors, the least recently used first, until the rest fits."""
        if not self._memory_bytes:
            return
        closed: list[Kept] = []
        with self._lock:
            total = sum(place.prior.num_bytes for place in self._places.values() if place.prior is not None)
            for source, place in list(self._places.items()):
                if total <= self._memory_bytes:
                    break
                if place.prior is not None and not place.users and source != next(reversed(self._places)):
                    total -= place.prior.num_bytes
                    closed.append(place.prior)
                    del self._places[source]
        for prior in closed:
            prior.close()
