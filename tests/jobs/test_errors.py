"""The error tree: exit codes, and that errors survive the way between processes."""

from __future__ import annotations

import pickle

import pytest

from jobs import errors
from jobs.errors import CollapsedError, DreamKilnError, InputError, Interrupted, JobFailed, OutputError, PriorFailed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DreamKilnError, 1),
        (InputError, 2),
        (OutputError, 2),
        (JobFailed, 1),
        (CollapsedError, 1),
        (PriorFailed, 1),
        (Interrupted, 130),
    ],
)
def test_exit_codes(error, code):
    assert error("x").exit_code == code and issubclass(error, DreamKilnError)


def test_every_error_is_in_the_drawing():
    assert all(name in errors.__doc__ for name in errors.__all__)


def test_errors_survive_pickling():
    error = CollapsedError("gone", kind="empty", step=7, job="a-chair")
    error.add_note("seen at dawn")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.kind, again.step, again.job) == (CollapsedError, "gone", "empty", 7, "a-chair")
    assert again.__notes__ == ["seen at dawn"]
