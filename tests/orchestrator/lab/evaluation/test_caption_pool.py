"""The pool of captions: complete, hard, and without two that mean the same."""

from __future__ import annotations

import pytest

from nerf3d.toybox import captions as toybox
from nerf3d.toybox.heldout import held_out_prompts
from nerf3d.toybox.kinds import KINDS
from orchestrator.lab.evaluation.captions import (
    NUM_CAPTIONS,
    caption_pool,
    clay_pool,
    held_out,
    is_toybox_prompt,
    taught_prompts,
    without_view_words,
)

HOUSE = "a pink house with a blue roof"


def meaning(caption: str) -> tuple:
    found = toybox.parse(caption)
    return (found.kind.name, found.colours, found.proportion)


@pytest.mark.parametrize("prompts", [held_out_prompts(64), held_out_prompts(24, seed=3), [HOUSE], taught_prompts(150)])
def test_every_pool_is_large_and_holds_each_truth_once(prompts):
    pool = caption_pool(prompts)
    assert len(pool.captions) == max(NUM_CAPTIONS, 2 * len({meaning(prompt) for prompt in prompts})) >= 200
    assert len({meaning(caption) for caption in pool.captions}) == len(pool.captions)
    assert [meaning(pool.captions[truth]) for truth in pool.truths] == [meaning(prompt) for prompt in prompts]
    assert pool.kinds == tuple(meaning(caption)[0] for caption in pool.captions)
    assert all(is_toybox_prompt(caption) and without_view_words(caption) == caption for caption in pool.captions)


def test_the_same_prompts_have_the_same_pool():
    prompts = held_out_prompts(24)
    assert caption_pool(prompts) == caption_pool(prompts)
    assert caption_pool(prompts).digest == caption_pool(prompts).digest
    assert caption_pool(prompts).digest != caption_pool(prompts, seed=1).digest


def test_near_misses_of_every_prompt_are_there():
    prompts = held_out_prompts(40)
    pool = caption_pool(prompts)
    kinds_and_colours = [(m[0], m[1][0]) for m in map(meaning, pool.captions)]
    for prompt in prompts:
        kind, colours, _ = meaning(prompt)
        assert any(k == kind and c != colours[0] for k, c in kinds_and_colours), prompt
        assert any(k != kind and c == colours[0] for k, c in kinds_and_colours), prompt


def test_a_single_prompt_meets_all_its_neighbours():
    captions = set(caption_pool([HOUSE]).captions)
    assert "a blue house with a pink roof" in captions
    assert len({meaning(c)[1][0] for c in captions if meaning(c)[0] == "house" and meaning(c)[1][1] == "blue"}) == 12
    assert len({meaning(c)[0] for c in captions if meaning(c)[1][0] == "pink"}) == len(KINDS)


def test_view_words_and_repeats_share_one_caption():
    pool = caption_pool([f"{HOUSE}, back left view from above", HOUSE, "a white table with white legs", "a white table"])
    assert pool.captions[:2] == (HOUSE, "a white table with white legs") and pool.truths == (0, 0, 1, 1)
    assert "a white table" not in pool.captions


def test_sentences_that_are_not_the_toyboxs_are_kept_as_they_are():
    pool = caption_pool(["A dragon!", "a dragon", "an otter"])
    assert pool.captions[:2] == ("A dragon!", "an otter") and pool.truths == (0, 0, 1)
    assert len(pool.captions) == NUM_CAPTIONS and pool.kinds[:2] == ("", "")
    assert held_out("a dragon") is None and not is_toybox_prompt("a red car in the rain")


def test_held_out_and_taught_prompts_are_told_apart():
    assert all(held_out(prompt) is True for prompt in held_out_prompts(200))
    taught = taught_prompts(80)
    assert all(held_out(prompt) is False for prompt in taught)
    assert taught == taught_prompts(80) and {meaning(p)[0] for p in taught[: len(KINDS)]} == set(KINDS)
    assert held_out("a red mushroom with a white stem") is False and held_out("a red table") is True


def test_clay_is_ranked_among_the_kinds_in_white():
    pool = clay_pool(["a red table with blue legs", "a small cyan table", "a marble statue", "a blue duck, back view"])
    assert len(pool.captions) == len(KINDS) + 1
    assert [pool.captions[truth] for truth in pool.truths] == ["a white table"] * 2 + ["a marble statue", "a white duck"]
    assert pool.kinds[pool.truths[3]] == "duck" and len(set(pool.kinds)) == len(pool.kinds)
