"""What a prompt may be, and how a file is named after one."""

from __future__ import annotations

import hashlib
import unicodedata

from jobs.errors import InputError

__all__ = ["MAX_PROMPT_CHARACTERS", "check_prompt", "slug"]

MAX_PROMPT_CHARACTERS = 2_000


def check_prompt(prompt: str, *, name: str = "prompt", allow_empty: bool = False) -> str:
    """Return `prompt` without surrounding space, or refuse it.

    Args:
        prompt: the sentence as the user gave it.
        name: how the message calls it ("prompt", "negative prompt").
        allow_empty: an empty negative prompt is the usual one.

    Raises:
        InputError: empty, longer than 2,000 characters, with control characters or bytes that are not UTF-8, or without a
            single letter or digit (only emoji or punctuation), which no text tower can read.
    """
    if not isinstance(prompt, str):
        raise InputError(f"The {name} is {prompt!r}, but text was expected.")
    text = prompt.strip()
    if not text:
        if allow_empty:
            return ""
        raise InputError(f'The {name} is empty; describe the object in a few words, for example "a red mushroom".')
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InputError(
            f"The {name} has {len(text):,} characters, but at most {MAX_PROMPT_CHARACTERS:,} are allowed; shorten it "
            "(a text tower reads only the first few dozen words anyway)."
        )
    if not text.isprintable():
        _refuse_characters(text, name)
    if not any(character.isalnum() for character in text):
        raise InputError(
            f"The {name} {_short(text)} holds no letter or digit (only emoji or signs), so the text tower would read "
            "nothing; say it in words."
        )
    return " ".join(text.split())


def slug(prompt: str, *, num_characters: int = 40) -> str:
    """A safe file name for any prompt: lower-case ASCII letters, digits and dashes, never empty, never a path.

    Different prompts may share a slug, so names also carry a hash (`jobs.specs`).
    """
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = "".join(c if c.isalnum() else " " for c in ascii_text).split()
    return "-".join(words)[:num_characters].strip("-") or hashlib.sha256(prompt.encode()).hexdigest()[:8]


def _refuse_characters(text: str, name: str) -> None:
    """Raises InputError for a character that would break file names and JSON."""
    for position, character in enumerate(text):
        # The command line hands over undecodable bytes as lone surrogates.
        if "\udc80" <= character <= "\udcff":
            raise InputError(
                f"The {name} is no valid UTF-8: byte 0x{ord(character) - 0xDC00:02X} at position {position}; write it in UTF-8."
            )
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise InputError(
                f"The {name} holds the control character U+{ord(character):04X} at position {position}; remove it."
            )


def _short(text: str) -> str:
    return repr(text if len(text) <= 20 else text[:20] + "…")
