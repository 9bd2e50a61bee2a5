"""Timesteps drawn by the size of their losses (2102.09672 section 3.3)."""

import torch
from torch import Tensor, nn

HISTORY, UNIFORM_SHARE = 10, 0.001
"""Losses kept a timestep, and the share of uniform draws (section 3.3; the published code has 0.1 %)."""


class LossSecondMoment(nn.Module):
    """p_t proportional to sqrt(E[L_t^2]) over the last 10 losses at t, mixed with 0.1 % of uniform (eq. 18).

    Uniform until every timestep has been seen 10 times. The history is a buffer, so that a resumed training goes on.
    """

    def __init__(self, num_timesteps: int) -> None:
        super().__init__()
        self.register_buffer("history", torch.zeros(num_timesteps, HISTORY))
        self.register_buffer("seen", torch.zeros(num_timesteps, dtype=torch.long))
        self.history: Tensor
        self.seen: Tensor

    def probabilities(self) -> Tensor:
        """(T,) float64 on the CPU."""
        total = len(self.seen)
        if not bool((self.seen >= HISTORY).all()):
            return torch.full((total,), 1 / total, dtype=torch.float64)
        weight = self.history.double().cpu().square().mean(dim=1).sqrt()
        return (1 - UNIFORM_SHARE) * weight / weight.sum() + UNIFORM_SHARE / total

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(count,) timesteps and the weights 1 / (T p_t) that keep the loss unbiased."""
        p = self.probabilities()
        t = torch.multinomial(p, count, replacement=True, generator=generator)
        return t, 1 / (len(p) * p[t])

    def record(self, t: Tensor, losses: Tensor) -> None:
        """Takes the unweighted losses (B,) at timesteps t (B,) into the history, the oldest leaving."""
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self.history[step, int(self.seen[step]) % HISTORY] = loss
            self.seen[step] += 1
