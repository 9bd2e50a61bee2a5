"""View words at and around the borders of their sectors."""

import pytest

from nerf3d.view_words import SECTORS, all_view_phrases, view_phrase


@pytest.mark.parametrize(
    ("azimuth", "phrase"),
    [
        (0, "front view"),
        (22.4999, "front view"),
        (22.5, "front left view"),
        (67.5, "left side view"),
        (90, "left side view"),
        (112.5, "back left view"),
        (180, "back view"),
        (225, "back right view"),
        (270, "right side view"),
        (315, "front right view"),
        (337.4999, "front right view"),
        (337.5, "front view"),
        (360, "front view"),
        (-90, "right side view"),
    ],
)
def test_sectors(azimuth, phrase):
    assert view_phrase(azimuth, 10) == phrase


@pytest.mark.parametrize(("elevation", "suffix"), [(-0.001, " from below"), (0, ""), (40, ""), (40.001, " from above")])
def test_heights(elevation, suffix):
    assert view_phrase(0, elevation) == "front view" + suffix


def test_nothing_else_is_said():
    said = {view_phrase(a / 2, e) for a in range(-720, 1440) for e in (-5, 20, 60)}
    assert said == set(all_view_phrases()) and len(said) == 3 * len(SECTORS)
