"""A floor that a fit has laid under its object is recognised and left out."""

from __future__ import annotations

import numpy as np

REACH = 0.855
"""Radius in scene units of the disc around the vertical axis that a floor covers at half height.

No object is meant to reach so far. Nearer to the bottom the disc is smaller, as the field's sphere is.
"""

SMALLEST_REACH = 0.6
COVERED = 0.9
"""Share of the disc that a floor fills."""

THICKEST = 0.3
"""In scene units. What is thicker is an object that fills the scene."""

_FIELD_RADIUS = 0.95
_SMALLEST_OBJECT = 0.01  # of the floor's voxels


def without_floor(levels: np.ndarray, level: float) -> tuple[np.ndarray, bool]:
    """The same grid without a floor, where there is one with something on it, and whether there was.

    A floor is the lowest thing in the scene, covers the ground as far as the field reaches, and is thin; what stands on it is
    cut off where it begins.

    Args:
        levels: (R, R, R) log densities over the scene box [-1, 1]^3, indexed [x, y, z]. level: at which the surface is cut.

    Returns:
        (R, R, R) levels, the array that was given where there is no floor.
    """
    filled = levels > level
    size = len(levels)
    axis = np.linspace(-1, 1, size)
    away = np.hypot(axis[:, None], axis[None, :])
    reach = np.maximum(SMALLEST_REACH, REACH * np.sqrt(np.maximum(1 - (axis / _FIELD_RADIUS) ** 2, 0)))
    covered = np.array([filled[:, y][away <= reach[y]].mean() for y in range(size)])
    floor = np.flatnonzero(covered >= COVERED)
    if not len(floor):
        return levels, False
    first, top = int(floor[0]), int(floor[0])
    while top + 1 < size and covered[top + 1] >= COVERED / 2:
        top += 1
    num_floor, num_above = int(filled[:, first : top + 1].sum()), int(filled[:, top + 1 :].sum())
    is_thin = (top + 1 - first) * 2 / (size - 1) <= THICKEST
    is_lowest = int(filled[:, :first].sum()) <= num_floor / 2
    if not (is_thin and is_lowest and num_above >= max(27, _SMALLEST_OBJECT * num_floor)):
        return levels, False
    bare = levels.copy()
    bare[:, : top + 1] = min(float(levels.min()), level - 1)
    return bare, True
