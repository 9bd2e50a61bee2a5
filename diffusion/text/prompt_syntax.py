"""The prompt syntax that Stable Diffusion's users write: (word:1.2), ((word)), [word] and BREAK, as AUTOMATIC1111 reads it."""

import re
from dataclasses import dataclass

UP, DOWN = 1.1, 1 / 1.1
"""What one pair of round or square brackets multiplies a weight with."""

_PARTS = re.compile(
    r"""\\[()\[\]\\]            # an escaped bracket
    |\(|\[|\]
    |:\s*([+-]?\d*\.?\d+)\s*\)  # the weight that ends a round bracket
    |\)|[^\\()\[\]:]+|:|\\""",
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
# What other programs do with a prompt and this one does not.
_NOT_READ = {
    r"<(lora|lyco|hypernet):[^>]*>": "give a LoRA beside the prior, '?lora=FILE:SCALE'",
    r"\[[^\[\]]*:[^\[\]]*:?\s*\d*\.?\d+\]|\[[^\[\]|]*\|[^\[\]]*\]": "prompts do not change on the way",
    r"\{[^{}]*\|[^{}]*\}": "choices are not drawn from a prompt; give a table of prompts",
    r"\bAND\b": "prompts are not composed",
}


@dataclass(frozen=True)
class Piece:
    """Some words of a prompt and how much they count, 1 as they stand."""

    text: str
    weight: float


def parse(prompt: str) -> list[list[Piece]]:
    """The pieces of a prompt, in one list for each part that BREAK keeps apart.

    (x) is 1.1 times, [x] 1/1.1 times and (x:1.5) 1.5 times as strong; brackets nest, their weights multiply, and those
    that are never closed count to the end. A backslash before a bracket makes it a plain sign.
    """
    return [_pieces(part) for part in _BREAK.split(prompt)]


def plain_text(prompt: str) -> str:
    """The words of a prompt without its weights, for towers that read none."""
    return " ".join("".join(piece.text for piece in part) for part in parse(prompt))


def _pieces(text: str) -> list[Piece]:
    found: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []

    def close(bracket: str, weight: float) -> None:
        if opened and opened[-1][0] == bracket:
            start = opened.pop()[1]
            found[start:] = [(words, times * weight) for words, times in found[start:]]
        else:
            found.append((")" if bracket == "(" else "]", 1.0))

    for match in _PARTS.finditer(text):
        part = match.group()
        if part in ("(", "["):
            opened.append((part, len(found)))
        elif match[1] is not None and opened and opened[-1][0] == "(":
            close("(", float(match[1]))
        elif part == ")":
            close("(", UP)
        elif part == "]":
            close("[", DOWN)
        else:
            found.append((part[1:] if len(part) == 2 and part[0] == "\\" else part, 1.0))
    for bracket, start in opened:
        weight = UP if bracket == "(" else DOWN
        found[start:] = [(words, times * weight) for words, times in found[start:]]
    merged: list[Piece] = []
    for words, times in found:
        if merged and merged[-1].weight == times:
            merged[-1] = Piece(merged[-1].text + words, times)
        else:
            merged.append(Piece(words, times))
    return merged or [Piece("", 1.0)]


def not_read(prompt: str) -> list[str]:
    """A clause for each piece of other programs' syntax that a prompt holds and that is taken as plain words."""
    return [f"{match.group()} is not read ({why})" for form, why in _NOT_READ.items() if (match := re.search(form, prompt))]
