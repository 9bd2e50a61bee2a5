"""The variational bound on -log p(x0) of a discrete diffusion model (2006.11239 eq. 5; 2102.09672 section 3).

    L = L_T + sum_{t > 1} L_{t-1} + L_0,     L_T = KL(q(x_T | x0) || N(0, I)),
    L_{t-1} = KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)),     L_0 = -log p(x0 | x_1),

all in bits per dimension: the mean over the numbers of x0, divided by log 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.parameterisation import Prediction, per_row
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import NoiseSource

LEVELS = 256
"""Values that a pixel can have: L_0 of pictures is the mass of one of them."""


@dataclass(frozen=True)
class Posterior:
    """q(x' | x_t, x0) = N(g x0 + h x_t, small I), and beta, the variance of q(x_t | x') (2006.11239 eq. 6-7).

    Each is (B,) float64. `log_small` is clipped from below where small is 0, that is where x' is clean, to the value of
    the neighbouring step, as a learned variance needs it (2102.09672, code).
    """

    g: Tensor
    h: Tensor
    beta: Tensor
    small: Tensor
    log_small: Tensor

    def mean(self, x0: Tensor, x_t: Tensor) -> Tensor:
        """g x0 + h x_t, (B, ...)."""
        return per_row(self.g, x_t) * x0 + per_row(self.h, x_t) * x_t

    def log_variance(self, share: Tensor) -> Tensor:
        """v log beta + (1 - v) log small (2102.09672 eq. 15), (B, ...) for v (B, ...)."""
        return share * per_row(self.beta.log(), share) + (1 - share) * per_row(self.log_small, share)


def posterior(schedule: NoiseSchedule, timesteps: Tensor, step: Tensor) -> Posterior:
    """The posterior of each row's step.

    Args:
        timesteps: (N,) long, strictly decreasing: the levels of the chain.
        step: (B,) long in [0, N - 1]: from timesteps[step] to the next of the list, and from the last to clean data.
    """
    abar = torch.cat([schedule.abar(timesteps.cpu()), torch.ones(1, dtype=torch.float64)])
    here, there = abar[:-1], abar[1:]
    beta = 1 - here / there
    small = beta * (1 - there) / (1 - here)
    # A chain of one step has no neighbour to borrow from: then the variance is beta.
    log_small = torch.cat([small[:-1], small[-2:-1] if len(small) > 1 else beta]).log()
    g, h = there.sqrt() * beta / (1 - here), (here / there).sqrt() * (1 - there) / (1 - here)
    rows = step.cpu()
    return Posterior(*(values[rows].to(step.device) for values in (g, h, beta, small, log_small)))


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)) of each number, in nats."""
    ratio = (log_variance - other_log_variance).exp()
    gap = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (other_log_variance - log_variance + ratio + gap - 1)


def normal_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log N(x; mean, variance) of each number, in nats."""
    return 0.5 * (math.log(2 * math.pi) + log_variance + (x - mean).square() * (-log_variance).exp())


def pixel_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the normal mass of a pixel's bin (2006.11239 eq. 13), in nats.

    Args:
        x: (...) in [-1, 1], on the 256 values k / 127.5 - 1; the first and the last bin reach to infinity.
    """
    half = 1 / (LEVELS - 1)
    inverse = (-0.5 * log_variance).exp()
    above = torch.where(x > 1 - half, math.inf, (x + half - mean) * inverse)
    below = torch.where(x < -1 + half, -math.inf, (x - half - mean) * inverse)
    # Mirrored, the upper tail keeps its digits: Phi(b) - Phi(a) = Phi(-a) - Phi(-b).
    mirrored = below > 0
    low, high = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    mass = torch.special.ndtr(high) - torch.special.ndtr(low)
    return -mass.clamp(min=1e-12).log()


def bound_term(
    prediction: Prediction, x0: Tensor, x_t: Tensor, log_variance: Tensor, q: Posterior, *, clean: Tensor, pixels: bool
) -> Tensor:
    """One term of the bound a row, (B,) in bits per dimension.

    Args:
        prediction: at x_t; its x0 gives the mean of p. Gradients flow to it and to log_variance.
        log_variance: (B, ...) of p.
        q: the posterior of the row's step.
        clean: (B,) bool, where the step leads to clean data: there L_0, elsewhere L_{t-1}.
        pixels: L_0 of 256 values, or of a density (for points).
    """
    mean = q.mean(prediction.x0, x_t)
    inner = normal_kl(q.mean(x0, x_t), per_row(q.log_small, x_t), mean, log_variance)
    last = (pixel_nll if pixels else normal_nll)(x0, mean, log_variance)
    nats = torch.where(clean.reshape((-1,) + (1,) * (x0.ndim - 1)), last, inner)
    return nats.flatten(1).mean(dim=1) / math.log(2)


def prior_term(schedule: NoiseSchedule, timesteps: Tensor, x0: Tensor) -> Tensor:
    """L_T of each row, (B,) in bits per dimension: how far x_T is from N(0, I)."""
    first = timesteps[:1]
    alpha, sigma = schedule.alpha(first).to(x0), schedule.sigma(first).to(x0)
    nats = normal_kl(alpha * x0, 2 * sigma.log(), torch.zeros_like(x0), torch.zeros_like(sigma))
    return nats.flatten(1).mean(dim=1) / math.log(2)


@dataclass(frozen=True, eq=False)
class Bound:
    """prior: L_T (B,). steps: (N, B), the terms from the noisiest step to L_0. Bits per dimension."""

    prior: Tensor
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """(B,)."""
        return self.prior + self.steps.sum(dim=0)


def variational_bound(
    predict: Callable[[Tensor, Tensor], Prediction],
    x0: Tensor,
    noise: NoiseSource,
    *,
    schedule: NoiseSchedule,
    timesteps: Tensor,
    pixels: bool,
    variance: str = "fixed_large",
) -> Bound:
    """The whole bound of each row, one noise a term.

    Args:
        predict: (x_t (B, ...), t (B,) long) -> the prediction; with "learned" its `variance_share` is used.
        x0: (B, ...). noise: the step's index -> (B, ...) standard normal.
        timesteps: (N,) long, strictly decreasing; all of them give the paper's figure.
        variance: "fixed_small", "fixed_large" or "learned", as in the sampler.

    Raises:
        DiffusionError: an unknown variance, or "learned" with predictions that have none.
    """
    rows = torch.ones(len(x0), dtype=torch.long, device=x0.device)
    terms = []
    for index, t in enumerate(timesteps.tolist()):
        q = posterior(schedule, timesteps, index * rows)
        x_t = schedule.add_noise(x0, noise(index).to(x0), t * rows)
        prediction = predict(x_t, t * rows)
        log_variance = q.log_variance(_share(variance, prediction, x_t))
        clean = torch.full((len(x0),), index == len(timesteps) - 1, device=x0.device)
        terms.append(bound_term(prediction, x0, x_t, log_variance, q, clean=clean, pixels=pixels))
    return Bound(prior_term(schedule, timesteps, x0), torch.stack(terms))


def _share(variance: str, prediction: Prediction, x_t: Tensor) -> Tensor:
    """v of `Posterior.log_variance`: 0 is the small, 1 the large fixed variance."""
    if variance == "learned" and prediction.variance_share is not None:
        return prediction.variance_share
    if variance in ("fixed_small", "fixed_large"):
        return torch.full_like(x_t, float(variance == "fixed_large"))
    raise DiffusionError.explained(
        f"the variance is {variance!r}",
        expected="'fixed_small', 'fixed_large', or 'learned' where the model predicts one",
        fix="use one of these",
    )
