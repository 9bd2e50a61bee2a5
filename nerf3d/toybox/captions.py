"""Sentences about toybox objects, and the way back from a sentence to what it names."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterator

from nerf3d.toybox.kinds import KINDS, Kind
from nerf3d.toybox.words import COLOURS, PREFIXES, PROPORTIONS, article
from nerf3d.view_words import all_view_phrases, mirrored_phrase

_MASS_NOUNS = {"icing", "dough", "wax", "filling"}
_SINGULAR_IN_S = {"canvas"}


Second = tuple[str, str]
"""A part that has another colour than the main part, and that colour's name."""


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a prompt says. colours: one colour name per part of the kind, in its order; proportion: a word or ""."""

    kind: Kind
    colours: tuple[str, ...]
    proportion: str


def _coloured_part(part: str, colour: str) -> str:
    """ "a white stem", "blue legs", "pink icing"."""
    phrase = f"{colour} {part}"
    bare = part in _MASS_NOUNS or (part.endswith("s") and part not in _SINGULAR_IN_S)
    return phrase if bare else article(phrase)


def plain_prompt(kind: Kind, main: str, *, second: Second | None = None, proportion: str = "") -> str:
    """The usual sentence, such as "a small red mushroom with a white stem"."""
    head = article(f"{proportion} {main} {kind.name}".strip())
    return f"{head} with {_coloured_part(*second)}" if second else head


def draw_prompt(kind: Kind, main: str, *, second: Second | None, proportion: str, u: Iterator[float]) -> str:
    """One of several equivalent sentences, chosen by three numbers of u in [0, 1)."""
    form, article_choice, prefix_choice = next(u), next(u), next(u)
    if second is None:
        phrase = _one_colour(kind, main, proportion, form)
    else:
        phrase = _two_colours(kind, main, second, proportion, form)
    if prefix_choice < 0.25:
        prefix = PREFIXES[int(prefix_choice * 4 * len(PREFIXES))]
        return f"{prefix} {phrase}" if prefix == "a toy" else f"{prefix} {article(phrase)}"
    return article(phrase) if article_choice < 0.75 else phrase


def _one_colour(kind: Kind, main: str, proportion: str, form: float) -> str:
    if form < 0.06:
        return f"{proportion} {kind.name}, {main}".strip()
    phrase = f"{proportion} {main} {kind.name}".strip()
    if form < 0.16 and len(kind.parts) == 2:
        return f"{phrase} with {_coloured_part(kind.parts[1], main)}"
    return phrase


def _two_colours(kind: Kind, main: str, second: Second, proportion: str, form: float) -> str:
    name, extra = f"{proportion} {kind.name}".strip(), _coloured_part(*second)
    if form < 0.2 and kind.parts[0] != kind.name:
        return f"{name} with {_coloured_part(kind.parts[0], main)} and {extra}"
    if form < 0.32:
        return f"{name}, {main} with {extra}"
    if form < 0.44 and len(kind.parts) == 2:
        return f"{proportion} {main} and {second[1]} {kind.name}".strip()
    return f"{proportion} {main} {kind.name} with {extra}".strip()


def mirrored(caption: str) -> str:
    """The same sentence seen from the object's other side; one without view words becomes a near miss."""
    found = _VIEW.search(caption)
    return caption[: found.start(1)] + mirrored_phrase(found[1]) if found else near_miss(caption)


def near_miss(prompt: str) -> str:
    """The same sentence about something else: its two colours exchanged, or its only colour another.

    Always the same one for the same prompt. Raises ValueError for a sentence without a colour.
    """
    words = re.findall(r"[a-z]+", prompt)
    named = list(dict.fromkeys(word for word in words if word in COLOURS))
    if not named:
        raise ValueError(f"{prompt!r} names no colour; give a sentence of the toybox.")
    others = [colour for colour in COLOURS if colour not in named]
    second = named[1] if len(named) > 1 else others[zlib.crc32(prompt.encode()) % len(others)]
    turned = {named[0]: second} | ({second: named[0]} if len(named) > 1 else {})
    told = re.sub(r"[a-z]+", lambda word: turned.get(word[0], word[0]), prompt)
    return re.sub(r"\ban? (?=([a-z]))", lambda found: "an " if found[1] in "aeiou" else "a ", told)


_VIEW = re.compile(r",?\s*\b(" + "|".join(sorted(all_view_phrases(), key=len, reverse=True)) + r")\s*$")


def parse(prompt: str) -> Meaning | None:
    """What a toybox sentence names, or None where it names no kind. Parts without a colour follow the main colour.

    Without any colour the object is gray. Unknown words are passed over.
    """
    words = re.findall(r"[a-z0-9]+", _VIEW.sub("", prompt.lower().strip()))
    found = _find_kind(words)
    if found is None:
        return None
    kind, start, length = found
    rest = [*words[:start], "<kind>", *words[start + length :]]
    proportion = next((w for w in rest if w in PROPORTIONS), "")
    colours = _assign_colours(kind, [w for w in rest if w not in PROPORTIONS])
    main = colours.get(kind.parts[0], "gray")
    return Meaning(kind, tuple(colours.get(part, main) for part in kind.parts), proportion)


def _find_kind(words: list[str]) -> tuple[Kind, int, int] | None:
    for start in range(len(words)):
        for length in (2, 1):
            name = " ".join(words[start : start + length])
            if name in KINDS and start + length <= len(words):
                return KINDS[name], start, length
    return None


def _assign_colours(kind: Kind, words: list[str]) -> dict[str, str]:
    """A colour before a part's name is that part's; other colours go to the main part, then to the second."""
    colours: dict[str, str] = {}
    loose = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in COLOURS:
            if following in kind.parts:
                colours[following] = word
            else:
                loose.append(word)
    for part, colour in zip([p for p in kind.parts if p not in colours], loose, strict=False):
        colours[part] = colour
    return colours
