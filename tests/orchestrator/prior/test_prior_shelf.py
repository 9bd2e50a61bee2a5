"""Priors on demand: each loaded once, the least recently used put away, never one that is in use."""

from __future__ import annotations

import threading
import time

import pytest

from jobs.errors import InputError
from orchestrator.prior.shelf import PriorShelf


class Weights:
    """A prior of ten bytes."""

    num_bytes = 10

    def __init__(self, source: str) -> None:
        self.source = source
        self.closed = self.has_ended = False

    def close(self) -> None:
        self.closed = True


class Loader:
    """Loads slowly enough for two callers to meet, and remembers what it loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def __call__(self, source: str) -> Weights:
        if source == "missing":
            raise InputError("The prior 'missing' is not there.")
        time.sleep(0.02)
        self.loaded.append(source)
        return Weights(source)


def test_the_least_recently_used_is_put_away():
    load = Loader()
    shelf = PriorShelf(load, memory_bytes=25)
    for source in ("a", "b", "a", "c", "a"):
        with shelf.using(source) as prior:
            assert prior.source == source and not prior.closed
    assert load.loaded == ["a", "b", "c"] and list(shelf.loaded) == ["c", "a"]
    with shelf.using("b"):
        assert list(shelf.loaded) == ["a", "b"]


def test_what_is_in_use_stays_even_if_memory_is_short():
    shelf = PriorShelf(Loader(), memory_bytes=5)
    with shelf.using("a") as first:
        with shelf.using("b") as second:
            assert not first.closed and not second.closed
        assert not first.closed
    assert len(shelf.loaded) == 1
    with shelf.using("c"):
        assert first.closed and second.closed


def test_callers_that_meet_share_one_loading():
    load = Loader()
    shelf = PriorShelf(load)
    seen = []

    def use() -> None:
        with shelf.using("a") as prior:
            seen.append(prior)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load.loaded == ["a"] and len(set(map(id, seen))) == 1
    shelf.close()
    assert seen[0].closed and not shelf.loaded


def test_a_prior_that_cannot_be_loaded_leaves_no_trace():
    shelf = PriorShelf(Loader())
    for _ in range(2):
        with pytest.raises(InputError, match="'missing' is not there"), shelf.using("missing"):
            pass
    assert not shelf.loaded


def test_a_prior_that_ended_by_itself_is_loaded_anew() -> None:
    loader = Loader()
    shelf = PriorShelf(loader)
    with shelf.using("a") as first:
        pass
    first.has_ended = True
    with shelf.using("a") as second:
        assert second is not first
    with shelf.using("a") as third:
        assert third is second
    assert loader.loaded == ["a", "a"]
