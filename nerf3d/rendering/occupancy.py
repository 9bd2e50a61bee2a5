"""Where the field may be dense: a coarse grid that spares the renderer all samples in empty space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nerf3d.rendering import nerfacc_backend
from nerf3d.streams import stream_seed


class Occupancy(nn.Module):
    """nerfacc's occupancy estimator over [-1, 1]^3 (Instant-NGP, appendix C), refreshed without hidden randomness.

    Each refresh evaluates one random point of every cell; the occupied cells are then grown by one cell to every side, so
    that a surface which that point missed, or which moves until the next refresh, is not cut.
    threshold: on density * step_size, about the opacity of one sample; the mean over all cells counts where it is lower,
    as in a nearly empty scene. decay: of the running maximum per refresh.
    step_size: metres between samples. Starts with every cell occupied.
    """

    def __init__(self, resolution: int = 64, *, threshold: float = 0.01, decay: float = 0.5, step_size: float = 0.04):
        super().__init__()
        self.resolution, self.threshold, self.decay, self.step_size = resolution, threshold, decay, step_size
        self.estimator = nerfacc_backend.make_estimator(resolution, radius=1.0)
        self.estimator.binaries.fill_(True)

    def refresh(self, density: Callable[[Tensor], Tensor], *, seed: int, step: int, radius: float = 1.0) -> None:
        """density: (N, 3) -> (N,) 1/m, asked at resolution^3 points. The same (density, seed, step) gives the same grid.

        Cells wholly beyond `radius` are never occupied.
        """
        nerfacc_backend.refresh_estimator(
            self.estimator,
            lambda points: density(points) * self.step_size,
            threshold=self.threshold,
            decay=self.decay,
            seed=stream_seed(seed, "occupancy", step),
        )
        grown = F.max_pool3d(self.estimator.binaries.float()[None], 3, stride=1, padding=1)[0] > 0
        self.estimator.binaries.copy_(grown & self._within(radius))

    def contains(self, points: Tensor) -> Tensor:
        """(N, 3) -> (N,) bool: may the field be dense here? False outside [-1, 1)^3."""
        # int32 is several times faster than int64 here, and this runs over all samples of all rays.
        side = self.resolution
        x, y, z = ((points + 1) * (side / 2)).to(torch.int32).clamp_(0, side - 1).unbind(-1)
        inside = self.estimator.binaries.view(-1).index_select(0, (x * side + y) * side + z)
        return inside & (points.abs().amax(-1) < 1)

    def bounds(self) -> Tensor:
        """(2, 3) lower and upper corner of the occupied cells; a point at the origin if there is none."""
        # Without `nonzero`, at which the host would wait for a GPU.
        occupied, side = self.estimator.binaries[0], self.resolution
        axes = torch.stack([occupied.any(2).any(1), occupied.any(2).any(0), occupied.any(1).any(0)]).int()
        first, last = axes.argmax(1), side - axes.flip(1).argmax(1)
        return torch.where(axes.any(), torch.stack([first, last]) * (2 / side) - 1, 0.0)

    def fraction(self, radius: float = 1.0) -> Tensor:
        """Share of the cells within `radius` that are occupied, in [0, 1], a scalar on the grid's device."""
        within = self._within(radius)
        return (self.estimator.binaries & within).sum() / within.sum()

    def _within(self, radius: float) -> Tensor:
        """(1, R, R, R) bool: cells that reach into the sphere."""
        cell = 2 / self.resolution
        axis = torch.arange(self.resolution, device=self.estimator.binaries.device) * cell - 1
        nearest = torch.where(axis >= 0, axis, (axis + cell).clamp_max(0)).square()
        return (nearest[:, None, None] + nearest[:, None] + nearest < radius**2)[None]
