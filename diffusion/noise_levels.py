"""Geometric noise levels of score-based models, and how to choose them (1907.05600; 2006.09011).

The forward process is variance exploding: x + sigma_i z with sigma_1 > ... > sigma_L. The three rules of 2006.09011 that
choose sigma_1, L and the Langevin step from the data alone are here as functions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.errors import DiffusionError

_LARGEST_RATIO = 100 ** (1 / 9)


def geometric_sigmas(sigma_max: float, sigma_min: float, num_levels: int) -> Tensor:
    """(L,) float64 noise levels from sigma_max down to sigma_min with one ratio between neighbours.

    Raises:
        DiffusionError: not 0 < sigma_min < sigma_max, or fewer than two levels.
    """
    _check_range(sigma_max, sigma_min)
    if num_levels < 2:
        raise DiffusionError.explained(
            f"num_levels is {num_levels}", expected="at least 2", fix="use 10 for points and about 200 for pictures"
        )
    return torch.logspace(math.log10(sigma_max), math.log10(sigma_min), num_levels, dtype=torch.float64)


def _check_range(sigma_max: float, sigma_min: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise DiffusionError.explained(
            f"the noise levels run from {sigma_max:g} to {sigma_min:g}",
            expected="0 < sigma_min < sigma_max",
            fix="give sigma_max first, for example 50 and 0.01",
        )


def largest_distance(points: Tensor) -> float:
    """Technique 1 of 2006.09011: sigma_1 of about the largest distance between two training items.

    Then the first level joins all modes, and what the chain starts from does not decide where it ends.

    Args:
        points: (N, ...) a few thousand items.
    """
    flat = points.flatten(1).double()
    return float(torch.cdist(flat, flat).max())


def num_levels_for(sigma_max: float, sigma_min: float, dim: int) -> int:
    """Technique 2 of 2006.09011: the number of levels whose neighbours overlap by one half.

    In D dimensions ||sigma z|| lies within sqrt(D) sigma +- 3 sigma / sqrt(2). The ratio gamma of neighbours solves
    Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = 0.5.

    In few dimensions neighbours overlap whatever gamma is; it is then that of 1907.05600's ten levels from 1 to 0.01.

    Args:
        dim: D, the numbers in one item.

    Raises:
        DiffusionError: not 0 < sigma_min < sigma_max.
    """
    _check_range(sigma_max, sigma_min)
    low, high = 1.0, _LARGEST_RATIO
    for _ in range(60):
        gamma = (low + high) / 2
        if _overlap(gamma, dim) > 0.5:
            low = gamma
        else:
            high = gamma
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(low) - 1e-9)


def langevin_step_size(sigmas: Tensor, steps_per_level: int) -> float:
    """Technique 4 of 2006.09011: the step (at the last level) that best turns one level's samples into the next one's.

    On a single data point, T steps with a_i = k sigma_i^2 bring the variance gamma^2 sigma_i^2 to sigma_i^2 times

        (1 - k)^(2 T) (gamma^2 - c) + c,        c = 2 k / (1 - (1 - k)^2) = 2 / (2 - k),

    which stays above 1. The k in (0, 1) that comes closest is found on a fine grid; gamma is the levels' largest ratio.

    Args:
        sigmas: (L,) strictly decreasing. steps_per_level: T.

    Returns:
        k sigma_L^2, the `step_size` of `samplers.annealed_langevin`.
    """
    check_sigmas(sigmas)
    gamma = float((sigmas[:-1] / sigmas[1:]).max())
    k = torch.logspace(-6, 0, 60_001, dtype=torch.float64)[:-1]
    limit = 2 / (2 - k)
    reached = (1 - k) ** (2 * steps_per_level) * (gamma**2 - limit) + limit
    return float(k[reached.argmin()]) * float(sigmas[-1]) ** 2


def check_sigmas(sigmas: Tensor | Sequence[float]) -> None:
    """Raises DiffusionError unless the levels are positive and fall strictly."""
    levels = torch.as_tensor(sigmas, dtype=torch.float64)
    if levels.ndim != 1 or len(levels) == 0 or not bool((levels > 0).all()) or not bool((levels.diff() < 0).all()):
        raise DiffusionError.explained(
            f"the noise levels are {levels.tolist()}",
            expected="a strictly decreasing list of positive numbers",
            fix="take them from noise_levels.geometric_sigmas(...)",
        )


def _overlap(gamma: float, dim: int) -> float:
    apart = math.sqrt(2 * dim) * (gamma - 1)
    return _normal_cdf(apart + 3 * gamma) - _normal_cdf(apart - 3 * gamma)


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
