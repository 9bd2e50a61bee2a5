"""What a user may say about an evaluation. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import InputError

__all__ = ["EvaluationSettings"]

RANGES = {
    "num_prompts": (1, 10_000),
    "seed": (0, 2**31),
    "num_views": (1, 360),
    "num_captions": (200, 4_000),
    "num_threads": (0, 1_024),
}


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How pictures and meshes are scored.

    Args:
        prior: "toybox" or a folder; its judge scores, and it draws where no run is given.
        judge: another judge's folder; "" takes `<prior>/judge`.
        num_prompts: pictures to draw. held_out: prompts that training never drew, or else only ones that it may have.
        seed: of the prompts, and of picture 0; picture i is drawn from seed + i.
        num_views: per mesh.
        num_captions: size of the pool, at least 200, so that figures mean what they mean elsewhere.
        device: "auto" or a torch device. num_threads: 0 for all cores.

    Raises:
        InputError: a number out of its range.
    """

    prior: str = "toybox"
    judge: str = ""
    num_prompts: int = 64
    held_out: bool = True
    seed: int = 0
    num_views: int = 8
    num_captions: int = 256
    device: str = "auto"
    num_threads: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name):,}, but {low:,} to {high:,} is allowed.")
