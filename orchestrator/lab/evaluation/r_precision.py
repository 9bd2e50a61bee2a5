"""CLIP R-Precision: how often a picture's own caption is the best one of a large pool.

Park et al. 2021, "Benchmark for Compositional Text-to-Image Synthesis", section 4; for 3D, Jain et al. 2022, "Dream
Fields" (arXiv:2112.01455), section 4.1, and Poole et al. 2022, "DreamFusion", table 1, who rank rendered views of the
object among the captions, coloured and textureless. Chance is 1 / pool size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.lab.evaluation.captions import CaptionPool

__all__ = ["RPrecision", "Retrieval", "by_teaching", "interval_of_mean", "mean_embedding", "retrieve", "summarise"]

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
SAME = 1e-6
"""Cosines closer than this are equal: a matrix product rounds equal columns differently, by where they stand."""


@dataclass(frozen=True)
class Retrieval:
    """How well each of N pictures finds its caption.

    Args:
        ranks: (N,) long of the true caption; 1 is best.
        similarities: (N,) cosine with the true caption.
        best: (N,) index of the caption that came first.
    """

    ranks: Tensor
    similarities: Tensor
    best: Tensor

    def __getitem__(self, rows: Tensor) -> Retrieval:
        """Some of the pictures."""
        return Retrieval(self.ranks[rows], self.similarities[rows], self.best[rows])


@dataclass(frozen=True, kw_only=True)
class RPrecision:
    """Of num_scored pictures or objects: shares whose true caption came first or among five, and its mean rank.

    r_at_1_interval: of 95 % confidence, by bootstrap over the pictures or objects.

    right_kind: share whose first caption names the right kind of object, whatever its colours. It is the part of the
    question that a textureless picture can answer.
    """

    num_scored: int
    r_at_1: float
    r_at_5: float
    mean_rank: float
    right_kind: float
    r_at_1_interval: tuple[float, float] | None = None


def retrieve(images: Tensor, captions: Tensor, truths: Tensor) -> Retrieval:
    """Ranks every picture's true caption among all.

    Captions that are as similar as the true one count as better, so a judge that cannot tell them apart scores nothing.

    Args:
        images: (N, E) unit vectors. captions: (P, E) unit vectors. truths: (N,) long, index of each true caption.
    """
    similarities = images @ captions.T
    true = similarities.gather(1, truths[:, None])
    ranks = len(captions) - (similarities < true - SAME).sum(1)
    # Of captions that tie at the top, the true one is not the answer.
    others = similarities.scatter(1, truths[:, None], -float("inf"))
    best = (others if len(captions) > 1 else similarities).argmax(1)
    return Retrieval(ranks, true[:, 0], best.where(ranks > 1, truths))


def summarise(retrieval: Retrieval, pool: CaptionPool, truths: Sequence[int]) -> RPrecision:
    """The shares over all rows. Raises ValueError without rows."""
    num = len(truths)
    if not num:
        raise ValueError("there is nothing to summarise; score at least one picture.")
    ranks = retrieval.ranks
    right = [pool.kinds[best] == pool.kinds[true] for best, true in zip(retrieval.best.tolist(), truths, strict=True)]
    return RPrecision(
        num_scored=num,
        r_at_1=(ranks == 1).sum().item() / num,
        r_at_5=(ranks <= 5).sum().item() / num,
        mean_rank=ranks.sum().item() / num,
        right_kind=sum(right) / num,
        r_at_1_interval=interval_of_mean((ranks == 1).double().tolist()),
    )


def by_teaching(
    retrieval: Retrieval, pool: CaptionPool, held_out: Sequence[bool | None], *, name: str
) -> dict[str, RPrecision]:
    """`name`: of all rows; "<name>, held out" and "<name>, taught": of those rows, where there are both or others."""
    found = {name: summarise(retrieval, pool, pool.truths)}
    for label, flag in (("held out", True), ("taught", False)):
        rows = [number for number, other in enumerate(held_out) if other is flag]
        if 0 < len(rows) < len(held_out):
            found[f"{name}, {label}"] = summarise(retrieval[torch.tensor(rows)], pool, [pool.truths[row] for row in rows])
    return found


def mean_embedding(views: Tensor) -> Tensor:
    """(O, V, E) unit vectors of V views of O objects -> one unit vector each, (O, E)."""
    return F.normalize(views.mean(1), dim=-1)


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean (Efron 1979), the same for the same values; of one value itself."""
    if len(values) < 2:
        return (float(values[0]), float(values[0]))
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values, float),),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=0,
    )
    return (round(float(found.confidence_interval.low), 4), round(float(found.confidence_interval.high), 4))
