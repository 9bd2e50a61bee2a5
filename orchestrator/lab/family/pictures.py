"""Samples as a PNG: a grid of pictures, or points in the plane."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from jobs.errors import JobFailed
from orchestrator.exports import write_image_grid, write_png
from orchestrator.exports.contact_sheet import to_uint8


def write_samples(samples: Tensor, path: Path, *, metadata: Mapping[str, str]) -> Path:
    """Writes samples (B, C, H, W) in [-1, 1], with 1 or 3 channels, or points (B, D) of which the first two are drawn.

    Raises:
        JobFailed: the samples are not finite, or of another shape.
        OutputError: the path cannot be written.
    """
    if not bool(samples.isfinite().all()):
        raise JobFailed("The samples are not finite numbers; train the model longer, or use more steps or another sampler.")
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        return write_image_grid(to_uint8((samples.expand(-1, 3, -1, -1) + 1) / 2), path, metadata=metadata)
    if samples.ndim == 2 and samples.shape[1] >= 2:
        return write_png(scatter({"": samples.cpu().numpy()}), path, metadata)
    raise JobFailed(f"Samples of shape {tuple(samples.shape)} are neither pictures nor points in the plane; there is no PNG.")


def scatter(panels: Mapping[str, np.ndarray], *, limit: float | None = None, size: float = 4.0) -> np.ndarray:
    """Points (N, D) by title -> (H, W, 3) uint8: the first two coordinates, both axes to one scale, panels side by side.

    Args:
        limit: both axes run from -limit to limit, without numbers; by default, as far as the points, with a grid.
        size: inches a panel is wide.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titled = any(panels)
    figure = Figure(figsize=(size * len(panels), size + 0.3 * titled), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.scatter(points[:, 0], points[:, 1], s=size, alpha=0.45, linewidths=0)
        axes.set_aspect("equal")
        axes.set_title(title, fontsize=9)
        if limit is None:
            axes.grid(alpha=0.3)
        else:
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
