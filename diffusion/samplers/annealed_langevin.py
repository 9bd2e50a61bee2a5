"""Langevin dynamics, plain and annealed over falling noise levels (1907.05600, 2006.09011).

A generator without I/O like the other samplers. It differs from `chain.Sampler` in what it knows: its noise levels are
sigmas of a variance-exploding process instead of timesteps of a `NoiseSchedule`, so it asks for a score.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.noise_levels import check_sigmas
from diffusion.samplers.chain import Noise, drawn


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Asks for the score, the gradient of log p, of the data plus noise N(0, sigma^2 I); the answer has x's shape.

    Args:
        x: (B, ...). sigma: (B,) float64, one noise level a row; 0 asks about the data themselves.
    """

    x: Tensor
    sigma: Tensor


ScoreSampling = Generator[ScoreRequest, Tensor, Tensor]
"""Yields requests, is sent scores, returns samples."""


def annealed_langevin(
    x: Tensor,
    *,
    sigmas: Tensor | Sequence[float],
    steps_per_level: int,
    step_size: float,
    noise: Noise,
    denoise: bool = True,
) -> ScoreSampling:
    """1907.05600 algorithm 1 (2006.09011 algorithm 1 with its last line, the denoising step).

    Args:
        x: (B, ...) the start, of no importance where sigma_1 is large: N(0, sigma_1^2 I), or uniform as in 1907.05600.
        sigmas: (L,) strictly decreasing.
        steps_per_level: T.
        step_size: epsilon of the published code, the step at the last level; level i steps by
            a_i = epsilon (sigma_i / sigma_L)^2. (1907.05600 writes x + a/2 s + sqrt(a) z but ran the same form as here.)
        noise: see `chain.Sampler`; step t of level i draws index i T + t.
        denoise: end on E[x0 | x] = x + sigma_L^2 s(x, sigma_L) (2006.09011 section 3.5), one more call.

    Yields:
        L T + denoise times a ScoreRequest.

    Returns:
        (B, ...) in x's dtype.

    Raises:
        DiffusionError: levels that do not fall strictly, a step size that is not positive, fewer than one step.
    """
    check_sigmas(sigmas)
    levels = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
    for index, sigma in enumerate(levels):
        x = yield from langevin(
            x,
            sigma=sigma,
            num_steps=steps_per_level,
            step_size=step_size * (sigma / levels[-1]) ** 2,
            noise=noise,
            first_index=index * steps_per_level,
        )
    if denoise:
        score = yield ask(x, levels[-1])
        x = x + levels[-1] ** 2 * score
    return x


def langevin(x: Tensor, *, sigma: float, num_steps: int, step_size: float, noise: Noise, first_index: int = 0) -> ScoreSampling:
    """x <- x + a s(x, sigma) + sqrt(2 a) z (1907.05600 eq. 4 with a = epsilon / 2).

    Its stationary law is p only as a -> 0; for N(m, c I) its variance is c / (1 - a / (2 c)).

    Args:
        step_size: a. first_index: the index of the first step's noise. The others as in `annealed_langevin`.
    """
    if num_steps < 1 or not step_size > 0:
        raise DiffusionError.explained(
            f"Langevin dynamics was to take {num_steps} steps of size {step_size:g}",
            expected="at least one step of a positive size",
            fix="use noise_levels.langevin_step_size(...)",
        )
    for index in range(first_index, first_index + num_steps):
        score = yield ask(x, sigma)
        x = x + step_size * score + (2 * step_size) ** 0.5 * drawn(noise, index, x)
    return x


def ask(x: Tensor, sigma: float) -> ScoreRequest:
    """The request for all rows of x (B, ...) at one noise level."""
    return ScoreRequest(x, torch.full((len(x),), sigma, dtype=torch.float64, device=x.device))
