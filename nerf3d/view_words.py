"""View words: the vocabulary that the toybox's captions and view-dependent prompts share, and DreamFusion's four.

Left and right are the object's own sides, so azimuth 90 (the camera on +X of an object that faces +Z) is the left side.
"""

from __future__ import annotations

import math

SECTORS = (
    "front view",
    "front left view",
    "left side view",
    "back left view",
    "back view",
    "back right view",
    "right side view",
    "front right view",
)
"""Eight azimuth sectors of 45 degrees, centred on 0, 45, ..., 315 degrees."""

ABOVE_DEGREES = 40.0
BELOW_DEGREES = 0.0


def view_phrase(azimuth_degrees: float, elevation_degrees: float) -> str:
    """Words for a camera direction, such as "front left view from above".

    A sector holds its lower border: 22.5 degrees is already "front left view", 337.5 is "front view".
    Elevation over 40 degrees adds " from above", under 0 adds " from below".
    """
    sector = math.floor((azimuth_degrees + 22.5) / 45.0) % 8
    if elevation_degrees > ABOVE_DEGREES:
        return SECTORS[sector] + " from above"
    if elevation_degrees < BELOW_DEGREES:
        return SECTORS[sector] + " from below"
    return SECTORS[sector]


def four_way_phrase(
    azimuth_degrees: float,
    elevation_degrees: float,
    *,
    front_degrees: float = 45.0,
    back_degrees: float = 45.0,
    overhead_degrees: float = 60.0,
) -> str:
    """DreamFusion's words (2209.14988, section 3.2), with threestudio's thresholds: front, side, back or overhead view.

    front_degrees, back_degrees: how far to either side of straight ahead, or behind, an azimuth may lie. overhead_degrees:
    the elevation above which nothing but the overhead view counts.
    """
    if elevation_degrees > overhead_degrees:
        return "overhead view"
    from_front = abs((azimuth_degrees + 180.0) % 360.0 - 180.0)
    if from_front > 180.0 - back_degrees:
        return "back view"
    return "front view" if from_front < front_degrees else "side view"


def all_view_phrases() -> tuple[str, ...]:
    """Every phrase that `view_phrase` can give: 24 of them."""
    return tuple(s + suffix for s in SECTORS for suffix in ("", " from above", " from below"))


def mirrored_phrase(phrase: str) -> str:
    """The phrase of the camera on the object's other side: left and right exchanged, else front and back."""
    one, other = ("left", "right") if "left" in phrase or "right" in phrase else ("front", "back")
    return " ".join({one: other, other: one}.get(word, word) for word in phrase.split())
