"""Words of the toybox: colours, proportions, and the complete vocabulary of captions."""

from __future__ import annotations

import functools

from nerf3d.view_words import SECTORS

Rgb = tuple[float, float, float]

COLOURS: dict[str, Rgb] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.96, 0.50, 0.06),
    "yellow": (0.97, 0.86, 0.12),
    "green": (0.13, 0.60, 0.18),
    "cyan": (0.15, 0.82, 0.86),
    "blue": (0.10, 0.22, 0.85),
    "purple": (0.52, 0.14, 0.70),
    "pink": (0.97, 0.52, 0.70),
    "brown": (0.45, 0.26, 0.12),
    "black": (0.09, 0.09, 0.09),
    "white": (0.93, 0.93, 0.93),
    "gray": (0.50, 0.50, 0.51),
}
"""Base albedo of each colour name."""

COLOUR_JITTER = 0.035
"""Each channel of a drawn colour moves by up to this much."""

PROPORTIONS: dict[str, Rgb] = {
    "tall": (1.0, 1.4, 1.0),
    "wide": (1.4, 1.0, 1.0),
    "thin": (0.65, 1.0, 0.65),
    "small": (1.0, 1.0, 1.0),
}
"""Stretch along x, y, z of each proportion word; "small" changes the size instead."""

SMALL_SCALE = 0.7

PREFIXES = ("a toy", "a 3d model of", "a 3d render of", "a photo of", "a picture of")
"""Openings of captions; "a toy" is followed by no article."""

_GRAMMAR = ("a", "an", "the", "with", "and")


def article(phrase: str) -> str:
    """ "a red car", "an orange car"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted; a comma is split off its word."""
    from nerf3d.toybox.kinds import KINDS

    phrases = [*COLOURS, *PROPORTIONS, *PREFIXES, *_GRAMMAR, *SECTORS, "from above", "from below"]
    for kind in KINDS.values():
        phrases += [kind.name, *kind.parts]
    words = {word for phrase in phrases for word in phrase.split()}
    return tuple(sorted(words | {","}))
