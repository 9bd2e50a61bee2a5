"""Small dense pieces that float just off the body are joined to it: an antenna whose foot the fit lost is still an antenna."""

from __future__ import annotations

import numpy as np

SMALLEST = 1e-3
"""Share of the body's voxels under which a piece is a crumb."""

DENSE = 0.7
"""How far, in log density, a piece's inside must be above the level: fog that just reaches it is none of the object."""

RADIUS = 1.5
"""Of a bridge, in voxels."""


def bridge(levels: np.ndarray, level: float, *, gap: float, share: float) -> np.ndarray:
    """The same grid, with a straight bridge from each small dense piece to the nearest place of the body.

    Args:
        levels: (R, R, R) log densities over the scene box [-1, 1]^3.
        level: at which the surface will be cut.
        gap: longest bridge, in scene units; 0 for none.
        share: of the body's size from which a piece stays by itself, and is left alone.

    Returns:
        (R, R, R) levels; the array that was given where nothing was joined.
    """
    from scipy import ndimage

    if not gap:
        return levels
    labels, num_pieces = ndimage.label(levels > level, structure=np.ones((3, 3, 3)))
    if num_pieces < 2:
        return levels
    numbers = np.arange(1, num_pieces + 1)
    sizes = np.bincount(labels.ravel(), minlength=num_pieces + 1)[1:]
    peaks = ndimage.maximum(levels, labels, numbers)
    body = int(sizes.argmax())
    is_joined = numbers == body + 1
    is_piece = (sizes >= SMALLEST * sizes[body]) & (sizes < share * sizes[body]) & (peaks >= level + DENSE)
    longest = gap * (len(levels) - 1) / 2 + 1  # surfaces lie up to half a voxel before the voxels
    joined = levels
    while (is_piece & ~is_joined).any():
        distance, nearest = ndimage.distance_transform_edt(
            ~np.isin(labels, numbers[is_joined]), return_distances=True, return_indices=True
        )
        closest = ndimage.minimum(distance, labels, numbers)
        within = is_piece & ~is_joined & (closest <= longest)
        if not within.any():
            break
        for number in numbers[within]:
            foot = ndimage.minimum_position(distance, labels, number)
            joined = _with_rod(joined, np.array(foot), nearest[(slice(None), *foot)], level)
        is_joined |= within
    return joined


def _with_rod(levels: np.ndarray, start: np.ndarray, end: np.ndarray, level: float) -> np.ndarray:
    """The grid with everything within RADIUS voxels of the line from start to end above the level."""
    margin = int(np.ceil(RADIUS)) + 1
    low = np.maximum(np.minimum(start, end) - margin, 0)
    high = np.minimum(np.maximum(start, end) + margin + 1, levels.shape)
    points = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1).astype(float)
    along = (end - start).astype(float)
    where = np.clip((points - start) @ along / max(float(along @ along), 1.0), 0, 1)
    apart = np.linalg.norm(points - start - where[..., None] * along, axis=-1)
    filled = levels.copy()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    filled[box] = np.maximum(filled[box], level + 0.5 * (RADIUS - apart))
    return filled
