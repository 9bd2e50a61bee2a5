"""Samples as a PNG: a grid of pictures, or points in the plane."""

from __future__ import annotations

import io
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
        return write_png(_scatter(samples.cpu().numpy()), path, metadata)
    raise JobFailed(f"Samples of shape {tuple(samples.shape)} are neither pictures nor points in the plane; there is no PNG.")


def _scatter(points: np.ndarray) -> np.ndarray:
    """(B, D) -> (H, W, 3) uint8: the first two coordinates, both axes to one scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.5, linewidths=0)
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    buffer.seek(0)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))
