"""The driver: answers in order, the result at the end, errors where they belong."""

from collections.abc import Generator

import pytest
import torch

from diffusion.requests import Condition, run


def asks_three_times() -> Generator[int, int, list[int]]:
    answers = []
    for question in range(3):
        answers.append((yield question))
    return answers


def test_run_answers_each_request_and_returns_the_result() -> None:
    assert run(asks_three_times(), lambda question: question * 10) == [0, 10, 20]


def test_run_of_a_generator_that_asks_nothing() -> None:
    def silent() -> Generator[int, int, str]:
        return "done"
        yield 0

    assert run(silent(), lambda question: pytest.fail("nothing was asked")) == "done"


def test_an_error_of_the_answer_reaches_the_caller_even_a_stop_iteration() -> None:
    def answer(question: int) -> int:
        raise StopIteration("the answer's own")

    with pytest.raises(StopIteration, match="the answer's own"):
        run(asks_three_times(), answer)


def test_condition_rows() -> None:
    condition = Condition(torch.arange(3.0)[:, None, None], torch.zeros(3, 1, 1))
    part = condition[torch.tensor([2, 0])]
    assert part.tokens.flatten().tolist() == [2, 0] and part.negative is not None and len(part.negative) == 2
    assert Condition(torch.ones(3, 1, 1))[:2].negative is None
