"""Ranks of hand-made embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from orchestrator.lab.evaluation.captions import CaptionPool
from orchestrator.lab.evaluation.r_precision import by_teaching, interval_of_mean, mean_embedding, retrieve, summarise


def pool_of(size: int, truths=None, kinds=None) -> CaptionPool:
    truths = tuple(range(size)) if truths is None else tuple(truths)
    return CaptionPool(tuple(map(str, range(size))), truths, tuple(kinds or map(str, range(size))))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_pictures_equal_to_their_captions_are_perfect():
    captions = noise(200, 32)
    pool = pool_of(200)
    found = retrieve(captions, captions, torch.arange(200))
    scores = summarise(found, pool, pool.truths)
    assert (scores.r_at_1, scores.r_at_5, scores.mean_rank, scores.right_kind) == (1, 1, 1, 1)
    assert_close(found.similarities, torch.ones(200))
    assert found.best.tolist() == list(range(200))


def test_pictures_that_mean_nothing_score_one_over_the_pool():
    truths = torch.arange(20_000) % 50
    found = retrieve(noise(20_000, 64, seed=1), noise(50, 64), truths)
    scores = summarise(found, pool_of(50, truths.tolist()), truths.tolist())
    # Five standard deviations of a share of 20,000.
    assert scores.r_at_1 == pytest.approx(1 / 50, abs=0.005)
    assert scores.r_at_5 == pytest.approx(5 / 50, abs=0.011)
    assert scores.mean_rank == pytest.approx(25.5, abs=0.6)


def test_a_judge_that_cannot_tell_captions_apart_scores_nothing():
    captions = noise(1, 8).expand(10, 8)
    pool = pool_of(10)
    found = retrieve(noise(10, 8, seed=2), captions, torch.arange(10))
    scores = summarise(found, pool, pool.truths)
    assert (scores.r_at_1, scores.r_at_5, scores.mean_rank) == (0, 0, 10)
    assert all(best != true for best, true in zip(found.best.tolist(), pool.truths, strict=True))


def test_a_tie_with_one_other_caption_is_rank_two():
    captions = torch.eye(3)[[0, 0, 1]]
    found = retrieve(torch.eye(3)[[0, 1]], captions, torch.tensor([1, 2]))
    assert found.ranks.tolist() == [2, 1] and found.best.tolist() == [0, 2]


def test_not_a_number_is_the_last_rank():
    found = retrieve(torch.full((1, 4), torch.nan), noise(7, 4), torch.tensor([3]))
    assert found.ranks.tolist() == [7]


def test_the_right_kind_counts_although_the_colour_is_wrong():
    captions = torch.eye(4)
    pool = pool_of(4, truths=(0, 2), kinds=("car", "car", "mug", "house"))
    found = retrieve(captions[[1, 3]], captions, torch.tensor(pool.truths))
    scores = summarise(found, pool, pool.truths)
    assert scores.r_at_1 == 0 and scores.right_kind == 0.5


def test_shares_of_held_out_and_taught_rows():
    captions = torch.eye(4)
    pool = pool_of(4)
    found = retrieve(captions[[0, 1, 3, 2]], captions, torch.tensor(pool.truths))
    parts = by_teaching(found, pool, [True, True, False, None], name="all")
    assert {name: part.r_at_1 for name, part in parts.items()} == {"all": 0.5, "all, held out": 1.0, "all, taught": 0.0}
    assert list(by_teaching(found, pool, [True] * 4, name="all")) == ["all"]


def test_the_mean_of_views_is_a_unit_vector_between_them():
    views = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert_close(mean_embedding(views), torch.full((1, 2), 0.5**0.5))


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="nothing to summarise"):
        summarise(retrieve(noise(0, 4), noise(3, 4), torch.zeros(0, dtype=torch.long)), pool_of(3), ())


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [low <= 0.7 <= high for low, high in (interval_of_mean((rng.random(60) < 0.7).tolist()) for _ in range(200))]
    assert 0.88 < sum(covered) / len(covered) < 0.99
    assert interval_of_mean([0.25]) == (0.25, 0.25) and interval_of_mean([1.0] * 5) == (1.0, 1.0)
