"""Items by index, their captions, the held-out combinations, and the way back from words to objects."""

import collections
import math
import re

import pytest
import torch
from torch.testing import assert_close

from nerf3d.toybox.captions import near_miss, parse
from nerf3d.toybox.heldout import held_out_colours, held_out_prompts, is_held_out
from nerf3d.toybox.items import MIN_BACKGROUND_DISTANCE, TWO_COLOUR_SHARE, make_item
from nerf3d.toybox.kinds import CATALOGUE, KINDS
from nerf3d.toybox.truth import object_from_prompt
from nerf3d.toybox.words import COLOURS, vocabulary
from nerf3d.view_words import view_phrase

NUM_ITEMS = 6000


@pytest.fixture(scope="module")
def items():
    return [make_item(index) for index in range(NUM_ITEMS)]


def main_and_second(item):
    colours = list(dict.fromkeys(colour for _, colour in item.colours))
    return item.colours[0][1], (colours[1] if len(colours) > 1 else None)


def test_an_item_is_a_function_of_its_index(items):
    for index in (0, 17, 4000):
        again = make_item(index)
        assert again.caption == items[index].caption and again.light == items[index].light
        assert_close(again.parts.frame, items[index].parts.frame, atol=0, rtol=0)
    assert make_item(5, seed=1).caption != items[5].caption
    assert len({item.azimuth_degrees for item in items}) == NUM_ITEMS


def test_held_out_combinations_are_never_drawn(items):
    assert not any(is_held_out(item.kind, *main_and_second(item)) for item in items)
    assert all(is_held_out(item.kind, *main_and_second(item)) for item in (make_item(k, held_out=True) for k in range(500)))


def test_the_listed_combinations_are_held_out():
    assert is_held_out("table", "red") and is_held_out("table", "red", "blue") and is_held_out("chair", "purple")
    assert is_held_out("mushroom", "blue", "yellow") and not is_held_out("mushroom", "blue")
    assert is_held_out("house", "pink", "blue") and not is_held_out("house", "pink")
    assert not is_held_out("mushroom", "red", "white")


def test_about_a_twelfth_of_the_combinations_is_held_out():
    pairs = [is_held_out(kind, colour) for kind in KINDS for colour in COLOURS]
    assert 0.05 < sum(pairs) / len(pairs) < 0.14
    assert all(1 <= len(held_out_colours(kind)) <= 4 for kind in KINDS)


def test_held_out_prompts_cover_all_kinds_and_repeat():
    prompts = held_out_prompts(2 * len(KINDS), seed=3)
    assert prompts == held_out_prompts(2 * len(KINDS), seed=3) != held_out_prompts(2 * len(KINDS), seed=4)
    meanings = [parse(prompt) for prompt in prompts]
    assert [m.kind.name for m in meanings].count("chair") == 2
    assert {m.kind.name for m in meanings[: len(KINDS)]} == set(KINDS)
    for m in meanings:
        others = [c for c in m.colours if c != m.colours[0]]
        assert is_held_out(m.kind.name, m.colours[0], others[0] if others else None)


def test_captions_keep_to_the_vocabulary(items):
    words = set(vocabulary())
    for item in items:
        assert item.caption == item.caption.lower()
        assert set(re.findall(r"[^\s,]+|,", item.caption)) <= words, item.caption


def test_captions_end_in_the_view(items):
    with_view = [item for item in items if item.caption != item.prompt]
    assert 0.87 < len(with_view) / NUM_ITEMS < 0.93
    for item in with_view:
        assert item.caption == f"{item.prompt}, {view_phrase(item.azimuth_degrees, item.elevation_degrees)}"


def test_every_caption_is_read_back(items):
    for item in items:
        meaning = parse(item.caption)
        assert (meaning.kind.name, meaning.proportion) == (item.kind, item.proportion), item.caption
        assert tuple(zip(meaning.kind.parts, meaning.colours, strict=True)) == item.colours, item.caption


def test_draws_follow_the_stated_shares(items):
    kinds = collections.Counter(item.kind for item in items)
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 0.6 * NUM_ITEMS / len(KINDS)
    several = [item for item in items if len(item.colours) > 1]
    two = sum(main_and_second(item)[1] is not None for item in several) / len(several)
    assert abs(two - TWO_COLOUR_SHARE) < 0.03
    assert all(-10 <= item.elevation_degrees <= 65 and 0.35 <= item.ambient <= 0.7 for item in items)


def test_backgrounds_are_wide_and_keep_off_the_object(items):
    gaps = [min(math.dist(item.background, c) for c in item.parts.albedo[:1].tolist()) for item in items[:1500]]
    assert sum(gap < MIN_BACKGROUND_DISTANCE for gap in gaps) / len(gaps) < 0.02
    grey = sum(len(set(item.background)) == 1 for item in items) / NUM_ITEMS
    assert 0.4 < grey < 0.6


def test_all_of_the_catalogue_can_be_drawn_and_named():
    assert len(KINDS) >= 36 and len(CATALOGUE) >= len(KINDS)
    for kind in CATALOGUE.values():
        assert len(set(kind.parts)) == len(kind.parts) and kind.draw.__doc__


def test_prompts_become_their_objects():
    mushroom = object_from_prompt("a photo of a red mushroom with a white stem, front left view from above")
    assert mushroom.kind == "mushroom" and mushroom.colours == (("cap", "red"), ("stem", "white"))
    assert mushroom.occupancy(torch.zeros(1, 3)).all() and not mushroom.occupancy(torch.tensor([0.0, 0.95, 0.0]))
    assert object_from_prompt("a pink ice cream with a brown cone").colours == (("scoop", "pink"), ("cone", "brown"))
    assert object_from_prompt("a tall red and white lamp").proportion == "tall"
    assert object_from_prompt("a mug").colours == (("body", "gray"), ("handle", "gray"))
    assert object_from_prompt("a thought about nothing") is None


def test_small_objects_are_small():
    def reach(prompt):
        return object_from_prompt(prompt).parts.frame[0, 0, 0]

    assert_close(reach("a small red ball"), 0.7 * reach("a red ball"))


@pytest.mark.parametrize(
    ("prompt", "miss"),
    [
        ("an orange and blue mushroom", "a blue and orange mushroom"),
        ("a lamp with a white shade and an orange base", "a lamp with an orange shade and a white base"),
        ("a toy mug, purple with a gray handle", "a toy mug, gray with a purple handle"),
    ],
)
def test_a_near_miss_exchanges_the_colours(prompt, miss):
    assert near_miss(prompt) == miss and near_miss(miss) == prompt


def test_a_near_miss_is_never_true():
    for index in range(400):
        prompt = make_item(index).prompt
        right, wrong = parse(prompt), parse(near_miss(prompt))
        assert wrong.kind == right.kind and wrong.proportion == right.proportion and wrong.colours != right.colours, prompt
    with pytest.raises(ValueError, match="names no colour"):
        near_miss("a table")
