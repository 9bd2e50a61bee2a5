"""The true object with the proportions that its caption leaves free.

"a red table" says nothing of how long its legs are, and training drew them anew each time, so a table with the wrong mean
proportions is not wrong. Against one table of mean proportions another true one scores a silhouette IoU of 0.83.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion.seeding import normal, stream, uniform
from nerf3d import metrics
from nerf3d.mesh import Mesh
from nerf3d.toybox import captions
from nerf3d.toybox.items import build_parts
from nerf3d.toybox.primitives import Parts
from nerf3d.toybox.sketch import surface_points
from nerf3d.toybox.words import COLOURS
from orchestrator.exports.transform import place

__all__ = ["NUM_PROPORTIONS", "best_numbers", "nearest_proportions", "object_of"]

NUM_PROPORTIONS = 14
"""As many numbers in [0, 1) as `nerf3d.toybox.items.make_item` draws."""

NUM_RANDOM, NUM_LOCAL = 40, 100
FIRST_STEP, LAST_STEP = 0.4, 0.03
MOVED_SHARE = 0.3
GRID = 64
_INNER = slice(GRID // 4 - 1, GRID - GRID // 4 + 1)  # what an object with a longest side of 1 can fill of a box of side 2


def object_of(prompt: str, randoms: Sequence[float] | None = None, *, size: float = 1.0) -> Parts:
    """The object that a toybox prompt means.

    Args:
        randoms: its proportions, as `nerf3d.toybox.items.build_parts` takes them; else the mean ones.
        size: share of its kind's radius.

    Raises:
        ValueError: the sentence is not the toybox's.
    """
    meaning = captions.parse(prompt)
    if meaning is None:
        raise ValueError(f"{prompt!r} names no kind of the toybox.")
    palette = [COLOURS[colour] for colour in meaning.colours]
    return build_parts(meaning.kind, palette, proportion=meaning.proportion, size=size, randoms=randoms)


def nearest_proportions(mesh: Mesh, prompt: str) -> Parts:
    """Of all objects that training may show under a toybox prompt, the one whose volume agrees best with the mesh's."""
    made = metrics.occupancy_grid(place(mesh, longest_side=1.0), GRID)[_INNER, _INNER, _INNER]
    inside = torch.from_numpy(np.ascontiguousarray(made))
    axis = ((torch.arange(GRID) + 0.5) * 2 / GRID - 1)[_INNER]
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    found = best_numbers(NUM_PROPORTIONS, lambda numbers: _agreement(object_of(prompt, numbers), inside, points))
    return object_of(prompt, found)


def best_numbers(num: int, agreement: Callable[[list[float]], float]) -> list[float]:
    """So many numbers in [0, 1] of high agreement: a random search, then smaller and smaller steps from the best.

    It draws from a fixed seed and begins with 0.5 everywhere, so that what it finds agrees no less than the middle.
    """
    draws = stream(0, "proportions")
    best = torch.full((num,), 0.5)
    best_agreement = agreement(best.tolist())
    for trial in range(NUM_RANDOM + NUM_LOCAL):
        if trial < NUM_RANDOM:
            tried = uniform((num,), draws)
        else:
            step = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** ((trial - NUM_RANDOM) / NUM_LOCAL)
            some = uniform((num,), draws) < MOVED_SHARE
            tried = (best + step * some * normal((num,), draws)).clamp(0, 1)
        if (agreed := agreement(tried.tolist())) > best_agreement:
            best, best_agreement = tried, agreed
    return best.tolist()


def _agreement(parts: Parts, inside: Tensor, points: Tensor) -> float:
    """Volume IoU of an object, brought to a longest side of 1, with a grid (R, R, R) of what is inside."""
    local = surface_points(parts.shape.numpy(), parts.params.double().numpy())
    frame = parts.frame.double().numpy()
    world = local @ frame[:, :, :3].transpose(0, 2, 1) + frame[:, None, :, 3]
    low, high = world.reshape(-1, 3).min(axis=0), world.reshape(-1, 3).max(axis=0)
    centre = torch.tensor((low + high) / 2, dtype=torch.float32)
    covered = parts.occupancy(points * float((high - low).max()) + centre)
    return float((covered & inside).sum() / (covered | inside).sum().clamp_min(1))
