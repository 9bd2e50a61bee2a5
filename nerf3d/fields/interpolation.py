"""Trilinear reads: of a grid, and as weighted sums of a table's rows, which is what they come down to on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_POINTS_AT_ONCE = 2**16
"""So many points' rows are gathered or given their gradients at a time: what that takes stays near the processor."""


def read(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear read: volume (1, C, R, R, R), points (N, 3) in [-1, 1] -> (N, C). See `reader`."""
    return reader(volume)(points)


def reader(volume: Tensor) -> Callable[[Tensor], Tensor]:
    """What reads a volume (1, C, R, R, R) at points: (N, 3) in [-1, 1] -> (N, C). Gradient flows to the volume only.

    Vertices are on the corners; beyond them the border's values go on. On a CPU it sums weighted rows, in which all channels
    of a vertex lie together: torch's `grid_sample` goes through memory once for each channel.
    """
    if volume.device.type != "cpu":
        return functools.partial(_sampled, volume)
    table, side = volume[0].flatten(1).T.contiguous(), volume.shape[-1]
    if table.requires_grad:
        return lambda points: weighted_rows(table, *corners(points, side))
    return lambda points: torch.cat([weighted_rows(table, *corners(part, side)) for part in points.split(_POINTS_AT_ONCE)])


def _sampled(volume: Tensor, points: Tensor) -> Tensor:
    found = F.grid_sample(volume, points[None, None, None], mode="bilinear", padding_mode="border", align_corners=True)
    return found[0, :, 0, 0].T


def corners(points: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The rows (N, 8) of the vertices around points (N, 3) in a grid of side^3, flat [z, y, x], and their weights (N, 8)."""
    place = ((points + 1) * ((side - 1) / 2)).clamp(0, side - 1)
    low = place.floor().clamp_max(side - 2)
    above = (place - low).T.contiguous()
    below = 1 - above
    # In which each line runs over the points, because a short last dimension costs a CPU ten times as much.
    planes = [z * y for z in (below[2], above[2]) for y in (below[1], above[1])]
    weights = torch.stack([plane * x for plane in planes for x in (below[0], above[0])]).T.contiguous()
    x, y, z = low.long().unbind(1)
    offsets = torch.tensor([(k * side + j) * side + i for k in (0, 1) for j in (0, 1) for i in (0, 1)], device=points.device)
    return ((z * side + y) * side + x)[:, None] + offsets, weights


def weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sums of a table's rows: table (R, C), rows (N, K) long, weights (N, K) -> (N, C). Gradient flows to the table only."""
    return _WeightedRows.apply(table, rows, weights)


class _WeightedRows(torch.autograd.Function):
    """`F.embedding_bag` with a gradient that adds up in the order of the points, on however many threads."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.shape = table.shape
        return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        total = gradient.new_zeros(ctx.shape)
        for part, rows, weights in zip(*(t.split(_POINTS_AT_ONCE) for t in (gradient, *ctx.saved_tensors)), strict=True):
            shares = (part[:, None] * weights[..., None]).flatten(0, 1)
            total.scatter_add_(0, rows.reshape(-1, 1).expand_as(shares), shares)
        return total, None, None
