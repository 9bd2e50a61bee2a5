"""The syntax of prompts, read as AUTOMATIC1111's parser documents it."""

import pytest
import torch

from diffusion.text.chunks import weighted
from diffusion.text.prompt_syntax import Piece, not_read, parse


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("((twice))", [("twice", 1.21)]),
        ("[less]", [("less", 1 / 1.1)]),
        ("a (word:1.2) b", [("a ", 1.0), ("word", 1.2), (" b", 1.0)]),
        ("((a:1.5) b)", [("a", 1.65), (" b", 1.1)]),
        ("time 12:30)", [("time 12:30)", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    (pieces,) = parse(prompt)
    assert [piece.text for piece in pieces] == [text for text, _ in expected]
    assert [piece.weight for piece in pieces] == pytest.approx([weight for _, weight in expected])


def test_break_keeps_parts_apart() -> None:
    assert parse("a cat BREAK a (dog)") == [[Piece("a cat", 1.0)], [Piece("a ", 1.0), Piece("dog", 1.1)]]
    assert parse("BREAKFAST") == [[Piece("BREAKFAST", 1.0)]]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<lora:ink:0.8> a cat", "<lora:ink:0.8> is not read"),
        ("a [cat:dog:0.5]", "prompts do not change on the way"),
        ("a [cat|dog]", "prompts do not change"),
        ("{red|blue} car", "choices are not drawn"),
        ("a cat AND a dog", "prompts are not composed"),
    ],
)
def test_what_is_not_read_is_said(prompt: str, said: str) -> None:
    (clause,) = not_read(prompt)
    assert said in clause
    assert not not_read("a (cat:1.2), [dog] BREAK bird")


def test_a_mean_that_is_rounding_is_no_measure_of_a_prompt() -> None:
    """Towers that end in a layer norm without a bias have none; others are brought back to theirs."""
    states = torch.randn(2, 7, 8, generator=torch.manual_seed(0))
    weights = torch.ones(2, 7)
    weights[0, 2] = 1.2
    changed = states * weights[..., None]
    flat, flat_changed = states - states.mean(dim=2, keepdim=True), changed - changed.mean(dim=2, keepdim=True)
    torch.testing.assert_close(weighted(flat, weights), flat_changed)
    mean = states[0].mean() / changed[0].mean()
    torch.testing.assert_close(weighted(states, weights), torch.stack([changed[0] * mean, states[1]]))
