"""What is said of a Ray process that died: its own last line, without a terminal's colours."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError

from jobs.errors import PriorFailed
from orchestrator.prior import deaths
from orchestrator.prior.client import RayPrior
from orchestrator.prior.deaths import last_words

NOT_MADE = """The actor died because of an error raised in its creation task, \x1b[36mray::PriorActor.__init__()\x1b[39m (pid=7)
  File "/x/jobs/__init__.py", line 3, in <module>
    from jobs import codec
ImportError: cannot import name 'codec' from 'jobs' (/x/jobs/__init__.py)"""
KILLED = "The actor died unexpectedly before finishing this task.\n\tclass_name: PriorActor\n\tpid: 4711\n\tnamespace: x"
STDERR = """[2026-11-30 20:00:00,000 I 4711 4711] core_worker.cc:1: Ray's own words
Traceback (most recent call last):
  File "x.py", line 1, in <module>
\x1b[31mRuntimeError: the weights are too many\x1b[0m
*** SIGABRT received at time=1 ***
"""


def test_a_class_that_could_not_be_made_says_why():
    assert last_words(Exception(NOT_MADE)) == "ImportError: cannot import name 'codec' from 'jobs' (/x/jobs/__init__.py)"


def test_a_process_that_ended_itself_is_quoted_from_its_log_and_a_killed_one_left_no_words(monkeypatch):
    logs = {4711: deaths.ESCAPE_CODES.sub("", STDERR)}
    monkeypatch.setattr(deaths, "_stderr_of", lambda pid: logs.get(pid, ""))
    assert last_words(Exception(KILLED)) == "RuntimeError: the weights are too many"
    assert last_words(Exception(KILLED.replace("4711", "4712"))) == last_words(Exception("")) == ""


class Dead:
    """A replica whose calls fail as those of a dead actor do."""

    def __init__(self, error):
        self.call = self
        self._error = error

    def remote(self, *arguments, **names):
        raise self._error


def dead(text):
    error = ActorDiedError()
    error.args = (text,)
    error.__class__ = type("ActorDiedError", (ActorDiedError,), {"__str__": lambda self: text})
    return Dead(error)


def test_memory_is_blamed_only_where_the_process_left_no_words():
    with pytest.raises(PriorFailed, match=r"died \(ImportError: cannot .*\); the same command .* checkpoint\.$"):
        RayPrior([dead(NOT_MADE)], attempts=1).info()
    with pytest.raises(PriorFailed, match=r"prior died \(ActorDiedError\); .* memory may be short"):
        RayPrior([dead("gone")], attempts=1).info()
