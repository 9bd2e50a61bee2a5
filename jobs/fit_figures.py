"""What a fit is watched by besides its loss: the guide's gradients by noise level."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BANDS", "GuideGradients", "band_name"]

BANDS = 4
"""Equal parts of a schedule's timesteps, least noise first."""


def band_name(band: int) -> str:
    """The metric's name of a band: "gradient_t25_50" is the guide's gradient at a quarter to half of the timesteps."""
    ends = (100 * band // BANDS, 100 * (band + 1) // BANDS)
    return f"gradient_t{ends[0]}_{ends[1]}"


class GuideGradients:
    """Norms of a guide's gradients, collected while views are judged; they stay on their device until they are taken."""

    def __init__(self, num_train_timesteps: int) -> None:
        self._num_train_timesteps = num_train_timesteps
        self._bands: list[int] = []
        self._norms: list[Tensor] = []

    def add(self, t: Tensor, gradient: Tensor) -> None:
        """t: (V,) timesteps. gradient: (V, 3, H, W); its root mean square a view does not depend on the picture's size."""
        self._norms.append(gradient.detach().float().flatten(1).square().mean(1).sqrt())
        self._bands += (t.cpu() * BANDS // self._num_train_timesteps).clamp(max=BANDS - 1).tolist()

    def take(self) -> dict[str, float]:
        """The mean in each band that had a view since the last call, by `band_name`; waits for the device once."""
        if not self._norms:
            return {}
        norms, bands = torch.cat(self._norms).tolist(), self._bands
        self._norms, self._bands = [], []
        found = {band: [norm for norm, other in zip(norms, bands, strict=True) if other == band] for band in sorted(set(bands))}
        return {band_name(band): sum(values) / len(values) for band, values in found.items()}
