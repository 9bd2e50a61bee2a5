"""Exact answers for data N(mean, variance) in one dimension: the network, the expectation, the best variance."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.schedule import NoiseSchedule


class ExactNoise(nn.Module):
    """eps(x_t, t) = s (x_t - a m) / (a^2 c + s^2), as a model's network; with `shares`, also the variance's output.

    Args:
        shares: timestep -> v, given out as 2 v - 1; None for a network that predicts no variance.
        time_scale: what the model multiplies its timesteps with.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        mean: float,
        variance: float,
        *,
        shares: dict[int, float] | None = None,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.schedule, self.mean, self.variance, self.shares, self.time_scale = schedule, mean, variance, shares, time_scale
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.seen: list[list[float]] = []

    def forward(self, x: Tensor, t: Tensor, *, labels: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        self.seen.append(t.tolist())
        steps = (t / self.time_scale).round().long()
        a, s = (scale[:, None].to(x) for scale in (self.schedule.alpha(steps), self.schedule.sigma(steps)))
        eps = s * (x - a * self.mean) / (a**2 * self.variance + s**2) + self.shift.to(x)
        if self.shares is None:
            return eps
        share = torch.tensor([self.shares[step] for step in steps.tolist()], dtype=x.dtype)[:, None]
        return torch.cat([eps, (2 * share - 1).expand_as(eps)], dim=1)


def quadrature(mean: float, variance: float, order: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """x0 ~ N(mean, variance) and eps ~ N(0, 1) as (R, 1) rows with weights (R,): exact for polynomials of low degree."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    z, w = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    first, second = torch.meshgrid(z, z, indexing="ij")
    x0 = mean + variance**0.5 * first.reshape(-1, 1)
    return x0, second.reshape(-1, 1), torch.outer(w, w).flatten()


def best_shares(schedule: NoiseSchedule, timesteps: Sequence[int], variance: float) -> dict[int, float]:
    """v of the analytic optimum sigma*^2 = btilde + g^2 Var[x0 | x_t] for each step but the last of a chain.

    In the last, where btilde is 0, it is read against the btilde of the step before, as the models do.
    """
    abar = [*(float(schedule.alphas_cumprod[t]) for t in timesteps), 1.0]
    small_before = math.nan
    shares = {}
    for t, here, there in zip(timesteps, abar, abar[1:], strict=False):
        beta = 1 - here / there
        small = beta * (1 - there) / (1 - here)
        g = there**0.5 * beta / (1 - here)
        best = small + g**2 * variance * (1 - here) / (here * variance + 1 - here)
        base = small if there < 1 else small_before
        shares[t] = math.log(best / base) / math.log(beta / base)
        small_before = small
    return shares
