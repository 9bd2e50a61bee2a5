"""Text that is stored, put into paths and shown on terminals: what must not be in it, and how it is shown all the same."""

from __future__ import annotations

import unicodedata

from jobs.errors import InputError

__all__ = ["check_stored", "is_storable", "shown"]

BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of what stands around them, so that a text reads as another one."""


def check_stored(what: str, text: str, *, max_characters: int = 4096) -> None:
    """Refuse what no terminal, path or database should be given. Spaces and letters of every script are fine.

    That is: control characters, halves of characters, line separators, and characters that turn the direction of writing.

    Args:
        what: how the message calls it, such as "run folder".

    Raises:
        InputError: it has such a character, or too many.
    """
    if len(text) > max_characters:
        raise InputError(f"The {what} has {len(text):,} characters, but at most {max_characters:,} are allowed.")
    for position, character in enumerate(text):
        if _is_unsafe(character):
            raise InputError(
                f"The {what} is {_short(text)}, which holds the character U+{ord(character):04X} at position {position}: it is "
                "no letter or sign but steers terminals or hides text; remove it."
            )


def is_storable(text: str) -> bool:
    """Whether it holds nothing that `check_stored` refuses."""
    return not any(map(_is_unsafe, text))


def shown(text: str) -> str:
    """The text for a terminal, on which it can move no cursor, set no colour and turn no line; newlines stay."""
    if text.isprintable():
        return text
    return "".join(f"\\u{ord(one):04x}" if _is_unsafe(one) and one not in "\n\t" else one for one in text)


def _is_unsafe(character: str) -> bool:
    return character in BIDIRECTIONAL or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
