"""Regularisers of a fit, one small function each, and the schedules of their weights."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from nerf3d.rendering.volume import RaySamples, everywhere


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A weight over the fit: `start` until `begin`, a straight line to `end` at `until`, then `end`.

    Args:
        start, end: the weights; without an end it stays at `start`.
        begin, until: progress in [0, 1], 0 at the first step.

    Raises:
        ValueError: unless 0 <= begin <= until <= 1.
    """

    start: float
    end: float | None = None
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self):
        if not 0 <= self.begin <= self.until <= 1:
            raise ValueError(
                f"A schedule runs from {self.begin} to {self.until}; give 0 <= begin <= until <= 1, the shares of the fit."
            )

    def value(self, progress: float) -> float:
        """The weight at this progress in [0, 1]."""
        if self.end is None or progress < self.begin:
            return self.start
        if progress >= self.until:
            return self.end
        return self.start + (self.end - self.start) * (progress - self.begin) / (self.until - self.begin)


def sparsity(alpha: Tensor) -> Tensor:
    """mean sqrt(alpha^2 + 0.01), a scalar: pulls empty rays to 0 more than full ones.

    DreamFusion, Poole et al. 2022, appendix A. alpha is (V, 1, H, W) in [0, 1].
    """
    return (alpha.square() + 0.01).sqrt().mean()


def opaqueness(alpha: Tensor) -> Tensor:
    """Binary entropy of alpha (V, 1, H, W) in nats, a scalar: each ray hits or misses, so no fog.

    Latent-NeRF, Metzer et al. 2022.
    """
    alpha = alpha.clamp(1e-3, 1 - 1e-3)
    return -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log()).mean()


def background_carving(alpha: Tensor, target: Tensor, background: Tensor, *, tolerance: float = 0.06) -> Tensor:
    """Mean of alpha where the guide's target shows the known background colour, a scalar: what should be empty, is.

    Args:
        alpha: (V, 1, H, W) in [0, 1].
        target: (V, 3, H, W) in [0, 1], treated as a constant.
        background: (V, 3) or (V, 3, H, W) in [0, 1].
        tolerance: the root of the mean squared colour difference at which the pull has fallen to exp(-1/2).
    """
    difference = (target.detach() - everywhere(background.detach())).square().mean(1, keepdim=True)
    return (alpha * torch.exp(difference / (-2 * tolerance**2))).mean()


def orientation(samples: RaySamples, num_rays: int) -> Tensor:
    """Sum over a ray of w * max(0, n . d)^2, mean over rays, a scalar: visible normals face the camera.

    Ref-NeRF, Verbin et al. 2022, equation 11. The weights are constants here, as in DreamFusion, so that the pull turns
    surfaces and does not thin them.

    Args:
        samples: of all rays, with normals. num_rays: of the step, those without a sample among them.

    Raises:
        ValueError: the samples carry no normals.
    """
    if samples.normals is None:
        raise ValueError("The orientation loss got samples without normals; render with a lit shading to have them.")
    away = (samples.normals * samples.directions).sum(-1).clamp_min(0)
    return (samples.weights.detach() * away.square()).sum() / num_rays


def depth_variance(samples: RaySamples, depth: Tensor) -> Tensor:
    """Sum over a ray of w * (t - mean t)^2 in square metres, mean over rays, a scalar: thin surfaces, not soft shells.

    The z-variance of HiFA, Zhu and Zhuang 2023, section 4.2. Without it a thick object turns opaque at so little density
    that no iso level cuts it where it looks solid.

    Args:
        samples: of all rays.
        depth: (V, 1, H, W) metres, the mean of t, a constant here.
    """
    mean = depth.detach().reshape(-1)[samples.ray_indices]
    return (samples.weights * (samples.distances - mean).square()).sum() / depth.numel()
