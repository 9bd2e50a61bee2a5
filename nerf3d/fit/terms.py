"""The regularising terms of a step's loss, weighted by their schedules."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf3d import regularisers
from nerf3d.fields.base import FieldQuery
from nerf3d.fit.config import FitConfig
from nerf3d.rendering import RenderOutput


def on_views(config: FitConfig, picture: RenderOutput, *, target: Tensor | None, background: Tensor, progress: float) -> Tensor:
    """The weighted sum of the terms that are means over views; a term with weight 0 is not computed.

    target: (V, 3, H, W), what the guide wants to see, if it says so. background: (V, 3) or (V, 3, H, W), what the pictures
    stand before.
    """
    alpha = picture.alpha
    total = alpha.new_zeros(())
    if weight := config.sparsity.value(progress):
        total = total + weight * regularisers.sparsity(alpha)
    if weight := config.opaqueness.value(progress):
        total = total + weight * regularisers.opaqueness(alpha)
    if (weight := config.background.value(progress)) and target is not None:
        wanted = F.interpolate(target, size=alpha.shape[-2:], mode="area")
        total = total + weight * regularisers.background_carving(alpha, wanted, background)
    if (weight := config.orientation.value(progress)) and picture.samples.normals is not None:
        total = total + weight * regularisers.orientation(picture.samples, alpha.numel())
    if weight := config.depth_variance.value(progress):
        total = total + weight * regularisers.depth_variance(picture.samples, picture.depth)
    return total


def on_field(config: FitConfig, query: FieldQuery, *, progress: float, draws: torch.Generator) -> Tensor | float:
    """The weighted sum of the terms on the field itself, a scalar."""
    total: Tensor | float = 0.0
    density_weight = config.density_variation.value(progress)
    colour_weight = config.colour_variation.value(progress)
    if density_weight or colour_weight:
        density, colour = query.total_variation(draws)
        total = total + density_weight * density + colour_weight * colour
    if weight := config.outer_density.value(progress):
        total = total + weight * query.density_beyond(config.outer_radius, draws)
    return total
