"""The table of states."""

import pytest

from jobs.states import LEGAL, TERMINAL, IllegalTransition, State, check_transition


def test_every_state_is_in_the_table_and_can_be_reached_and_left():
    assert set(LEGAL) == set(State)
    reachable = set().union(*LEGAL.values())
    assert reachable == set(State)
    assert all(LEGAL.values())


def test_only_a_retry_leaves_an_end():
    assert {state: LEGAL[state] for state in TERMINAL} == {
        State.SUCCEEDED: {State.QUEUED},
        State.FAILED: {State.QUEUED},
        State.CANCELLED: {State.QUEUED},
    }
    assert all(State.RUNNING not in LEGAL[state] for state in State if state != State.QUEUED)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (State.SUCCEEDED, State.RUNNING, "Job 3 is succeeded and cannot become running; it has ended"),
        (State.PAUSED, State.RUNNING, "is paused and cannot become running; from there it can only become cancelled, queued"),
    ],
)
def test_what_is_illegal_says_what_would_be_legal(before, after, sentence):
    with pytest.raises(IllegalTransition, match=sentence):
        check_transition(before, after, what="Job 3")
