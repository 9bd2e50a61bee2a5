"""Sampling with self-conditioning and asymmetric time intervals (2208.04202), in continuous time.

A generator without I/O like the other samplers. It differs from `chain.Sampler` in what it knows: time runs from 1 to 0 on
a continuous schedule gamma(t) instead of a table, and the network is also shown its previous estimate of x_0.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.samplers.chain import Noise, drawn


def gamma(t: Tensor) -> Tensor:
    """cos^2(((t + 0.0002) / 1.00025) pi / 2): abar of the continuous time t in [0, 1] (2208.04202 appendix A)."""
    return torch.cos((t + 0.0002) / 1.00025 * (math.pi / 2)).square()


@dataclass(frozen=True, eq=False)
class EstimateRequest:
    """Asks for E[x_0 | x_t]; the answer has x_t's shape.

    Args:
        x_t: (B, ...) = sqrt(gamma) x_0 + sqrt(1 - gamma) eps. t: (B,) float64 in [0, 1], one time a row.
        previous: (B, ...) the network's last estimate of x_0, zero at first.
    """

    x_t: Tensor
    t: Tensor
    previous: Tensor


EstimateSampling = Generator[EstimateRequest, Tensor, Tensor]
"""Yields requests, is sent estimates of x_0, returns the last."""


def bit_diffusion(
    x_T: Tensor,
    *,
    num_steps: int,
    time_difference: float = 0.0,
    step: Literal["ddim", "ddpm"] = "ddim",
    noise: Noise = None,
    scale: float = 1.0,
    self_condition: bool = True,
) -> EstimateSampling:
    """2208.04202 algorithm 2 with either step of its appendix.

    Args:
        x_T: (B, ...) standard normal.
        num_steps: N.
        time_difference: td, in steps. Each step goes on to 1 - (i + 1 + td) / N while the next is said to start from
            1 - (i + 1) / N. A few steps of it help a network that is not perfect; they bias one that is.
        step: "ddim" is deterministic; "ddpm" draws noise with variance beta = 1 - gamma(t) / gamma(t').
        noise: see `chain.Sampler`; only for "ddpm".
        scale: of the analog bits; estimates are clipped to [-scale, scale].
        self_condition: show the network its last estimate, otherwise zeros.

    Yields:
        N times an EstimateRequest.

    Returns:
        (B, ...) the last estimate of x_0, within [-scale, scale].

    Raises:
        DiffusionError: no steps, a negative time difference, an unknown step.
    """
    if num_steps < 1 or time_difference < 0:
        raise DiffusionError.explained(
            f"num_steps is {num_steps} and time_difference {time_difference:g}",
            expected="at least one step and a time difference of 0 or more",
            fix="use 100 steps and 0 to 3",
        )
    if step not in ("ddim", "ddpm"):
        raise DiffusionError.explained(f"the step is {step!r}", expected="'ddim' or 'ddpm'", fix="use one of these")
    x = x_T
    estimate = torch.zeros_like(x)
    for index in range(num_steps):
        t_now = 1 - index / num_steps
        t_next = max(1 - (index + 1 + time_difference) / num_steps, 0.0)
        here, there = (float(gamma(torch.tensor(t, dtype=torch.float64))) for t in (t_now, t_next))
        answer = yield EstimateRequest(
            x,
            torch.full((len(x),), t_now, dtype=torch.float64, device=x.device),
            estimate if self_condition else torch.zeros_like(x),
        )
        estimate = answer.clamp(-scale, scale)
        if index == num_steps - 1:
            break
        eps = (x - here**0.5 * estimate) / (1 - here) ** 0.5
        if step == "ddim":
            x = there**0.5 * estimate + (1 - there) ** 0.5 * eps
        else:
            alpha = here / there
            x = (x - (1 - alpha) / (1 - here) ** 0.5 * eps) / alpha**0.5 + (1 - alpha) ** 0.5 * drawn(noise, index, x)
    return estimate
