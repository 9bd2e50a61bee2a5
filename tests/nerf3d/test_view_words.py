"""View words at and around the borders of their sectors."""

import pytest

from nerf3d.view_words import SECTORS, all_view_phrases, four_way_phrase, view_phrase


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


@pytest.mark.parametrize(
    ("azimuth", "elevation", "phrase"),
    [
        (0, 0, "front view"),
        (44.9, 0, "front view"),
        (315.1, 60, "front view"),
        (45, 0, "side view"),
        (-45, 0, "side view"),
        (135, 0, "side view"),
        (135.1, 0, "back view"),
        (180, -10, "back view"),
        (-136, 0, "back view"),
        (0, 60.1, "overhead view"),
        (180, 75, "overhead view"),
    ],
)
def test_dreamfusions_four_words(azimuth, elevation, phrase):
    """threestudio's conditions: front within (-45, 45), back beyond 135 to either side, overhead above 60, side otherwise."""
    assert four_way_phrase(azimuth, elevation) == phrase


def test_thresholds_of_the_four_words_are_settings():
    assert four_way_phrase(50, 0, front_degrees=60) == "front view"
    assert four_way_phrase(100, 0, back_degrees=90) == "back view"
    assert four_way_phrase(0, 50, overhead_degrees=45) == "overhead view"
